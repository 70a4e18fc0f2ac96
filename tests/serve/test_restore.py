"""Repairs over HTTP: in one request, as a job, tried on a part, and what is refused."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from served import Client, damaged, film, png, until

from foveal import Restorer, images
from foveal.serve.limits import Limits
from foveal.serve.restoring import restored_part
from foveal.serve.wish import Restoration
from foveal.serve.work import Studio

RESTORE = "/api/v1/restore"


@pytest.fixture(scope="module")
def client(serving) -> Client:
    return serving(limits=Limits(megabytes=0.2, megapixels=0.05))


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture)


def kept(client: Client, data: bytes, name: str = "old.jpg") -> str:
    return client.ask("POST", f"/api/v1/pictures?name={name}", data).json["id"]


@pytest.mark.dear("an engine runs, and another beside it")
def test_a_damaged_picture_in_the_repaired_one_out(client, tmp_path):
    (tmp_path / "a.jpg").write_bytes(damaged())
    got = client.ask("POST", f"{RESTORE}?format=png&name=old.jpg", damaged())
    assert (got.status, got.headers["content-type"]) == (200, "image/png")
    assert got.headers["content-disposition"].endswith("old_restored.png")
    assert "JPEG of quality 20: cleaned at strength" in unquote(got.headers["x-foveal-notes"])
    wanted = Restorer(threads=1).restore_file(tmp_path / "a.jpg", tmp_path / "b.png")
    assert wanted.bundle == "repair_clean"
    assert np.array_equal(opened(got.body), images.read(tmp_path / "b.png").frame(0).pixels)
    assert not np.array_equal(opened(got.body), opened(damaged()))


def test_nothing_found_leaves_the_pixels(client):
    data = png(24, 16)
    got = client.ask("POST", f"{RESTORE}?fix=jpeg", data)
    assert unquote(got.headers["x-foveal-notes"]) == "nothing found to repair"
    assert np.array_equal(opened(got.body), opened(data))


@pytest.mark.dear("two repairs are opened")
def test_a_plan_says_what_is_found_and_the_job_what_was_done(client):
    key = kept(client, damaged(dark=0.2))
    plan = client.ask("GET", f"/api/v1/pictures/{key}/plan?do=restore").json
    assert (plan["width"], plan["height"], plan["format"], plan["files"]) == (96, 72, "jpeg", 1)
    assert plan["seconds"] > 0
    (found,) = plan["notes"]
    assert "JPEG of quality 20: cleaned at strength" in found
    assert "dark, median" in found
    none = client.ask("GET", f"/api/v1/pictures/{key}/plan?do=restore&fix=noise").json
    assert none["notes"] == ["nothing found to repair"]
    job = client.ask("POST", f"/api/v1/pictures/{key}/jobs?do=restore").json
    assert job["name"] == "old_restored.jpg"
    result = until(client, job["id"], "done")["result"]
    assert result["bundle"] == "repair_clean+repair_light"
    assert [one["repair"] for one in result["clean"]["found"]] == ["clean", "light"]
    assert result["notes"] == [found]
    sides = [opened(client.ask("GET", f"/api/v1/jobs/{job['id']}/{side}.png").body) for side in ("before", "after")]
    assert sides[0].shape == sides[1].shape == (72, 96, 3)
    assert sides[1].mean() > 1.5 * sides[0].mean()


@pytest.mark.parametrize(("crop", "dark"), [((30, 20, 40, 36), 1.0), ((0, 0, 96, 72), 0.2)])
def test_a_part_is_repaired_as_in_the_whole(tmp_path, crop, dark):
    source = tmp_path / "a.jpg"
    source.write_bytes(damaged(dark=dark))
    restorer = Restorer(threads=1)
    left, top, width, height = crop
    told = []
    part, notes = restored_part(restorer, source, crop, page=False, tell=lambda *done: told.append(done))
    assert told[-1][0] == pytest.approx(told[-1][1])
    assert len(notes) == 1
    whole = restorer(source)
    edge = 0 if crop == (0, 0, 96, 72) else 12  # where the part's border is seen
    wanted = whole.pixels[top : top + height, left : left + width]
    inside = (slice(edge, height - edge), slice(edge, width - edge))
    assert abs(part.pixels[inside].astype(int) - wanted[inside]).max() <= 1
    assert not np.array_equal(part.pixels[inside], opened(damaged(dark=dark))[top:, left:][inside])


def test_a_part_of_what_is_transparent_or_moves(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 9, (40, 48, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[:, :24, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    part, _ = restored_part(Restorer("light", threads=1), tmp_path / "a.png", (16, 0, 16, 16), page=False, tell=print)
    assert np.array_equal(part.pixels[:, :8], pixels[:16, 16:24])
    assert np.array_equal(part.pixels[..., 3], pixels[:16, 16:32, 3])
    assert (part.pixels[:, 8:, :3] > pixels[:16, 24:32, :3]).mean() > 0.5
    noise = [Image.fromarray(pixels[..., number]) for number in range(3)]
    noise[0].save(tmp_path / "a.gif", save_all=True, append_images=noise[1:])
    _, notes = restored_part(Restorer(threads=1), tmp_path / "a.gif", (0, 0, 16, 16), page=False, tell=print)
    assert "noise" not in notes[0]


def test_a_crop_is_tried_over_http(client):
    key = kept(client, damaged())
    assert client.ask("GET", f"/api/v1/pictures/{key}/plan?do=restore&crop=8,8,32,24").json["width"] == 32
    job = client.ask("POST", f"/api/v1/pictures/{key}/jobs?do=restore&crop=8,8,32,24").json
    assert job["name"] == "old_restored.png"
    result = until(client, job["id"], "done")["result"]
    assert (result["width"], result["height"]) == (32, 24)
    assert "JPEG of quality 20" in result["notes"][0]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (
            "fix=mud",
            "fix must be auto, or of jpeg, noise, rain, snow, light, holes, blur, exposure",
        ),
        ("fix=exposure", "say by how many stops, such as exposure=+1"),
        ("fix=" + 30 * "rain,", "fix: String should have at most 100 characters"),
        ("strength=0", "strength must be auto, or from 1 to 100, got '0'"),
        ("strength=off", "strength must be auto, or from 1 to 100, got 'off'"),
        ("scale=2", "restore has no option 'scale'; leave it out, or take of crop, fix, format, pages, strength"),
    ],
)
def test_what_is_refused(client, query, says):
    got = client.ask("POST", f"{RESTORE}?{query}", damaged())
    assert got.status == 422
    assert says in got.json["error"]


def test_one_job_takes_the_options_of_what_it_does(client):
    key = kept(client, damaged())
    for query, says in (
        ("do=restore&quality=fast", "restore has no option 'quality'"),
        ("fix=rain", "upscale has no option 'fix'"),
        ("do=sharpen", "do: Input should be 'upscale' or 'restore'"),
    ):
        for method, path in (("GET", "plan"), ("POST", "jobs")):
            got = client.ask(method, f"/api/v1/pictures/{key}/{path}?{query}")
            assert got.status == 422
            assert says in got.json["error"]


@pytest.mark.dear("an engine and an encoder run")
def test_a_film_is_planned_tried_and_repaired(client):
    pytest.importorskip("av", reason="av is not installed (the extra video)")
    key = kept(client, film(), "clip.mp4")
    query = "do=restore&fix=exposure%3D%2B1"
    plan = client.ask("GET", f"/api/v1/pictures/{key}/plan?{query}").json
    assert (plan["width"], plan["height"], plan["frames"], plan["format"]) == (32, 24, 4, "mp4")
    assert plan["notes"][0] == "exposed by +1 stops (decided by 4 frames spread over the film)"
    tried = client.ask("POST", f"/api/v1/pictures/{key}/jobs?{query}&crop=4,2,16,10").json
    assert until(client, tried["id"], "done")["result"]["notes"] == ["exposed by +1 stops"]
    job = client.ask("POST", f"/api/v1/pictures/{key}/jobs?{query}").json
    result = until(client, job["id"], "done")["result"]
    assert (result["width"], result["frames"], result["kept"]) == (32, 4, ["audio (aac)"])
    shown = [opened(client.ask("GET", f"/api/v1/jobs/{job['id']}/{side}.png").body) for side in ("before", "after")]
    assert shown[1].mean() > shown[0].mean() + 10
    got = client.ask("POST", f"{RESTORE}?name=clip.mp4&fix=holes", film())
    assert got.status == 422
    assert got.json["error"].startswith("clip.mp4: it is a film, and holes want transparent pixels; leave holes out")


def test_a_damaged_file_is_told_by_its_name(client):
    key = kept(client, damaged(quality=90)[:-400], "half.jpg")
    got = client.ask("GET", f"/api/v1/pictures/{key}/plan?do=restore")
    assert got.status == 422
    assert got.json["error"].startswith("half.jpg: ")
    assert str(client.store.folder) not in got.json["error"]


def test_looks_take_turns_and_are_kept(serving, monkeypatch):
    client = serving(limits=Limits(per_client=2))
    go, real, looks = threading.Event(), Studio.plan, []

    def plan(self, source, info, wish):
        if wish.looks:
            looks.append(wish)
            go.wait(20)
        return real(self, source, info, wish)

    monkeypatch.setattr(Studio, "plan", plan)
    base = f"/api/v1/pictures/{kept(client, damaged())}/plan?do=restore"
    with ThreadPoolExecutor(2) as pool:
        two = [pool.submit(client.ask, "GET", f"{base}&strength={strength}") for strength in (20, 30)]
        for _ in range(500):
            if looks and client.app.state.turns._waiting.total() == 2:
                break
            time.sleep(0.02)
        third = client.ask("GET", f"{base}&strength=20")
        assert (third.status, third.headers["retry-after"]) == (429, "5")
        assert third.json["error"].startswith("2 plans of yours wait already (--max-per-client)")
        assert client.ask("GET", base.replace("do=restore", "scale=2&quality=fast")).status == 200  # does not wait
        client.store.limits = Limits(waiting=2)
        full = client.ask("GET", f"{base}&strength=40")
        assert (full.status, full.headers["retry-after"]) == (503, "15")
        assert full.json["error"] == "2 plans wait already (--max-waiting); try again later"
        assert len(looks) == 1
        go.set()
        assert [one.result().status for one in two] == [200, 200]
    again = client.ask("GET", f"{base}&strength=20")
    assert again.json == two[0].result().json
    assert len(looks) == 2  # it was kept


def test_one_spelling_of_each_wish():
    assert Restoration("snow, jpeg") == Restoration("jpeg,snow")
    assert Restoration(strength="007") == Restoration(strength="7")
    assert Restoration() == Restoration("auto", "auto")


def test_the_offer_and_the_description_know_repairs(client):
    assert client.ask("GET", "/api/v1").json["fixes"] == ["jpeg", "noise", "rain", "snow", "light"]
    paths = client.ask("GET", "/openapi.json").json["paths"]
    named = {one["name"] for one in paths[RESTORE]["post"]["parameters"]}
    assert named == {"fix", "strength", "format", "crop", "pages"}
    assert {"do", "fix", "scale"} <= {one["name"] for one in paths["/api/v1/pictures/{key}/plan"]["get"]["parameters"]}
    for path in (RESTORE, "/api/v1/upscale", "/api/v1/pictures"):
        assert "multipart/form-data" in paths[path]["post"]["requestBody"]["content"]


def test_formulas_are_asked_for_by_name(client):
    picture, sent = opened(damaged()), damaged()
    got = client.ask("POST", f"{RESTORE}?fix=exposure%3D-1&format=png", sent)
    assert got.status == 200
    assert opened(got.body).mean() < picture.mean()
    key = kept(client, sent)
    job = client.ask("POST", f"/api/v1/pictures/{key}/jobs?do=restore&fix=exposure%3D-1&crop=2,3,8,9").json
    assert until(client, job["id"], "done")["result"]["notes"] == ["exposed by -1 stops"]
    part = opened(client.ask("GET", f"/api/v1/jobs/{job['id']}/result").body)
    assert np.array_equal(part, opened(got.body)[3:12, 2:10])
    for fix, says in (
        ("exposure", "say by how many stops"),
        ("rolling-shutter", "looks at frames beside a file, and here are none; use `foveal restore`"),
        ("blur%3D99", "blur must be a number from 0.3 to 4, got '99'"),
    ):
        got = client.ask("POST", f"{RESTORE}?fix={fix}", sent)
        assert got.status == 422
        assert says in got.json["error"]
