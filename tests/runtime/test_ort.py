import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from foveal.runtime.ort import load_onnxruntime

SOURCE = Path(__file__).parents[2] / "src"

QUICK = """
import sys
from foveal.runtime import throughput
throughput._TRIED = (32,)
from foveal.cli.main import main
main(sys.argv[1:])
"""


# Imports of ONNX Runtime past `load_onnxruntime`.
DIRECT = re.compile(r"^\s*(?:import|from) onnxruntime\b", re.MULTILINE)


def test_no_file_imports_onnxruntime_itself():
    assert all(
        DIRECT.search(f"x = 1\n  {line}\n") for line in ("import onnxruntime as o", "from onnxruntime.q import x")
    )
    assert [path.name for path in SOURCE.rglob("*.py") if DIRECT.search(path.read_text("utf-8"))] == []


def test_telemetry_is_off_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert load_onnxruntime().__name__ == "onnxruntime"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert load_onnxruntime("quantization").__name__ == "onnxruntime.quantization"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


@pytest.fixture
def tracer(tmp_path):
    """Command that writes the network calls of another one to a file; empty where it cannot."""
    if shutil.which("strace") is None:
        return []
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-e",
        "trace=socket,connect,sendto,sendmsg",
        "-o",
        str(tmp_path / "calls"),
    ]
    done = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if done.returncode == 0 else []


def test_the_command_leaves_only_its_own_files_and_opens_no_socket(tmp_path, tracer):
    Image.new("RGB", (40, 30), (90, 120, 200)).save(tmp_path / "a.png")
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(SOURCE)}
    environment.pop("FOVEAL_CACHE")
    words = f"upscale {tmp_path}/a.png -o {tmp_path}/b.png -s 2 --quality fast --engine onnxruntime --threads 1"
    done = subprocess.run(
        [*tracer, sys.executable, "-c", QUICK, *words.split()],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "b.png") as large:
        assert large.size == (80, 60)
    files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    assert files == ["cache/foveal/calibration.json"]
    if tracer:
        calls = [line for line in (tmp_path / "calls").read_text().splitlines() if "(" in line]
        assert calls == []
