"""foveal's own kernels against ONNX Runtime, and the networks that they must leave to it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from foveal.runtime.bundle import SHIPPED, Bundle, available
from foveal.runtime.engines import EngineError, EngineUnsupportedError, create, why_not
from foveal.runtime.throughput import pick_engine
from foveal.runtime.upscaler import Upscaler

if reason := why_not("native"):
    pytest.skip(reason, allow_module_level=True)

import foveal_kernels

from foveal.runtime.chain import read_chain
from foveal.runtime.native_engine import NativeEngine

pytestmark = pytest.mark.dear("every instruction set of the kernels")

FAST, BACK = SHIPPED / "fast_x4", SHIPPED / "balanced_x4"  # without back-projection and with it
SAMPLES = Path(__file__).parents[2] / "samples"


def picture(shape, kind):
    rng = np.random.default_rng(sum(shape))
    return rng.random(shape, np.float32) if kind == "float" else rng.integers(0, 256, shape, np.uint8)


def natural_picture():
    """(1, 64, 80, 3): a corner of a sample."""
    with Image.open(SAMPLES / "dogs.png") as opened:
        return np.asarray(opened.convert("RGB"))[None, :64, :80]


def shape_for(kind, batch, height, width):
    return (batch, 3, height, width) if kind == "float" else (batch, height, width, 3)


def differ(path, kind, x, **options):
    """Largest difference from ONNX Runtime, and the share of values that differ at all."""
    theirs = create("onnxruntime", path, 1).run(x).astype(np.float64)
    mine = NativeEngine(path, **{"threads": 2, **options}).run(x)
    assert mine.dtype == (np.float32 if kind == "float" else np.uint8)
    assert theirs.std() > 0.01  # or the comparison says nothing
    difference = np.abs(mine - theirs)
    return difference.max(), (difference > 0).mean()


CHAINS = [bundle for bundle in available() if bundle.card.purpose == "super-resolution"]
CLEANERS = [bundle for bundle in CHAINS if bundle.card.levels]
CODED = [bundle for bundle in CHAINS if "int8" in bundle.card.files]


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("bundle", CHAINS, ids=lambda bundle: bundle.card.name)
def test_shipped_bundles_agree_with_onnxruntime(bundle, kind):
    least = 2 * bundle.card.margin + 1
    # One pixel, a part of a tile, a strip and a part, more columns than a chunk of tiles.
    for height, width in [(least, least), (least + 2, least + 5), (least + 12, least + 3), (least + 6, least + 130)]:
        largest, share = differ(bundle.file(kind), kind, picture(shape_for(kind, 1, height, width), kind))
        if kind == "float":
            assert largest < 1e-5
        else:  # what lies on a half may fall to either side
            assert (largest, share) <= (1, 1e-3)


def convolved(x, weight):
    """(C, h, w) by (out, C, k, k) without padding, in the numbers' own arithmetic."""
    return np.tensordot(
        weight, np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (1, 2)), ([1, 2, 3], [0, 3, 4])
    )


def plainly(path, x):
    """What a file of bytes inside makes of (h, w, 3) bytes: sums of whole numbers, the rest in double precision."""
    chain = read_chain(path)
    planes = x.transpose(2, 0, 1) / 255
    steps = [1.0, *chain.steps]
    made = planes
    for i, (weight, bias, slope) in enumerate(zip(chain.weights, chain.biases, chain.slopes, strict=True)):
        sums = convolved(made, weight.astype(np.int64 if i else float))
        scale = chain.scales[i - 1][:, None, None].astype(float) * steps[i] if i else 1.0
        made = sums * scale + bias[:, None, None]
        made = np.where(made > 0, made, made * slope)
        if i + 1 < len(chain.weights):
            counted = np.rint(made / steps[i + 1] + chain.zeros[i][:, None, None])
            made = np.clip(counted, 0, 255).astype(np.int64)
    if chain.back:
        small, reduce, enlarge = (kernel.astype(float) for kernel in chain.back)
        cut = len(chain.weights) - chain.base.shape[1] // 2
        lacking = convolved(planes[:, cut:-cut, cut:-cut], small[None]) + convolved(made, reduce[None])
        made = made[:, 4:-4, 4:-4] + convolved(lacking, enlarge[:, None])
    cut = chain.margin - chain.base.shape[1] // 2
    if chain.colour:
        taps, mix, colours = (kernel.astype(float) for kernel in chain.colour)
        made, chroma = np.split(made, [chain.scale**2])
        reach = chain.base.shape[1] // 2
        made = made[:, reach:-reach, reach:-reach]
        inward = cut - taps.shape[0] // 2
        filtered = np.concatenate(
            [convolved(p[None, inward:-inward, inward:-inward], taps[None, None]) for p in planes]
        )
        planes = planes.copy()
        planes[:, cut:-cut, cut:-cut] += np.einsum("oi,iyx->oyx", mix, filtered)
        planes[:, cut:-cut, cut:-cut] += np.einsum("oi,iyx->oyx", colours, chroma)
    base = [convolved(plane[None, cut:-cut, cut:-cut], chain.base[:, None].astype(float)) for plane in planes]
    blocks = np.stack([one + made for one in base], -1)  # (s², h', w', 3)
    return np.clip(np.rint(blocks * 255), 0, 255).transpose(1, 2, 0, 3).reshape(*made.shape[1:], -1)


def few(difference):
    """Whether results differ by roundings alone.

    In each layer, what lies on a half in single precision may fall to either side; each layer after it spreads that
    over three more pixels, and now and then two of them meet.
    """
    return bool(difference.max() <= 2 and (difference > 1).mean() < 1e-3 and (difference > 0).mean() < 0.2)


def test_more_than_roundings_is_noticed():
    ones, twos = np.arange(1000) % 10 == 0, np.arange(10_000) == 7
    assert few(ones.astype(float))
    assert few(2.0 * twos)
    assert not any(map(few, (3.0 * twos, 2.0 * ones, np.arange(1000) % 4 == 0)))


@pytest.mark.parametrize("bundle", CODED, ids=lambda bundle: bundle.card.name)
def test_shipped_bundles_of_bytes_agree_with_plain_sums(bundle):
    least = 2 * bundle.card.margin + 1
    for x in (picture((least, least + 30, 3), "uint8"), natural_picture()[0, : least + 9]):
        mine = NativeEngine(bundle.file("int8"), 2).run(x[None])[0].astype(float)
        difference = abs(mine - plainly(bundle.file("int8"), x))
        assert few(difference)
        assert mine.std() > 5


def at_level(bundle, kind, row, folder):
    """A bundle's file with the numbers of a level."""
    path = folder / f"{bundle.card.name}-{kind}-{row}.onnx"
    path.write_bytes(bundle.levels().at(row, kind, bundle.file(kind).read_bytes()))
    return path


@pytest.mark.parametrize("kind", ["float", "uint8"])
@pytest.mark.parametrize("bundle", CLEANERS, ids=lambda bundle: bundle.card.name)
def test_bundles_that_clean_agree_with_onnxruntime_at_every_level(bundle, kind, tmp_path):
    table = bundle.levels()
    kernels = set()
    for row in (table.nearest((0.5, 0, 0)), table.nearest((0, 1, 1)), len(table.points) - 1):
        path = at_level(bundle, kind, row, tmp_path)
        kernels.add(read_chain(path).colour[0].tobytes())
        height, width = 2 * bundle.card.margin + 9, 2 * bundle.card.margin + 22
        largest, share = differ(path, kind, picture(shape_for(kind, 1, height, width), kind))
        assert largest < 1e-5 if kind == "float" else (largest, share) <= (1, 1e-3)
    assert len(kernels) == 3  # each level's own filter was read


@pytest.mark.parametrize("bundle", [b for b in CODED if b.card.levels], ids=lambda bundle: bundle.card.name)
def test_bytes_inside_stay_near_floats_at_every_level(bundle, tmp_path):
    table, x = bundle.levels(), natural_picture()
    for level in ((0.5, 0, 0), (0, 1, 1)):
        row = table.nearest(level)
        files = [at_level(bundle, kind, row, tmp_path) for kind in ("uint8", "int8")]
        floats, coded = (NativeEngine(path, 2).run(x).astype(float) for path in files)
        assert 0 < np.square(floats - coded).mean() < 0.6
        assert few(np.abs(coded - plainly(files[1], x[0])))


@pytest.mark.parametrize("bundle", CODED, ids=lambda bundle: bundle.card.name)
def test_bytes_inside_stay_near_floats(bundle):
    x = natural_picture()
    floats, coded = (NativeEngine(bundle.file(kind), 2).run(x).astype(float) for kind in ("uint8", "int8"))
    error = np.square(floats - coded).mean()
    assert 0 < error < 0.6  # levels²: 50 dB


@pytest.mark.parametrize("bundle", CODED, ids=lambda bundle: bundle.card.name)
def test_bytes_inside_keep_a_flat_picture_flat(bundle):
    for colour in [(0, 0, 0), (255, 255, 255), (17, 130, 201)]:
        x = np.full((1, 30, 40, 3), colour, np.uint8)
        y = NativeEngine(bundle.file("int8"), 1).run(x)
        assert (y.reshape(-1, 3) == colour).all()


# Channels of a part of a vector, of a vector and a part, of a half block; 4 and 9 phases.
@pytest.fixture(scope="module", params=[(4, 3, False), (24, 2, True), (48, 3, True), (64, 3, False)])
def file_of_bytes(request, tmp_path_factory):
    """An int8 file of so many channels and such a scale, with back-projection or without."""
    torch = pytest.importorskip("torch")
    from foveal.export.bundle import export_bundle
    from foveal.models import create_model

    folder = tmp_path_factory.mktemp("bytes")
    channels, scale, back = request.param
    torch.manual_seed(channels)
    arguments = {"channels": channels, "depth": 2, "expand": 0, "back_projection": back}
    model = create_model("luma_sr_fast", scale=scale, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    Image.fromarray(picture((96, 120, 3), "uint8")).save(folder / "noise.png")
    given = {"name": "b", "model_name": "luma_sr_fast", "arguments": arguments, "scale": scale}
    return export_bundle(model, folder / "bundle", calibration=folder, **given).folder / "model_int8.onnx"


@pytest.mark.parametrize("name", ["avx512_vpopcntdq", "avx512_vnni", "avx512", "avx2", "plain"])
def test_sums_of_bytes_are_exact(name, file_of_bytes):
    """Of every instruction set, for every way to fill its registers."""
    if name not in foveal_kernels.instruction_sets():
        pytest.skip(str(foveal_kernels.why_not(name)))
    library = foveal_kernels.load(name)
    x = picture((21, 60, 3), "uint8")
    mine, again = (NativeEngine(file_of_bytes, threads, library).run(x[None])[0] for threads in (3, 1))
    assert np.array_equal(mine, again)
    difference = abs(mine - plainly(file_of_bytes, x))
    assert (difference.max(), (difference > 0).mean()) <= (1, 0.02)
    assert mine.std() > 5


@pytest.mark.parametrize("name", ["avx512_vpopcntdq", "avx512_vnni", "avx512", "avx2", "plain"])
@pytest.mark.parametrize("kind", ["float", "uint8", "int8"])
# 16, 32 and 64 channels; 4 and 9 phases fill no register; one has back-projection, one cleans colour.
@pytest.mark.parametrize("bundle", ["fast_x2", "balanced_x3", "balanced_x4", "clean_fast_x4"])
def test_every_instruction_set_agrees(name, kind, bundle):
    if name not in foveal_kernels.instruction_sets():
        pytest.skip(str(foveal_kernels.why_not(name)))
    path = Bundle.load(bundle).file(kind)
    x = picture(shape_for(kind, 2, 31, 44), kind)
    if kind == "int8":
        mine = NativeEngine(path, 2, foveal_kernels.load(name)).run(x)
        assert max(abs(one - plainly(path, low)).max() for one, low in zip(mine, x, strict=True)) <= 1
        return
    largest, _ = differ(path, kind, x, library=foveal_kernels.load(name))
    assert largest <= (1e-5 if kind == "float" else 1)


def test_threads_and_other_sizes_between_change_nothing():
    engine = NativeEngine(FAST / "model.onnx", 3)
    x = picture((1, 3, 70, 90), "float")
    first = engine.run(x).copy()
    engine.run(picture((1, 3, 40, 120), "float") * 100)
    assert np.array_equal(engine.run(x), first)
    assert np.array_equal(NativeEngine(FAST / "model.onnx", 1).run(x), first)


def test_a_picture_comes_out_the_same_as_by_another_engine():
    image = natural_picture()[0]
    mine, theirs = (
        Upscaler(quality="fast", engine=engine, tile=16)(image).astype(int) for engine in ("native", "onnxruntime")
    )
    assert abs(mine - theirs).max() <= (8 if foveal_kernels.multiplies_bytes() else 1)
    assert np.square(mine - theirs).mean() < 0.6


def test_sixteen_bits_are_computed_in_floats():
    image = natural_picture()[0].astype(np.uint16) * 257
    mine, theirs = (Upscaler(quality="fast", engine=e)(image).astype(int) for e in ("native", "onnxruntime"))
    assert abs(mine - theirs).max() <= 2


@pytest.mark.parametrize(
    "x", [picture((1, 3, 16, 40), "float"), picture((1, 40, 40, 3), "uint8"), np.zeros((1, 4, 40, 40), np.float32)]
)
def test_wrong_input_is_named(x):
    with pytest.raises(EngineError, match=r"native failed: wanted \(N, 3, h, w\), h and w above 16, of float32, got"):
        NativeEngine(FAST / "model.onnx", 1).run(x)


def node(model, kind, index=0):
    return [n for n in model.graph.node if n.op_type == kind][index]


def change(model, name, edit):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    edit(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def set_attribute(model, kind, name, value, index=0):
    found = node(model, kind, index)
    kept = [a for a in found.attribute if a.name != name]
    del found.attribute[:]
    found.attribute.extend([*kept, helper.make_attribute(name, value)])


def shorten(model, name):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-1].copy(), name))


CHANGES = {
    "Tanh where LeakyRelu or Relu should be": lambda m: setattr(node(m, "LeakyRelu"), "op_type", "Tanh"),
    "a convolution with pads": lambda m: set_attribute(m, "Conv", "pads", [1, 1, 1, 1], 2),
    "a convolution with strides": lambda m: set_attribute(m, "Conv", "strides", [2, 2], 2),
    "depth to space in another order": lambda m: set_attribute(m, "DepthToSpace", "mode", "DCR"),
    "detail that is not the same for all colours": lambda m: change(m, "spread.weight", lambda a: a.fill(0.5)),
    "a base that differs from colour to colour": lambda m: change(m, "base.weight", lambda a: a[0, 0].fill(0)),
    "a base that mixes colours": lambda m: change(m, "base.weight", lambda a: a[0, 1].fill(0.1)),
    "a base that looks elsewhere": lambda m: node(m, "Conv").input.__setitem__(0, "image"),
    "a bias of": lambda m: shorten(m, "layers.2.bias"),
    "15 channels where 16 are read": lambda m: [shorten(m, f"layers.2.{n}") for n in ("weight", "bias")],
    "a slice that is no border": lambda m: change(m, node(m, "Slice").input[2], lambda a: a.fill(-3)),
}


def reader(model, weight):
    """The convolution with this weight."""
    return next(n for n in model.graph.node if weight in n.input[1:])


def narrow(model, name, side):
    """Cut a square kernel to its middle."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor)
    cut = (array.shape[-1] - side) // 2
    tensor.CopyFrom(numpy_helper.from_array(array[..., cut:-cut, cut:-cut].copy(), name))


def add_bias(model, name, channels):
    model.graph.initializer.append(numpy_helper.from_array(np.ones(channels, np.float32), "bias"))
    reader(model, name).input.append("bias")


def read_image(model, name):
    reader(model, name).input[0] = "image"


BACK_CHANGES = {
    "back-projection of another reach": lambda m: narrow(m, "back.reduce", 3),
    "back-projection of another picture": lambda m: shorten(m, "back.small"),
    "bytes or a bias beside the chain": lambda m: add_bias(m, "back.enlarge", 16),
    "back-projection that looks elsewhere": lambda m: read_image(m, "back.small"),
    "back-projection of something else": lambda m: read_image(m, "back.reduce"),
    "two details": lambda m: reader(m, "spread.weight").input.__setitem__(0, reader(m, "back.enlarge").input[0]),
}


CLEAN_CHANGES = {
    "another colour filter": lambda m: shorten(m, "smooth.weight"),
    "colour that is cleaned in another way": lambda m: shorten(m, "colour.weight"),
    "a colour filter that differs from colour to colour": lambda m: change(
        m, "smooth.weight", lambda a: a[0].fill(0.1)
    ),
    "channels that do not begin with 16": lambda m: channel_slice(m, "colour.weight", 1, 15),
    "other than 16 channels": lambda m: channel_slice(m, "spread.weight", 2, 15),
    "colours of another layer": lambda m: channels_of(m, "colour.weight").input.__setitem__(0, "conv2d_6"),
    "cleaned colours below a base of 7×7": lambda m: widen_base(m),
    "a base that looks elsewhere": lambda m: read_image(m, "smooth.weight"),
}


def channels_of(model, weight):
    """The nearest slice of channels before a convolution."""
    makers = {name: n for n in model.graph.node for name in n.output}
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = makers[reader(model, weight).input[0]]
    while constants[found.input[3]].tolist() != [1]:
        found = makers[found.input[0]]
    return found


def channel_slice(model, weight, index, value):
    model.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"changed_{index}"))
    channels_of(model, weight).input[index] = f"changed_{index}"


def widen_base(model):
    """A base of 7×7, and detail that is cut accordingly."""
    tensor = next(t for t in model.graph.initializer if t.name == "base.weight")
    wide = np.pad(numpy_helper.to_array(tensor), ((0, 0), (0, 0), (1, 1), (1, 1)))
    tensor.CopyFrom(numpy_helper.from_array(wide, "base.weight"))
    constants = {"start": np.array([3]), "end": np.array([-3]), "rows": np.array([2]), "columns": np.array([3])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    makers = {name: n for n in model.graph.node for name in n.output}
    node = makers[reader(model, "spread.weight").input[0]]
    for axis in ("columns", "rows"):
        node.input[1:4] = ["start", "end", axis]
        node = makers[node.input[0]]


INT8_CHANGES = {
    "weights of other levels": lambda m: change(m, "layers.2.weight_zero", lambda a: a.fill(1)),
    "activations of two levels": lambda m: [
        m.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half")),
        node(m, "DequantizeLinear", 1).input.__setitem__(1, "half"),
    ],
    "where channels have zeros": lambda m: shorten_rank(m, node(m, "Add").input[1]),
    "bytes in some layers only": lambda m: drop_rounding(m),
    "bytes or a bias beside": lambda m: round_base(m),
}


def shorten_rank(model, name):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).ravel(), name))


def round_base(model):
    """The upsampler's weights become bytes, which would be worth something else without their scales."""
    weight = next(t for t in model.graph.initializer if t.name == "base.weight")
    array = numpy_helper.to_array(weight)
    scales = abs(array).max((1, 2, 3)) / 127
    coded = np.rint(array / scales[:, None, None, None]).astype(np.int8)
    given = {"coded": coded, "scales": scales, "zeros": np.zeros(len(scales), np.int8)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in given.items())
    reader(model, "base.weight").input[1] = "dequantized"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", [*given], ["dequantized"], axis=0))


def drop_rounding(model):
    """The first activations stay floats."""
    reader = next(n for n in model.graph.node if n.op_type == "Conv" and n.input[0].endswith("_rounded"))
    reader.input[0] = node(model, "LeakyRelu").output[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [("model.onnx", text) for text in [*CHANGES, *BACK_CHANGES]] + [("model_int8.onnx", text) for text in INT8_CHANGES],
)
def test_another_network_is_left_to_another_engine(file, text, tmp_path):
    model = onnx.load((BACK if text in BACK_CHANGES else FAST) / file)
    {**CHANGES, **BACK_CHANGES, **INT8_CHANGES}[text](model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineUnsupportedError, match=rf"m\.onnx is not a chain .*\(.*{text}.*\); use onnxruntime"):
        read_chain(tmp_path / "m.onnx")


@pytest.mark.parametrize("text", CLEAN_CHANGES)
def test_colour_that_is_cleaned_otherwise_is_left_to_another_engine(text, tmp_path):
    model = onnx.load(SHIPPED / "clean_fast_x4" / "model.onnx")
    CLEAN_CHANGES[text](model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineUnsupportedError, match=rf"m\.onnx is not a chain .*\({text}\); use onnxruntime"):
        read_chain(tmp_path / "m.onnx")


def test_bytes_of_other_levels_are_left_to_another_engine(tmp_path):
    model = onnx.load(FAST / "model_u8.onnx")
    change(model, "level", lambda a: a.fill(1 / 256))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(EngineUnsupportedError, match="levels but n/255"):
        read_chain(tmp_path / "m.onnx")


def test_no_slope_and_relu_are_read(tmp_path):
    model = onnx.load(FAST / "model.onnx")
    relu = node(model, "LeakyRelu")
    relu.op_type = "Relu"
    del relu.attribute[:]
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "m.onnx")
    assert read_chain(tmp_path / "m.onnx").slopes[0] == 0
    assert differ(tmp_path / "m.onnx", "float", picture((1, 3, 30, 30), "float"))[0] < 1e-5


def test_auto_passes_over_it_in_silence_for_other_networks(bundles):
    name, note = pick_engine("auto", bundles["trims"], 1, "float")
    assert name != "native"
    assert note == ""


@pytest.mark.parametrize("name", ["avx512_vpopcntdq", "avx512_vnni", "avx512", "avx2", "plain"])
def test_widths_that_fill_no_register(name, tmp_path):
    if name not in foveal_kernels.instruction_sets():
        pytest.skip(str(foveal_kernels.why_not(name)))
    model = onnx.load(FAST / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("layers."):
            array = numpy_helper.to_array(tensor)
            kept = array if tensor.name.startswith("layers.14") else array[:10]
            if kept.ndim == 4 and kept.shape[1] == 16:
                kept = kept[:, :10]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(kept), tensor.name))
    for info in list(model.graph.value_info):
        model.graph.value_info.remove(info)
    onnx.save(model, tmp_path / "m.onnx")
    chain = read_chain(tmp_path / "m.onnx")
    assert {len(weight) for weight in chain.weights} == {10, 16}
    x = picture((1, 3, 33, 61), "float")
    assert differ(tmp_path / "m.onnx", "float", x, library=foveal_kernels.load(name))[0] < 1e-5
