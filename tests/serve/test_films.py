"""Films over HTTP: planned, tried, enlarged, shown, cancelled and refused. And pictures of the optional formats."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image
from served import Client, film, until

from foveal.serve import film as films
from foveal.serve.limits import Limits

av = pytest.importorskip("av", reason="av is not installed (the extra video)")
FAST = "scale=2&quality=fast"


@pytest.fixture(scope="module")
def client(serving) -> Client:
    return serving(limits=Limits(film_megapixels=0.006))


def upload(client: Client, data: bytes, name: str = "clip.mp4"):
    return client.ask("POST", f"/api/v1/pictures?name={name}", data)


@pytest.mark.dear("an engine and an encoder run")
def test_a_film_is_planned_tried_enlarged_and_shown(client):
    kept = upload(client, film()).json
    assert (kept["kind"], kept["format"], kept["width"], kept["height"], kept["frames"]) == ("film", "mp4", 32, 24, 4)
    base = f"/api/v1/pictures/{kept['id']}"
    plan = client.ask("GET", f"{base}/plan?{FAST}").json
    assert (plan["width"], plan["height"], plan["frames"], plan["format"], plan["notes"]) == (64, 48, 4, "mp4", [])
    assert plan["seconds"] > 0
    tried = client.ask("POST", f"{base}/jobs?{FAST}&crop=4,2,16,10").json
    assert tried["name"] == "clip_x2.png"
    assert until(client, tried["id"], "done")["result"]["width"] == 32
    job = client.ask("POST", f"{base}/jobs?{FAST}").json
    result = until(client, job["id"], "done")["result"]
    assert (result["frames"], result["kept"], result["notes"]) == (4, ["audio (aac)"], [])
    got = client.ask("GET", f"/api/v1/jobs/{job['id']}/result")
    assert got.headers["content-type"] == "video/mp4"
    assert got.headers["content-disposition"].endswith("clip_x2.mp4")
    with av.open(io.BytesIO(got.body)) as made:
        assert [(one.width, one.height) for one in made.decode(video=0)] == [(64, 48)] * 4
    shown = [np.asarray(Image.open(io.BytesIO(client.ask("GET", f"/api/v1/jobs/{job['id']}/{side}.png").body)))
             for side in ("before", "after")]  # fmt: skip
    assert shown[0].shape == shown[1].shape == (48, 64, 3)
    for pixels in shown:  # the third frame of four
        assert abs(int(pixels.mean()) - 60) < 5
    client.ask("DELETE", base)
    assert not list(client.store.folder.iterdir())


def test_a_stopped_film_leaves_nothing(client, monkeypatch):
    real = films.upscale_film
    monkeypatch.setattr(films, "upscale_film", lambda *a, progress, **k: real(*a, progress=_slowly(progress), **k))
    kept = upload(client, film()).json
    job = client.ask("POST", f"/api/v1/pictures/{kept['id']}/jobs?{FAST}").json
    for _ in range(1000):
        if client.ask("GET", f"/api/v1/jobs/{job['id']}").json["progress"] >= 0.25:
            break
        time.sleep(0.01)
    assert list(client.store.folder.glob(".*.segments"))
    client.ask("DELETE", f"/api/v1/jobs/{job['id']}")
    for _ in range(500):
        if not client.store._jobs:
            break
        time.sleep(0.02)
    assert [path.suffix for path in client.store.folder.iterdir()] == [".mp4"]
    client.ask("DELETE", f"/api/v1/pictures/{kept['id']}")
    assert not list(client.store.folder.iterdir())


def _slowly(progress):
    def told(done, whole):
        time.sleep(0.1)
        progress(done, whole)

    return told


def test_refused(client, monkeypatch):
    long = upload(client, film(9), "long.mp4")
    assert long.status == 413
    assert long.json["error"].startswith(
        "long.mp4 has 9 frames of 32×24, 0 megapixels together, the limit is 0.006 (--max"
    )
    broken = upload(client, film()[:40], "broken.mp4")
    assert broken.status == 422
    assert broken.json["error"].startswith("broken.mp4: it is no film that FFmpeg reads (")
    kept = upload(client, film()).json
    format_ = client.ask("POST", f"/api/v1/pictures/{kept['id']}/jobs?{FAST}&format=png")
    assert (format_.status, format_.json["error"]) == (422, "a film stays a mp4 file; leave out format")
    outside = client.ask("POST", f"/api/v1/pictures/{kept['id']}/jobs?{FAST}&crop=30,0,4,4")
    assert outside.status == 422
    client.ask("DELETE", f"/api/v1/pictures/{kept['id']}")
    client.store.limits = Limits(megapixels=0.0001)
    assert (
        "has frames of 0.0 megapixels, the limit is 0.0001 (--max-megapixels)" in upload(client, film()).json["error"]
    )
    monkeypatch.setattr(films, "find_spec", lambda _: None)
    without = upload(client, film())
    assert without.status == 415
    assert "reading films needs av, which is not installed; pip install '" in without.json["error"]
    assert client.ask("GET", "/api/v1").json["films"] == []
    assert not list(client.store.folder.iterdir())


def test_work_that_takes_too_long(serving):
    client = serving(limits=Limits(seconds=0.001))
    got = client.ask("POST", f"/api/v1/upscale?{FAST}", film())
    assert got.status == 504
    assert "it took longer than 0.001 seconds (--max-seconds)" in got.json["error"]


def test_a_film_is_known_by_its_bytes():
    assert films.film_suffix(b"\x1a\x45\xdf\xa3", "a.webm") == ".webm"
    assert films.film_suffix(b"\x1a\x45\xdf\xa3", "a") == ".mkv"
    assert films.film_suffix(b"\0\0\0\x18ftypisom", "../../etc/passwd") == ".mp4"
    assert films.film_suffix(b"RIFF\0\0\0\0AVI ", "a.png") == ".avi"
    assert films.film_suffix(b"#EXTM3U\nfile:///etc/passwd", "a.mp4") == ""


def test_a_turned_film_is_shown_upright(tmp_path):
    (tmp_path / "a.mp4").write_bytes(film(rotation=90))
    info = films.checked_film(tmp_path / "a.mp4", "a", ".mp4", Limits())
    assert (info.width, info.height) == (24, 32)
    assert films.poster(tmp_path / "a.mp4").shape == (32, 24, 3)


def test_heic_becomes_png(serving):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (the extra heic)")
    client, file = serving(), io.BytesIO()
    heif.from_bytes("RGB", (12, 8), bytes(12 * 8 * 3)).save(file)
    assert "heic" in client.ask("GET", "/api/v1").json["reads"]
    got = client.ask("POST", f"/api/v1/upscale?{FAST}&name=IMG_1.HEIC", file.getvalue())
    assert got.headers["content-type"] == "image/png"
    assert got.headers["content-disposition"].endswith("IMG_1_x2.png")
    with Image.open(io.BytesIO(got.body)) as made:
        assert made.size == (24, 16)
