import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from foveal.runtime import engines
from foveal.runtime.bundle import available as shipped
from foveal.runtime.engines import (
    ENGINES,
    EngineError,
    EngineMemoryError,
    available,
    create,
    file_kind,
    why_not,
)
from foveal.runtime.errors import failure

# Those that run any graph; the other one has test_native_engine.py.
GENERAL = [name for name in ENGINES if name not in ("native", "ncnn")]


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize("kind", ["same_blocks", "blocks", "trims"])
def test_engines_agree(name, kind, bundles):
    if reason := why_not(name):
        pytest.skip(reason)
    bundle = bundles[kind]
    x = np.random.default_rng(0).random((2, 3, 12, 10), np.float32)
    theirs = create("onnxruntime", bundle.file("float"), 1).run(x)
    engine = create(name, bundle.file("float"), 2, exact=True)
    np.testing.assert_allclose(engine.run(x), theirs, atol=1e-5)
    assert (engine.name, engine.threads) == (name, 2)


@pytest.mark.parametrize("name", GENERAL)
def test_engines_agree_on_bytes(name, bundles):
    if reason := why_not(name):
        pytest.skip(reason)
    path = bundles["trims"].file("uint8")
    x = np.random.default_rng(0).integers(0, 256, (2, 12, 10, 3), np.uint8)
    theirs = create("onnxruntime", path, 1).run(x)
    got = create(name, path, 1).run(x)
    assert got.dtype == np.uint8
    assert abs(got.astype(int) - theirs).max() <= 1
    assert theirs.std() > 5  # or the comparison says nothing


@pytest.mark.parametrize("name", [name for name in GENERAL if name != "onnxruntime"])
@pytest.mark.parametrize(
    "bundle", [b for b in shipped() if "uint8" in b.card.files], ids=lambda bundle: bundle.card.name
)
def test_engines_run_every_shipped_file_of_bytes(name, bundle):
    if reason := why_not(name):
        pytest.skip(reason)
    side = 2 * bundle.card.margin + 7
    x = np.random.default_rng(0).integers(0, 256, (1, side, side + 2, 3), np.uint8)
    for kind in {"uint8", file_kind(name, "uint8", bundle.card.files)}:
        theirs = create("onnxruntime", bundle.file(kind), 1).run(x)
        got = create(name, bundle.file(kind), 1).run(x)
        assert got.shape == (1, 7, 9, 3 * bundle.card.scale**2)
        # Bytes inside are rounded at other places by a sum's last bits, ten layers deep.
        assert abs(got.astype(int) - theirs).max() <= (1 if kind == "uint8" else 3)
        assert theirs.std() > 5


def test_bytes_inside_are_for_those_that_gain_by_them(monkeypatch):
    monkeypatch.setattr(engines, "cpu_flags", lambda: {"avx2", "avx512_vnni"})
    kinds = ["float", "uint8", "int8"]
    given = {name: engines.file_kind(name, "uint8", kinds) for name in ENGINES if name != "native"}
    assert given == {"onnxruntime": "uint8", "openvino": "int8", "torch": "uint8", "ncnn": "uint8"}
    assert engines.file_kind("openvino", "float", kinds) == "float"
    assert engines.file_kind("openvino", "uint8", kinds[:2]) == "uint8"
    monkeypatch.setattr(engines, "cpu_flags", lambda: {"avx2"})
    assert engines.file_kind("openvino", "uint8", kinds) == "uint8"
    kernels = pytest.importorskip("foveal_kernels")
    for can, kind in ((True, "int8"), (False, "uint8")):
        monkeypatch.setattr(kernels, "multiplies_bytes", lambda can=can: can)
        assert engines.file_kind("native", "uint8", kinds) == kind


def test_available_engines_are_those_without_a_reason():
    assert available() == [name for name in ENGINES if name != "ncnn" and not why_not(name)]
    assert "onnxruntime" in available()


def test_missing_library_names_the_command(monkeypatch, bundles):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"engine torch: torch and onnx not installed; pip install '\.\[torch\]'"):
        create("torch", bundles["trims"].file("float"), 1)
    assert available() == []


def test_wrong_arguments(bundles):
    with pytest.raises(
        ValueError, match="engine must be auto or one of native, onnxruntime, openvino, torch, ncnn, got 'cuda'"
    ):
        why_not("cuda")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        create("onnxruntime", bundles["trims"].file("float"), 0)


@pytest.mark.parametrize("name", ["native", *GENERAL])
def test_broken_file_names_the_engine(name, tmp_path):
    if reason := why_not(name):
        pytest.skip(reason)
    (tmp_path / "m.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=f"{name} failed: "):
        create(name, tmp_path / "m.onnx", 1)


def test_torch_refuses_an_operator_it_does_not_know(tmp_path, save_graph):
    pytest.importorskip("torch")
    nodes = [helper.make_node("Erf", ["image"], ["upscaled"])]
    save_graph(tmp_path / "m.onnx", nodes, {}, TensorProto.FLOAT, ["n", 3, "h", "w"], ["n", 3, "h", "w"])
    with pytest.raises(EngineError, match=r"operator Erf in m\.onnx is not supported; use onnxruntime"):
        create("torch", tmp_path / "m.onnx", 1)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (("Conv", ["image", "w"], {"auto_pad": "SAME_UPPER"}), "Conv with auto_pad=SAME_UPPER is not supported"),
        (("Pad", ["image", "p", "", "a"], {}), "Pad with axes is not supported"),
    ],
)
def test_torch_refuses_what_it_would_get_wrong(node, text, tmp_path, save_graph):
    pytest.importorskip("torch")
    kind, inputs, attributes = node
    weights = {
        "w": np.zeros((3, 3, 3, 3), np.float32),
        "p": np.zeros(4, np.int64),
        "a": np.array([2, 3], np.int64),
    }
    weights = {name: weights[name] for name in inputs if name in weights}
    nodes = [helper.make_node(kind, inputs, ["a_"], **attributes), helper.make_node("Identity", ["a_"], ["upscaled"])]
    # Pad takes axes from operator set 18 on.
    save_graph(tmp_path / "m.onnx", nodes, weights, TensorProto.FLOAT, ["n", 3, 8, 8], ["n", 3, 8, 8], opset=18)
    with pytest.raises(EngineError, match=text):
        create("torch", tmp_path / "m.onnx", 1).run(np.zeros((1, 3, 8, 8), np.float32))


def test_torch_keeps_the_number_of_threads(bundles):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    create("torch", bundles["trims"].file("float"), before + 1).run(np.zeros((1, 3, 8, 8), np.float32))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    "case",
    [
        ("Slice", {"s": [1, 1], "e": [-1, 100], "ax": [2, 3]}, {}, [1, 3, 4, 5]),
        ("DepthToSpace", {}, {"blocksize": 1, "mode": "DCR"}, [1, 3, 6, 6]),
        ("Pad", {"p": [0, 0, 1, 2, 0, 0, 3, 1]}, {"mode": "edge"}, [1, 3, 10, 9]),
        ("Pad", {"p": [0, 0, 1, 2, 0, 0, 3, 1]}, {}, [1, 3, 10, 9]),
        ("Clip", {"lo": np.float32(0.2), "hi": np.float32(0.6)}, {}, [1, 3, 6, 6]),
        ("PRelu", {"sl": np.full((3, 1, 1), 0.3, np.float32)}, {}, [1, 3, 6, 6]),
        ("Transpose", {}, {"perm": [0, 1, 3, 2]}, [1, 3, 6, 6]),
        ("Mul", {"k": np.float32(-2)}, {}, [1, 3, 6, 6]),
        ("Sub", {"k": np.float32(0.5)}, {}, [1, 3, 6, 6]),
        ("Div", {"k": np.float32(0.5)}, {}, [1, 3, 6, 6]),
        ("Tanh", {}, {}, [1, 3, 6, 6]),
        ("Sigmoid", {}, {}, [1, 3, 6, 6]),
        ("Cast", {}, {"to": TensorProto.FLOAT}, [1, 3, 6, 6]),
        ("Concat", {"k": np.ones((1, 3, 6, 6), np.float32)}, {"axis": 1}, [1, 6, 6, 6]),
    ],
)
def test_torch_operators_agree_with_onnxruntime(case, tmp_path, save_graph):
    pytest.importorskip("torch")
    operator, inputs, attributes, shape = case
    weights = {name: np.asarray(value, getattr(value, "dtype", np.int64)) for name, value in inputs.items()}
    nodes = [helper.make_node(operator, ["image", *weights], ["upscaled"], **attributes)]
    save_graph(tmp_path / "m.onnx", nodes, weights, TensorProto.FLOAT, [1, 3, 6, 6], shape)
    x = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
    theirs = create("onnxruntime", tmp_path / "m.onnx", 1).run(x)
    np.testing.assert_allclose(create("torch", tmp_path / "m.onnx", 1).run(x), theirs, atol=1e-6)


def test_out_of_memory_is_told_apart():
    assert isinstance(failure("x", RuntimeError("std::bad_alloc")), EngineMemoryError)
    assert isinstance(failure("x", RuntimeError("Failed to allocate memory for requested buffer")), MemoryError)
    assert not isinstance(failure("x", RuntimeError("shape mismatch")), MemoryError)
    assert str(failure("x", RuntimeError("\n"))) == "x failed: RuntimeError"


def test_versions_are_those_of_the_distributions(monkeypatch):
    assert engines.library_version("onnxruntime") == sys.modules["onnxruntime"].__version__
    engines.library_version.cache_clear()

    def missing(name):
        raise engines.PackageNotFoundError(name)

    monkeypatch.setattr(engines, "version", missing)
    assert engines.library_version("native") == "?"
    engines.library_version.cache_clear()
    with pytest.raises(ValueError, match=r"engine must be auto or one of native, .* got 'no-such-library'"):
        engines.library_version("no-such-library")


PROBE = """
import sys
import numpy as np
from pathlib import Path
from foveal.runtime.engines import create
half = np.full(64, 2.0**-127, np.float32)
assert (half * np.float32(0.5) > 0).all()
engine = create("onnxruntime", Path(sys.argv[1]), 1)
engine.run(np.zeros((1, 3, 12, 10), np.float32))
assert (half * np.float32(0.5) > 0).all(), "flushed"
"""


@pytest.mark.dear("a process of its own, since only the first session of one could do it")
def test_opening_an_engine_leaves_the_callers_arithmetic_as_it_was(bundles):
    command = [sys.executable, "-c", PROBE, str(bundles["same_blocks"].file("float"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
