"""The HTTP interface over a real socket: pictures, jobs, progress, refusals."""

from __future__ import annotations

import io
import json
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from served import Client, png, until

from foveal import Upscaler
from foveal.serve import wish
from foveal.serve.limits import Limits
from foveal.serve.wish import Upscaling
from foveal.serve.work import OPEN, Studio

FAST = "scale=2&quality=fast"


def form(data: bytes, field: str = "file", name: str = "a photo.png") -> tuple[bytes, str]:
    head = f'--b\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
    return head + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def uploaded(client: Client, **words) -> str:
    return client.ask("POST", "/api/v1/pictures", png(**words)).json["id"]


@pytest.mark.parametrize("as_form", [False, True])
def test_a_picture_in_a_picture_out(server: Client, as_form: bool):
    data = png()
    body, kind = form(data) if as_form else (data, "application/octet-stream")
    got = server.ask("POST", f"/api/v1/upscale?{FAST}", body, Content_Type=kind)
    assert got.status == 200, got.body
    assert got.headers["content-type"] == "image/png"
    if as_form:
        assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20photo_x2.png"
    want = Upscaler(2, "fast", threads=1)(np.asarray(Image.open(io.BytesIO(data))))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(got.body))), want)


def test_nothing_is_left_behind(server: Client):
    for _ in range(100):  # the picture is deleted after the answer is out
        if not list(server.store.folder.iterdir()):
            return
        time.sleep(0.02)
    raise AssertionError(list(server.store.folder.iterdir()))


def test_upload_plan_job_progress_result_and_zip(server: Client):
    kept = server.ask("POST", "/api/v1/pictures?name=%C3%A4%20b.png", png(20, 10))
    assert kept.status == 201
    picture = kept.json
    assert (picture["name"], picture["width"], picture["height"], picture["format"]) == ("ä b.png", 20, 10, "png")
    plan = server.ask("GET", f"/api/v1/pictures/{picture['id']}/plan?{FAST}&format=jpeg").json
    assert (plan["width"], plan["height"], plan["format"]) == (40, 20, "jpeg")
    assert plan["seconds"] > 0
    started = server.ask("POST", f"/api/v1/pictures/{picture['id']}/jobs?{FAST}&format=jpeg")
    assert started.status == 202
    job = started.json["id"]
    assert started.headers["location"] == f"/api/v1/jobs/{job}"
    events = server.ask("GET", f"/api/v1/jobs/{job}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    last = events.body.decode().strip().split("\n\n")[-1].split("\n")
    assert last[0] == "event: end"
    state = json.loads(last[1].removeprefix("data: "))
    assert (state["state"], state["progress"], state["name"]) == ("done", 1.0, "ä b_x2.jpg")
    result = server.ask("GET", f"/api/v1/jobs/{job}/result")
    assert Image.open(io.BytesIO(result.body)).size == (40, 20)
    assert Image.open(io.BytesIO(result.body)).format == "JPEG"
    for side in ("before", "after"):
        shown = server.ask("GET", f"/api/v1/jobs/{job}/{side}.png")
        assert Image.open(io.BytesIO(shown.body)).size == (40, 20)
    assert server.ask("GET", f"/api/v1/jobs/{job}/behind.png").status == 404
    packed = server.ask("GET", f"/api/v1/zip?job={job}&job={job}")
    with zipfile.ZipFile(io.BytesIO(packed.body)) as archive:
        assert archive.namelist() == ["ä b_x2.jpg", "2_ä b_x2.jpg"]
        assert archive.read("ä b_x2.jpg") == result.body
    assert server.ask("DELETE", f"/api/v1/pictures/{picture['id']}").status == 204
    assert server.ask("GET", f"/api/v1/jobs/{job}").status == 404


def test_a_crop_is_the_crop_of_the_picture(server: Client):
    data = png(30, 20, seed=3)
    key = server.ask("POST", "/api/v1/pictures", data).json["id"]
    job = server.ask("POST", f"/api/v1/pictures/{key}/jobs?{FAST}&crop=4,6,10,8").json["id"]
    until(server, job, "done")
    got = np.asarray(Image.open(io.BytesIO(server.ask("GET", f"/api/v1/jobs/{job}/result").body)))
    part = np.asarray(Image.open(io.BytesIO(data)))[6:14, 4:14]
    assert np.array_equal(got, Upscaler(2, "fast", threads=1)(part))
    for crop, says in (
        ("4,6,10", "crop must be left,top,width,height in pixels"),
        ("25,0,10,5", "inside the picture of 30×20"),
    ):
        refused = server.ask("POST", f"/api/v1/pictures/{key}/jobs?crop={crop}")
        assert refused.status == 422
        assert says in refused.json["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/api/v1/upscale?scale=7", png(), 422, "scale must be one of 2, 3, 4, got 7"),
        ("/api/v1/upscale?scale=two", png(), 422, "scale: Input should be a valid integer"),
        ("/api/v1/upscale?quality=best", png(), 422, "quality must be one of fast, balanced, got 'best'"),
        ("/api/v1/upscale?clean=much", png(), 422, "clean must be auto, off or a strength from 0 to 100, got 'much'"),
        ("/api/v1/upscale?format=exe", png(), 422, "format must be one of png, jpeg"),
        ("/api/v1/upscale?scal=2", png(), 422, "upscale has no option 'scal'; leave it out, or take of clean, crop"),
        ("/api/v1/upscale?pages=all", png(), 422, "pages must be one of keep, split, got 'all'"),
        ("/api/v1/upscale?quality=" + 50 * "x", png(), 422, "quality: String should have at most 40 characters"),
        ("/api/v1/upscale", b"", 422, "the body is empty; send the bytes of a picture"),
        ("/api/v1/upscale", b"no picture at all", 415, "the picture: "),
        ("/api/v1/upscale", png()[:60], 422, "the file is damaged or truncated"),
        ("/api/v1/pictures", png(300, 200), 413, "0.1 megapixels, the limit is 0.05 (--max-megapixels)"),
        ("/api/v1/pictures", bytes(300_000), 413, "larger than 0.2 MB (--max-megabytes); send a smaller file"),
        ("/api/v1/pictures/nothing/jobs", b"", 404, "there is no such picture here"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Client, path: str, body: bytes, status: int, says: str):
    got = server.ask("POST", path, body)
    assert got.status == status, got.body
    assert says in got.json["error"]
    assert not [path for path in server.store.folder.iterdir() if path.suffix == ""]  # no upload is left behind


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"--b\r\nno form", "multipart/form-data; boundary=b", "the form cannot be read"),
        (b"x", "multipart/form-data", "the form cannot be read"),
        (*form(png(), "picture"), 'the form has no field "file"'),
    ],
)
def test_forms_that_are_none(server: Client, body: bytes, kind: str, says: str):
    got = server.ask("POST", "/api/v1/upscale", body, Content_Type=kind)
    assert got.status == 422
    assert says in got.json["error"]


def test_an_upload_that_lies_about_its_length(server: Client):
    def chunks():
        for _ in range(40):
            yield bytes(10_000)

    got = server.ask("POST", "/api/v1/pictures", chunks())  # chunked, without a length
    assert got.status == 413


def test_names_of_clients_are_only_shown(server: Client):
    kept = server.ask("POST", "/api/v1/pictures?name=..%2F..%2Fetc%2Fpasswd", png()).json
    job = server.ask("POST", f"/api/v1/pictures/{kept['id']}/jobs?{FAST}").json
    assert job["name"] == "passwd_x2.png"
    assert all(path.parent == server.store.folder for path in server.store.folder.rglob("*"))
    until(server, job["id"], "done")
    for path in ("/static/../app.py", "/static/app.py", "/api/v1/jobs/..%2F..%2Fx/result"):
        assert server.ask("GET", path).status == 404


def test_jobs_wait_in_turn_and_limits_say_so(serving, slow):
    client = serving(limits=Limits(waiting=2, per_client=4))
    key = uploaded(client)
    jobs = [client.ask("POST", f"/api/v1/pictures/{key}/jobs?{FAST}").json["id"]]
    until(client, jobs[0], "running")
    jobs += [client.ask("POST", f"/api/v1/pictures/{key}/jobs?{FAST}").json["id"] for _ in range(2)]
    assert [client.ask("GET", f"/api/v1/jobs/{job}").json["place"] for job in jobs] == [0, 1, 2]
    full = client.ask("POST", f"/api/v1/pictures/{key}/jobs?{FAST}")
    assert (full.status, full.headers["retry-after"]) == (503, "15")
    assert "2 pictures wait already (--max-waiting)" in full.json["error"]
    assert client.ask("DELETE", f"/api/v1/jobs/{jobs[1]}").status == 204
    assert client.ask("GET", f"/api/v1/jobs/{jobs[1]}").status == 404
    early = client.ask("GET", f"/api/v1/jobs/{jobs[2]}/result")
    assert early.status == 409
    assert "the job is waiting" in early.json["error"]
    client.ask("DELETE", f"/api/v1/jobs/{jobs[0]}")  # running
    until(client, jobs[2], "running")
    slow.set()
    assert until(client, jobs[2], "done")["progress"] == 1
    client.store.limits = Limits(per_client=1)
    slow.clear()
    client.ask("POST", f"/api/v1/pictures/{key}/jobs?{FAST}")
    many = client.ask("POST", f"/api/v1/pictures/{key}/jobs?{FAST}")
    assert (many.status, many.headers["retry-after"]) == (429, "5")
    assert "1 of your pictures wait already (--max-per-client)" in many.json["error"]


def test_a_client_that_goes_away_frees_its_job(serving, slow):
    client = serving()
    data = png()
    with client.raw() as connection:
        connection.sendall(
            f"POST /api/v1/upscale?{FAST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        for _ in range(200):
            if client.store._jobs:
                break
            time.sleep(0.02)
        assert client.store._jobs
    for _ in range(300):
        if not client.store._jobs and not list(client.store.folder.iterdir()):
            return
        time.sleep(0.02)
    raise AssertionError((client.store._jobs, list(client.store.folder.iterdir())))


def test_work_that_takes_too_long(serving, slow):
    client = serving(limits=Limits(seconds=0.05))
    got = client.ask("POST", f"/api/v1/upscale?{FAST}", png())
    assert got.status == 504
    assert "it took longer than 0.05 seconds (--max-seconds)" in got.json["error"]


def test_an_upload_that_takes_too_long(serving):
    client = serving(limits=Limits(upload_seconds=0.1))
    with client.raw() as connection:
        connection.sendall(b"POST /api/v1/pictures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nslow")
        answer = connection.recv(4096)
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert not list(client.store.folder.iterdir())


def test_what_is_unused_is_deleted_and_room_is_made(serving):
    client = serving(limits=Limits(pictures=2, keep=60))
    first, second = uploaded(client), uploaded(client)
    client.ask("GET", f"/api/v1/pictures/{first}/plan?{FAST}")  # used
    third = uploaded(client)
    assert [client.ask("GET", f"/api/v1/pictures/{key}/plan?{FAST}").status for key in (first, second, third)] == [
        200,
        404,
        200,
    ]
    client.store.limits = Limits(keep=1e-9)
    client.store.sweep()
    assert client.ask("GET", f"/api/v1/pictures/{first}/plan?{FAST}").status == 404
    assert not list(client.store.folder.iterdir())


def test_strangers_are_kept_out(serving, server: Client):
    from_elsewhere = server.ask("POST", "/api/v1/pictures", png(), Origin="http://evil.example")
    assert from_elsewhere.status == 403
    assert "other sites' pages are refused" in from_elsewhere.json["error"]
    closed = serving(token="a secret", hosts=())
    for path in ("/", "/api/v1", "/api/v1/zip", "/openapi.json", "/?token=wrong"):
        refused = closed.ask("GET", path)
        assert refused.status == 401
        assert "wanted the server's token" in refused.json["error"]
    assert closed.ask("GET", "/api/v1", Authorization="Bearer a secret").status == 200
    opened = closed.ask("GET", "/?token=a%20secret")
    assert opened.status == 303
    assert "HttpOnly" in opened.headers["set-cookie"]
    assert "SameSite=strict" in opened.headers["set-cookie"]
    assert closed.ask("GET", "/", Cookie='foveal="a secret"').status == 200
    named = serving(hosts=("localhost",))
    assert named.ask("GET", "/api/v1", Host="evil.example").status == 403
    assert named.ask("GET", "/api/v1", Host="localhost:99").status == 200


def test_the_page_fetches_nothing_from_elsewhere(server: Client):
    page = server.ask("GET", "/")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("/", "/static/page.css", "/static/page.js", "/static/compare.js"):
        text = server.ask("GET", path).body.decode()
        assert "http://" not in text
        assert "https://" not in text
        assert "style=" not in text


def test_openapi_describes_every_route(server: Client):
    paths = server.ask("GET", "/openapi.json").json["paths"]
    assert {"/api/v1/upscale", "/api/v1/pictures", "/api/v1/jobs/{key}/events", "/api/v1/zip"} <= set(paths)
    assert all(route.get("description") for methods in paths.values() for route in methods.values())


def test_no_more_engines_stay_open_than_told(monkeypatch):
    made = []
    monkeypatch.setattr(wish, "Upscaler", lambda *args, **words: made.append(words["clean"]) or object())
    studio = Studio(1)
    for strength in range(1, 2 * OPEN):
        studio._worker("work", Upscaling(clean=str(strength)))
        studio._worker("work", Upscaling(clean="1"))
    assert len(studio._made) == OPEN
    assert made.count("1") == 1


def test_a_strength_that_cannot_be(server: Client):
    got = server.ask("POST", "/api/v1/upscale?scale=2&quality=fast&clean=130", png())
    assert got.status == 422
    assert "a strength from 0 to 100" in got.json["error"]


def test_limits_must_be_above_zero():
    with pytest.raises(ValueError, match="waiting must be above 0, got 0"):
        Limits(waiting=0)
