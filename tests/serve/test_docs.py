"""The curl lines of the page on HTTP, run against a server."""

import re
import shutil
import subprocess
import time
import zipfile

import pytest
from documents import ROOT
from PIL import Image
from served import damaged, document, film, png

av = pytest.importorskip("av", reason="av is not installed (the extra video)")
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.mark.dear("six processes of curl and Python, and an engine at scale 2")
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_the_page_run(serving, tmp_path):
    client = serving()
    (tmp_path / "clip.mp4").write_bytes(film())
    (tmp_path / "photo.png").write_bytes(png(16, 12))
    (tmp_path / "old.jpg").write_bytes(damaged())
    (tmp_path / "scan.tif").write_bytes(document((16, 12), (8, 8)))
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 7
    script = "set -e\n" + "\n".join(blocks).replace("localhost:7860", f"localhost:{client.port}")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("photo_x2.png", "photo_x2.jpg", "result.png"):
        with Image.open(tmp_path / name) as made:
            assert made.size == (32, 24)
    with av.open(str(tmp_path / "clip_x2.mp4")) as opened:
        assert [(one.width, one.height) for one in opened.decode(video=0)] == [(64, 48)] * 4
    for name, kind in (("old_restored.png", "PNG"), ("restored.jpg", "JPEG")):
        with Image.open(tmp_path / name) as made:
            assert (made.size, made.format) == ((96, 72), kind)
    assert "JPEG%20of%20quality%2020" in (tmp_path / "restored.txt").read_text().replace(" ", "%20")
    with zipfile.ZipFile(tmp_path / "scan_x2.zip") as archive:
        assert archive.namelist() == ["scan_x2-001.png", "scan_x2-002.png"]
    assert '"width":32,"height":24' in done.stdout
    assert "event: end" in done.stdout
    assert '"state": "done"' in done.stdout
    for _ in range(100):  # the film is deleted after the answer is out
        if not client.store._pictures:
            return
        time.sleep(0.02)
    raise AssertionError(client.store._pictures)


def test_the_options_of_the_page_are_those_of_the_interface(serving):
    described = serving().ask("GET", "/openapi.json").json["paths"]["/api/v1/pictures/{key}/plan"]["get"]["parameters"]
    rows = re.findall(r"^\| `([a-z]+)` \| (upscale|restore|both) \|", PAGE, re.MULTILINE)
    assert {"key", "do", *(name for name, _ in rows)} == {one["name"] for one in described}


def test_the_limits_of_the_page_are_those_of_the_command():
    import inspect

    from foveal.cli.serve import serve

    defaults = {name: p.default for name, p in inspect.signature(serve).parameters.items()}
    rows = re.findall(r"^\| `--([\w-]+)` \| (\d+)", PAGE, re.MULTILINE)
    assert len(rows) == 9
    for option, value in rows:
        assert defaults[option.replace("-", "_")] == float(value)
