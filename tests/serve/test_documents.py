"""Documents of several pages: a file for each, and those that are made to hurt."""

from __future__ import annotations

import io
import struct
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from served import Client, directories, document, png, until

from foveal import Upscaler, images
from foveal.serve import document as documents
from foveal.serve.limits import Limits, RefusedError

FAST = "scale=2&quality=fast"
SIZES = ((12, 9), (8, 14), (10, 10))


@pytest.fixture(scope="module")
def client(serving) -> Client:
    return serving(limits=Limits(pages=4))


@pytest.mark.dear("four networks run")
def test_a_file_for_each_page(client, tmp_path):
    (tmp_path / "a.tif").write_bytes(document(*SIZES))
    got = client.ask("POST", f"/api/v1/upscale?{FAST}&pages=split&format=png&name=scan.tif", document(*SIZES))
    assert (got.status, got.headers["content-type"]) == (200, "application/zip")
    assert got.headers["content-disposition"].endswith("scan_x2.zip")
    upscaler = Upscaler(2, "fast", threads=1)
    with zipfile.ZipFile(io.BytesIO(got.body)) as archive:
        assert archive.namelist() == ["scan_x2-001.png", "scan_x2-002.png", "scan_x2-003.png"]
        for page, name in enumerate(archive.namelist()):
            upscaler.upscale_file(tmp_path / "a.tif", tmp_path / "b.png", page=page, overwrite=True)
            with Image.open(io.BytesIO(archive.read(name))) as made:
                assert made.size == (2 * SIZES[page][0], 2 * SIZES[page][1])
                assert np.array_equal(np.asarray(made), images.read(tmp_path / "b.png").frame(0).pixels)


def test_nothing_is_left_behind(client):
    for _ in range(100):  # pages are deleted after the answer is out
        if not list(client.store.folder.iterdir()):
            return
        time.sleep(0.02)
    raise AssertionError(list(client.store.folder.iterdir()))


def test_a_job_of_pages(client):
    key = client.ask("POST", "/api/v1/pictures?name=scan.tif", document(*SIZES)).json["id"]
    base = f"/api/v1/pictures/{key}"
    plan = client.ask("GET", f"{base}/plan?{FAST}&pages=split&format=jpeg").json
    assert (plan["files"], plan["frames"], plan["format"]) == (3, 3, "jpeg")
    whole = client.ask("GET", f"{base}/plan?{FAST}&format=jpeg")
    assert whole.status == 422
    assert whole.json["error"].startswith("scan.tif") or "cannot hold a document" in whole.json["error"]
    assert "a file for each page (pages=split)" in whole.json["error"]
    job = client.ask("POST", f"{base}/jobs?{FAST}&pages=split").json
    state = until(client, job["id"], "done")
    assert (state["name"], state["result"]["pages"]) == ("scan_x2.zip", 3)
    assert (state["result"]["width"], state["result"]["height"]) == (24, 18)
    for side in ("before", "after"):
        with Image.open(io.BytesIO(client.ask("GET", f"/api/v1/jobs/{job['id']}/{side}.png").body)) as shown:
            assert shown.size == (24, 18)
    with zipfile.ZipFile(io.BytesIO(client.ask("GET", f"/api/v1/zip?job={job['id']}").body)) as archive:
        assert archive.namelist() == ["scan_x2-001.tif", "scan_x2-002.tif", "scan_x2-003.tif"]
    tried = client.ask("POST", f"{base}/jobs?{FAST}&pages=split&crop=0,0,5,5").json
    assert until(client, tried["id"], "done")["name"] == "scan_x2.png"
    client.ask("DELETE", base)
    assert not list(client.store.folder.iterdir())


@pytest.mark.dear("a repair is opened")
def test_pages_are_repaired_one_by_one(client):
    got = client.ask("POST", "/api/v1/restore?fix=jpeg&pages=split&name=scan.tif", document(*SIZES))
    assert got.headers["content-disposition"].endswith("scan_restored.zip")
    with zipfile.ZipFile(io.BytesIO(got.body)) as archive:
        assert archive.namelist()[0] == "scan_restored-001.tif"


@pytest.mark.parametrize("data", [png(), document((9, 7))])
def test_one_page_is_a_picture(client, data):
    got = client.ask("POST", f"/api/v1/upscale?{FAST}&pages=split&format=png", data)
    assert got.headers["content-type"] == "image/png"


def test_a_stopped_document_leaves_nothing(client, monkeypatch):
    real = Upscaler.upscale_file

    def slowly(self, *places, progress, **words):
        def told(*done):
            time.sleep(0.1)
            progress(*done)

        return real(self, *places, progress=told, **words)

    monkeypatch.setattr(Upscaler, "upscale_file", slowly)
    key = client.ask("POST", "/api/v1/pictures", document(*SIZES)).json["id"]
    job = client.ask("POST", f"/api/v1/pictures/{key}/jobs?{FAST}&pages=split").json["id"]
    for _ in range(500):
        if client.ask("GET", f"/api/v1/jobs/{job}").json["progress"] >= 0.3:
            break
        time.sleep(0.01)
    client.ask("DELETE", f"/api/v1/pictures/{key}")
    for _ in range(500):
        if not client.store._jobs:
            break
        time.sleep(0.02)
    assert not list(client.store.folder.iterdir())


def test_a_page_that_cannot_be_done_is_named(client, monkeypatch):
    real = Upscaler.upscale_file

    def second_fails(self, source, target, *, page, **words):
        if page == 1:
            raise OSError(f"{source}: no")
        return real(self, source, target, page=page, **words)

    monkeypatch.setattr(Upscaler, "upscale_file", second_fails)
    got = client.ask("POST", f"/api/v1/upscale?{FAST}&pages=split&name=scan.tif", document(*SIZES))
    assert (got.status, got.json["error"]) == (422, "page 2 of 3: scan.tif: no")


def test_notes_say_of_which_page(tmp_path):
    class Worker:
        scale, threads = 1, 1

        def upscale_file(self, source, target, *, page, overwrite, progress):
            progress(0.5, 0.5, (0, 0, 1, 1))
            return type("", (), {
                "width": 4, "height": 2, "megapixels": 0.5, "seconds": 1.0, "bundle": "ab"[page % 2], "engine": "e",
                "notes": ("all",) if page else ("all", "one"),
            })  # fmt: skip

    told = []
    info = images.Info(1000, 500, 3, 8, 3, "tiff")
    made = documents.do_pages(Worker(), tmp_path, info, [tmp_path] * 3, lambda *done: told.append(done))
    assert told == [(0.5, 1.5), (1.0, 1.5), (1.5, 1.5)]
    assert made["notes"] == ["all", "page 1: one"]
    assert (made["bundle"], made["seconds"], made["pages"]) == ("a, b", 3.0, 3)


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (directories(5), 413, "a.tif has more than 4 pages (--max-pages); send it in parts"),
        (
            directories(1, values=2000, entries=5),
            422,
            "a.tif: its directories hold more than a picture needs; write it with",
        ),
        (directories(4, values=1_500_000), 422, "its directories hold more than a picture needs"),
        (document(*SIZES), 0, ""),
        (b"II*\0" + bytes(3), 0, ""),
        (b"II*\0" + struct.pack("<IH", 8, 4000), 0, ""),
    ],
    ids=["pages", "values", "numbers", "honest", "truncated", "short"],
)
def test_directories_are_walked_first(tmp_path, data, status, says):
    (tmp_path / "a.tif").write_bytes(data)
    if not status:
        documents.check_document(tmp_path / "a.tif", "a.tif", Limits(pages=4))
        return
    with pytest.raises(RefusedError) as refused:
        documents.check_document(tmp_path / "a.tif", "a.tif", Limits(pages=4))
    assert refused.value.status == status
    assert says in str(refused.value)


def test_too_many_pages_are_refused_at_once(client):
    began = time.process_time()
    got = client.ask("POST", "/api/v1/pictures?name=a.tif", directories(20_000))
    assert (got.status, got.json["error"]) == (413, "a.tif has more than 4 pages (--max-pages); send it in parts")
    assert time.process_time() - began < 2  # libvips would take minutes


def test_an_offset_of_64_bits_is_damage(client):
    data = b"II+\0" + struct.pack("<HHQ", 8, 0, 1 << 63) + bytes(50)
    got = client.ask("POST", "/api/v1/pictures?name=a.tif", data)
    assert got.status == 422
    assert got.json["error"].startswith("a.tif: the file is damaged or truncated")
