"""Weights of architectures that spandrel knows, from tiny untrained networks of them; and files that are no weights."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("spandrel", reason="spandrel is not installed")

from foveal.export.foreign import import_model
from foveal.export.foreign.errors import ForeignModelError
from foveal.export.foreign.spandrel import open_weights, read_weights
from foveal.runtime.bundle import Bundle
from foveal.runtime.upscaler import Upscaler


def compact(**options):
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    return Compact(**{"num_feat": 8, "num_conv": 1, "upscale": 2, **options})


def saved(path, network, key=None):
    state = network.state_dict()
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state if key is None else {key: state, "iter": 5}, path)
    return path


@pytest.mark.parametrize(("name", "key"), [("a.pth", None), ("b.pth", "params_ema"), ("c.safetensors", None)])
def test_weights_are_recognised(name, key, tmp_path):
    opened = open_weights(saved(tmp_path / name, compact(), key))
    assert (opened.family, opened.scale, opened.colours.usual) == ("RealESRGAN Compact", 2, True)
    x = np.random.default_rng(0).random((1, 3, 6, 5), np.float32)
    with torch.inference_mode():
        np.testing.assert_array_equal(opened.run(x), compact().eval()(torch.tensor(x)).numpy())


@pytest.mark.dear("torch exports a network")
def test_a_pth_upscales_as_its_network_does(tmp_path, quick):
    network = compact()
    made = import_model(saved(tmp_path / "tiny.pth", network), tmp_path / "bundle", licence="MIT")
    card = Bundle.load(tmp_path / "bundle").card
    assert (card.scale, card.margin, card.tiling, card.licence, card.multiple) == (2, 3, "exact", "MIT", 1)
    assert made.parity < 1e-5
    picture = np.random.default_rng(0).random((21, 30, 3), np.float32)
    tiled = Upscaler(model=tmp_path / "bundle", tile=16, engine="onnxruntime")(picture)
    around = np.pad(picture, ((3, 3), (3, 3), (0, 0)), mode="symmetric").transpose(2, 0, 1)[None]
    with torch.inference_mode():
        whole = network.eval()(torch.tensor(around))[0, :, 6:-6, 6:-6].permute(1, 2, 0).clamp(0, 1).numpy()
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


class Evil:
    """Unpickled in full, this writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_runs_a_program_runs_nothing(save, tmp_path):
    trap = tmp_path / "sprung"
    save({"params": {"w": torch.zeros(2)}, "extra": Evil(trap)}, tmp_path / "evil.pth")
    with pytest.raises(
        ForeignModelError, match=r"holds more than weights .* could run any program; nothing of it was run"
    ):
        read_weights(tmp_path / "evil.pth")
    assert not trap.exists()


def test_the_trap_would_spring(tmp_path):
    trap = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Evil(trap))).close()
    assert trap.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(ForeignModelError, match=r"holds more than weights \(torch.nn.modules.linear.Linear\)"):
        read_weights(tmp_path / "whole.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_no_file_of_weights(name, tmp_path):
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(ForeignModelError, match=r"is no file of weights|holds more than weights"):
        read_weights(tmp_path / name)


def test_a_lone_tensor_is_refused(tmp_path):
    torch.save(torch.zeros(2), tmp_path / "a.pth")
    with pytest.raises(ForeignModelError, match=r"holds Tensor, wanted named weights; save the state_dict"):
        read_weights(tmp_path / "a.pth")


def test_an_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(
        ForeignModelError, match=r"spandrel knows no architecture with these weights \(weight, bias, …\)"
    ):
        open_weights(saved(tmp_path / "a.pth", nn.Linear(2, 2)))


def test_damaged_weights_are_refused(tmp_path):
    state = compact().state_dict()
    state["body.0.weight"] = torch.zeros(8, 3, 5, 5)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ForeignModelError, match=r"its weights do not fit the architecture they look like"):
        open_weights(tmp_path / "a.pth")


def test_grey_networks_are_refused(tmp_path):
    with pytest.raises(
        ForeignModelError, match=r"RealESRGAN Compact with 1 channels in and 1 out; foveal runs models of RGB"
    ):
        open_weights(saved(tmp_path / "a.pth", compact(num_in_ch=1, num_out_ch=1)))


def test_a_network_that_scales_its_input_in_place_leaves_the_picture(tmp_path):
    from spandrel.architectures.RCAN import RCAN

    network = RCAN(n_resgroups=1, n_resblocks=1, n_feats=8, scale=2, reduction=4)
    x = np.full((1, 3, 4, 4), 0.5, np.float32)
    open_weights(saved(tmp_path / "a.pth", network)).run(x)
    assert np.array_equal(x, np.full((1, 3, 4, 4), 0.5, np.float32))


@pytest.mark.parametrize(("kind", "text"), [("mask", "wants a mask beside the picture"), ("face", "one cropped face")])
def test_models_of_other_tasks_are_refused(kind, text, tmp_path, monkeypatch):
    from spandrel import ImageModelDescriptor, ModelLoader

    found = ModelLoader().load_from_state_dict(compact().state_dict())
    assert isinstance(found, ImageModelDescriptor)
    if kind == "face":
        monkeypatch.setattr(found, "_purpose", "FaceSR")
    else:
        monkeypatch.setattr("spandrel.ImageModelDescriptor", int)
    monkeypatch.setattr(ModelLoader, "load_from_state_dict", lambda *_: found)
    with pytest.raises(ForeignModelError, match=text):
        open_weights(saved(tmp_path / "a.pth", compact()))


@pytest.mark.dear("loads torch's exporter")
def test_what_torch_cannot_export_is_said(tmp_path, monkeypatch, quick):
    from foveal.export import onnx
    from foveal.export.deployable import ExportError

    def fails(*_):
        raise ExportError("cannot export") from ValueError("operator x\nmore")

    monkeypatch.setattr(onnx, "to_onnx", fails)
    with pytest.raises(ForeignModelError, match=r"a.pth \(RealESRGAN Compact\): torch cannot export .* \(operator x\)"):
        import_model(saved(tmp_path / "a.pth", compact()), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["esrgan", "swinir", "safmn", "plksr", "rcan"])
def test_other_families(name, tmp_path):
    """Window attention, in-place scaling, pooling by eights: tiles of all give what the whole picture gives."""
    from spandrel import architectures as families  # noqa: F401 - their modules are loaded by name
    from spandrel.architectures.ESRGAN import ESRGAN
    from spandrel.architectures.PLKSR import PLKSR
    from spandrel.architectures.RCAN import RCAN
    from spandrel.architectures.SAFMN import SAFMN
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = {
            "esrgan": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=4),
            "plksr": lambda: PLKSR(dim=16, n_blocks=2, upscaling_factor=2),
            "rcan": lambda: RCAN(n_resgroups=1, n_resblocks=1, n_feats=16, scale=2, reduction=4),
            "safmn": lambda: SAFMN(dim=8, n_blocks=1, upscaling_factor=2),
            "swinir": lambda: SwinIR(
                img_size=16,
                depths=[2],
                num_heads=[2],
                embed_dim=12,
                window_size=8,
                upscale=2,
                upsampler="pixelshuffledirect",
            ),
        }[name]()
    made = import_model(saved(tmp_path / f"{name}.pth", network), tmp_path / "bundle")
    assert made.card.tiling == ("overlap" if name == "rcan" else "exact")
    assert made.card.multiple == {"swinir": 8, "safmn": 8}.get(name, 1)
    assert made.parity < 1e-3
    picture = np.random.default_rng(0).random((80, 96, 3), np.float32)
    whole, tiled = (Upscaler(model=tmp_path / "bundle", tile=t, engine="onnxruntime")(picture) for t in (96, 32))
    assert np.abs(whole - tiled).max() < (2e-2 if name == "rcan" else 2e-3)
