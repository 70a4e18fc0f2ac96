"""The light install never imports torch, and importing foveal imports next to nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("numpy", "torch", "onnxruntime", "openvino", "PIL", "pyvips", "typer", "rich")

# Whoever asks for torch is told that there is none, and is written down.
WITHOUT_TORCH = """
import sys
asked = []
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            asked.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
"""


def run(code, cwd):
    source = Path(__file__).parents[1] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "FOVEAL_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_guard_can_fail(tmp_path):
    code = WITHOUT_TORCH + "\ntry:\n    import torch\nexcept ModuleNotFoundError:\n    print(asked)"
    assert run(code, tmp_path) == "['torch']"


@pytest.mark.parametrize(
    "statement",
    [
        "import foveal; foveal.__version__; dir(foveal)",
        "import foveal.runtime, foveal.images, foveal.cli.main",
        "from foveal.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
    ],
)
def test_import_is_light(statement, tmp_path):
    code = "import sys, io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()):\n"
    code += "".join(f"    {line}\n" for line in statement.splitlines())
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(code, tmp_path) == "[]"


def test_upscaling_works_without_torch_and_never_asks_for_it(tmp_path):
    code = WITHOUT_TORCH + (
        "import numpy as np, foveal\n"
        "large = foveal.Upscaler(2, 'fast', engine='onnxruntime')(np.zeros((9, 7, 3), np.uint8))\n"
        "print(large.shape, asked, 'torch' in sys.modules)"
    )
    assert run(code, tmp_path) == "(18, 14, 3) [] False"


def test_the_command_works_without_torch(tmp_path):
    code = WITHOUT_TORCH + (
        "import numpy as np\n"
        "from foveal import images\n"
        "images.write('a.png', images.Picture(np.full((9, 7, 3), 99, np.uint8), alpha=False))\n"
        "from foveal.cli.main import main\n"
        "try:\n    main('upscale a.png --quiet -s 2 --quality fast --engine onnxruntime'.split())\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print(code, images.probe('a_x2.png').width, asked)"
    )
    assert run(code, tmp_path) == "0 14 []"


def test_what_needs_torch_says_how_to_get_it(tmp_path):
    code = WITHOUT_TORCH + (
        "import contextlib, io\n"
        "from foveal.cli.main import main\n"
        "said = io.StringIO()\n"
        "try:\n    with contextlib.redirect_stderr(said):\n"
        "        main(['upscale', 'a.png', '--engine', 'torch'])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print(code, said.getvalue())"
    )
    said = run(code, tmp_path)
    assert said.startswith("2 ")
    assert "pip install '.[torch]'" in said
