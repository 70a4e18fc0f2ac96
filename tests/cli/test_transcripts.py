"""The transcript at the end of each command's help is what the command prints.

Times, dates, versions, processors, engines and what else depends on the machine are compared by their shape, everything
else literally; a line "..." stands for any number of lines.
"""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import textwrap
from io import BytesIO

import numpy as np
import pytest
from crew import InProcess
from documents import ROOT, load
from PIL import Image

from foveal.cli.main import COMMANDS, main

# What may differ on another machine or another day, and what stands for it; applied in order to both texts.
ALIKE = (
    (r"\d{4}-\d\d-\d\d", "DATE"),
    (r"\d+(\.\d+)?e[-+]\d\d", "DIFFERENCE"),
    (r"\d+(\.\d+)? (MP|steps)/s", r"SPEED \2/s"),
    (r"\d+(\.\d+)? (h \d+ min|min \d+ s|min|ms|s)\b", "TIME"),
    (r"\b\d+ threads?\b", "THREADS"),
)
ALSO = {
    "upscale": ((r", (native|onnxruntime|openvino|torch), THREADS", ", ENGINE, THREADS"),),
    "restore": ((r", (native|onnxruntime|openvino|torch|numpy), THREADS", ", ENGINE, THREADS"),),
    "eval": ((r"[+]\d+\.\d\d( +0\.\d{4})( +0\.)\d{4}( +0) +\d+\.\d\d\b", r"GAIN\1\2N\3 TIME"), (r"31\.6\d", "31.6")),
    "measure": ((r"quartiles [\d.]+ to [\d.]+", "quartiles"), (r"[\d.]+ MiB", "MEMORY")),
    "serve": ((r":\d+/", ":PORT/"),),
    "shrink": ((r"[-+]?\d+\.\d+ (of|points|times)", r"N \1"), (r"\((onnxruntime|openvino) \w+\)", "(FORM)")),
    "swap": ((r"TIME  \d\.\d\d( \(not faster\))?", "TIME  SHARE"), (r"\d of (\d layers)", r"N of \1")),
    "adapt": ((r"\d+\.\d % right", "N right"), (r"(?<=mine\.safetensors: ).*", "CHOSEN")),
    "run": ((r"(?<=\.png) +\w+ +0\.\d\d\b", " LABEL"),),
    "ask": ((r"(?m)^\w+( \w+){3}$", "ANSWER"),),
    "train": (
        (r"· (cpu, THREADS|cuda|mps) ·", "· DEVICE ·"),
        (r"loss \d\.\d{5}", "loss"),
        (r"(?<=\n)step [0-4]/.*\n", ""),
    ),
    "data": ((r"\d+ pictures", "N pictures"),),  # of a toy package here
    "leaderboard": ((r"[\d,]+ steps; about TIME", "STEPS"),),
    "export": ((r"torch TIME(, \w+ TIME)+", "TIMES"),),
    # What a row's claims gave is derived from the records, which change.
    "catalogue": (
        (r"(?<=\S) {2,}", "  "),  # columns grow with the longest title
        (r"(written|runs|works) +\d+/\d+", "RESULTS"),
        (r"\d+ (of 349 [\w ]+:) .*|\d+ (more are)", r"N \1\2"),
    ),
    "claims": ((r"(?<=DATE  ).*", "MACHINE"), (r"holds +\d+ +\d+\.\d", "holds")),
    "doctor": (
        (r"foveal \S+, Python \S+, .*", "foveal, Python, SYSTEM"),
        (r"(processor|threads|cache|packages|bundles)  .*", r"\1"),
        (r"(?<=kernels\n)(  .*\n)+", "  KERNELS\n"),
        (r"works.*|does not work: .*", "STATE"),
    ),
}
SLOW = {
    "upscale": "measures the engines once",
    "restore": "measures the engines once",
    "train": "trains for five steps",
    "shrink": "imports timm and torchvision, prunes and trains",
    "adapt": "imports timm and torchvision, and trains",
    "eval": "imports torch and opens an engine",
    "run": "opens an engine",
    "ask": "imports transformers",
    "vlm-bench": "imports transformers",
    "export": "exports with torch and opens every engine",
    "catalogue": "imports every method",
    "models": "imports torch",
    "measure": "imports torch",
    "leaderboard": "exports and trains two networks for two steps",
    "claims": "imports torch",
    "doctor": "opens every engine",
}


def shape(text, name):
    """A text with what may differ replaced, and runs of spaces as one."""
    for pattern, word in (*ALIKE, *ALSO.get(name, ())):
        text = re.sub(pattern, word, text)
    return "\n".join(re.sub(r" +", " ", line).strip() for line in text.strip().splitlines())


def agree(promised, printed, name):
    """Whether a transcript's lines are those that were printed."""
    lines = shape(promised, name).splitlines()
    pattern = "".join(r"(.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in lines)
    return re.fullmatch(pattern, shape(printed, name) + "\n") is not None


def transcripts(text):
    """Commands and the lines below each, from a help's last paragraphs."""
    _, found, example = text.partition("\n  Example:\n")
    if not found:
        return []
    lines = textwrap.dedent(example.rstrip()).splitlines()
    parts = re.split(r"^\$ (.*)\n?", "\n".join(lines), flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def run(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def photo(folder, width, height):
    """A picture of that size, of one of the samples."""
    with Image.open(ROOT / "samples" / "bridge.png") as picture:
        return picture.resize((width, height)).save(folder)


@pytest.fixture
def upscale(beside_samples, monkeypatch):
    """A photo, a folder of two, and a cluster of two machines that is in this process."""
    photo(beside_samples / "photo.png", 500, 480)
    (beside_samples / "photos").mkdir()
    for name in ("a.png", "b.png"):
        photo(beside_samples / "photos" / name, 320, 240)
    monkeypatch.setattr("foveal.cli.upscale._crew", lambda address, threads: InProcess())
    monkeypatch.setenv("FOVEAL_CACHE", str(beside_samples / "cache"))
    monkeypatch.setattr("foveal.runtime.throughput._TRIED", (32,))


@pytest.fixture
def restore(beside_samples, monkeypatch):
    with Image.open(ROOT / "samples" / "bridge.png") as picture:
        picture.convert("RGB").resize((500, 480)).save(beside_samples / "photo.jpg", quality=40)
        picture.convert("RGB").resize((500, 480)).save(beside_samples / "scan.png")
    scratch = Image.new("L", (500, 480))
    scratch.paste(255, (30, 40, 38, 440))
    scratch.paste(255, (100, 200, 300, 204))
    scratch.save(beside_samples / "m.png")
    monkeypatch.setenv("FOVEAL_CACHE", str(beside_samples / "cache"))
    monkeypatch.setattr("foveal.runtime.throughput._TRIED", (32,))


@pytest.fixture
def train(beside_samples):
    (beside_samples / "recipes").symlink_to(ROOT / "recipes")
    (beside_samples / "photos").mkdir()
    for path in (ROOT / "samples").glob("*.png"):
        photo(beside_samples / "photos" / path.name, 240, 200)


@pytest.fixture
def shrink(beside_samples, monkeypatch):
    """Untrained weights, a CIFAR-10 of twenty pictures, and a verb that trains and times nothing."""
    import timm
    from safetensors.torch import save_file
    from shrunk import Pretend

    made = Pretend()
    made.times = lambda model: 0.1 * model.conv1[6].out_channels
    made.patch(monkeypatch)
    monkeypatch.setattr("foveal.shrink.distill.distillation.fit", lambda model, *_, **__: model)
    encoded = BytesIO()
    Image.new("RGB", (32, 32)).save(encoded, "JPEG")
    jpeg = np.frombuffer(encoded.getvalue(), np.uint8)
    for part in ("train", "test"):
        np.savez(
            beside_samples / f"cifar10_{part}.npz",
            jpeg=np.tile(jpeg, 20),
            offsets=np.arange(21) * len(jpeg),
            labels=np.arange(20, dtype=np.uint8) % 10,
            classes=np.array([f"class {i}" for i in range(10)]),
        )
    monkeypatch.setenv("FOVEAL_DATA", str(beside_samples))
    save_file(timm.create_model("resnet10t", num_classes=10).state_dict(), beside_samples / "model.safetensors")
    steps = ('name = "prune"\nkeep = 0.5', 'name = "distil"\nsteps = 300', 'name = "quantise"')
    (beside_samples / "recipe.toml").write_text("".join(f"[[step]]\n{step}\n" for step in steps))


@pytest.fixture
def adapt(beside_samples):
    """Untrained weights, and three classes of pictures that differ in their colour."""
    import timm
    import torch
    from safetensors.torch import save_file

    rng = np.random.default_rng(0)
    for channel, name in enumerate(("daisy", "rose", "tulip")):
        (beside_samples / "mine" / name).mkdir(parents=True)
        for i in range(25):
            pixels = rng.integers(0, 128, (32, 32, 3), np.uint8)
            pixels[..., channel] += 128
            Image.fromarray(pixels).save(beside_samples / "mine" / name / f"{i}.png")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), beside_samples / "model.safetensors")


@pytest.fixture(name="run")
def a_classifier(beside_samples):
    """A classifier of two classes, by the mean of the picture's blue."""
    from shrunk import classifier_bundle

    classifier_bundle(beside_samples / "bundles" / "small", labels=("warm", "cold"))


@pytest.fixture
def ask(beside_samples):
    """A tiny LLaVA with random weights."""
    from asked import llava_folder

    llava_folder(beside_samples / "models" / "llava")


@pytest.fixture(name="vlm-bench")
def vlm_bench(ask, beside_samples):
    """Two questions, of which one answer is known."""
    lines = ({"pictures": [f"samples/{name}.png"], "question": "what?"} for name in ("dogs", "clock"))
    (beside_samples / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def once(monkeypatch):
    """Everything is timed by one call, and no process is started to measure memory."""
    from foveal.measure import cost

    latency = cost.latency

    def short(fn, *, threads=2, repeats=15, warmup=3):
        return dataclasses.replace(latency(fn, threads=threads, repeats=1, warmup=0), repeats=repeats)

    monkeypatch.setattr(cost, "latency", short)
    monkeypatch.setattr(cost, "peak_memory", lambda fn, *, threads: 2**26)


@pytest.fixture
def measure(once):
    pass


@pytest.fixture
def leaderboard(beside_samples, monkeypatch):
    """Small results, two steps, hardly timed, without the shipped networks."""
    from foveal.evidence.leaderboard import standing
    from foveal.evidence.rehearsal import rehearsal

    monkeypatch.setenv("FOVEAL_CACHE", str(beside_samples / "cache"))
    monkeypatch.setattr("foveal.runtime.throughput._TRIED", (32,))
    monkeypatch.setattr(standing, "RESULT", (96, 128))
    monkeypatch.setattr(standing, "interleaved", lambda calls, **_: tuple([call() is None or 1.0] for call in calls))
    with rehearsal():
        yield


@pytest.fixture
def export(beside_samples, once):
    from safetensors.torch import save_file

    from foveal.train.restore.recipe import Recipe

    recipe = Recipe.read(ROOT / "recipes" / "fast_x4_1.toml")
    path = beside_samples / "runs" / "fast_x4_1" / "model.safetensors"
    path.parent.mkdir(parents=True)
    metadata = {"recipe": json.dumps(dataclasses.asdict(recipe))}
    save_file({n: t.contiguous() for n, t in recipe.build().state_dict().items()}, path, metadata=metadata)


@pytest.fixture(name="import")
def import_(tmp_path, monkeypatch):
    """A network of one convolution."""
    from foveal.export.foreign import field

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(field, "_NEAR", 12)
    monkeypatch.setattr(field, "_HEIGHT", 12)
    tiny = load("conftest", ROOT / "tests" / "export" / "foreign")
    tiny.write_onnx(tmp_path / "model.onnx")


@pytest.fixture
def serve(monkeypatch):
    """A server that ends at once, on a port of its own."""
    import socket

    import uvicorn

    create = socket.create_server
    monkeypatch.setattr(socket, "create_server", lambda _, **words: create(("localhost", 0), **words))

    def run(self, sockets):
        self.config.app.state.store.close()
        for one in sockets:
            one.close()

    monkeypatch.setattr(uvicorn.Server, "run", run)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An `apt-get` that brings a package with one picture."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not here")
    name = "plasma-workspace-wallpapers"
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    (root / "DEBIAN" / "control").write_text(control)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 1), np.uint8)
    Image.fromarray(np.repeat(noise, 3, 2)).save(root / "a.png", compress_level=0)
    archive = tmp_path / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", str(root), str(archive)], check=True, capture_output=True)
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(f"#!/bin/sh\ncp '{archive}' .\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(apt.parent), prepend=":")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.dear(SLOW[name])] if name in SLOW else []) for name in COMMANDS],
)
def test_the_help_ends_in_what_the_command_prints(name, capsys, request, beside_samples):
    if name in (
        "upscale",
        "restore",
        "train",
        "measure",
        "export",
        "data",
        "import",
        "shrink",
        "adapt",
        "run",
        "ask",
        "vlm-bench",
        "serve",
        "leaderboard",
    ):
        request.getfixturevalue(name)
    found = transcripts(run(capsys, name, "--help")[1])
    assert found, f"help of {name} ends in no transcript"
    for command, promised in found:
        program, *arguments = shlex.split(command)
        assert (program, arguments[0]) == ("foveal", name)
        code, out, err = run(capsys, *arguments)
        assert code == 0, err
        assert promised.strip(), f"$ {command} shows nothing of what it prints"
        assert agree(promised, out, name), f"$ {command} promises\n{promised}\nand prints\n{out}"


def test_a_transcript_is_found_and_a_stale_one_noticed():
    text = "Options:\n  --a\n\n  Example:\n      $ foveal do --a\n      1 of 2 in 0.5 s\n      ...\n      end\n"
    ((command, promised),) = transcripts(text)
    assert command == "foveal do --a"
    assert agree(promised, "1 of 2 in 12 s\nend\n", "")
    assert agree(promised, "1 of 2 in 1 min 3 s\nmore\nand more\nend\n", "")
    assert not agree(promised, "2 of 2 in 12 s\nend\n", "")
    assert not agree(promised, "1 of 2 in 12 s\n", "")
    assert not agree(promised, "1 of 2 in 12 s\nend\nmore\n", "")
    assert transcripts("Usage: foveal do\n\n  $ foveal do\n") == []


@pytest.mark.parametrize("name", ALSO)
def test_shapes_hide_no_whole_line_of_another_command(name):
    assert shape("12 apples, 3 pears", name) == "12 apples, 3 pears"
