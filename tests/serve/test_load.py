"""A minute of many clients, hostile ones among them: nothing is lost, nothing is left, memory stays flat."""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from served import Answer, Client, damaged, directories, document, film, png, until

av = pytest.importorskip("av", reason="av is not installed (the extra video)")

COMMAND = [sys.executable, "-c", "from foveal.cli.main import main; main()", "serve", "--port", "0"]
LIMITS = ["--max-megabytes", "0.5", "--max-per-client", "40", "--max-waiting", "40", "--max-upload-seconds", "2"]
CLIENTS, SECONDS = 32, 60
FAST = "upscale?scale=2&quality=fast"


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1e3


def descriptors(pid: int) -> int:
    """Number of a process's open files and sockets."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def gone(client: Client, query: str, data: bytes, *, answered: bool = False) -> None:
    """Send a body and go away: at once, or in the middle of the answer."""
    with client.raw() as connection:
        head = f"POST /api/v1/{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        if answered:
            connection.recv(100)


def hostile(client: Client, draw: random.Random) -> None:
    """One request that must be refused or dropped."""
    kind = draw.randrange(12)
    if kind == 0:  # garbage
        assert client.ask("POST", "/api/v1/upscale", draw.randbytes(2000)).status == 415
    elif kind == 1:  # more than is allowed
        assert client.ask("POST", "/api/v1/pictures", bytes(600_000)).status == 413
    elif kind == 2:  # a small file that would become a large picture
        bomb = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
        assert client.ask("POST", "/api/v1/upscale", bomb.getvalue()).status == 413
    elif kind == 3:  # half a picture, which is seen when it is read
        half = client.ask("POST", f"/api/v1/{draw.choice(['upscale', 'restore'])}", png(64, 64)[:-2000])
        assert half.status in (422, 429, 503), half.body
    elif kind == 4:  # goes away in the middle of an upload
        with client.raw() as connection:
            connection.sendall(b"POST /api/v1/upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nbit")
    elif kind == 5:  # goes away while its picture is worked on
        gone(client, "upscale", png(40, 40))
    elif kind == 6:
        gone(client, "restore", damaged())
    elif kind == 7:
        gone(client, FAST, film())
    elif kind == 8:  # goes away in the middle of a zip
        gone(client, f"{FAST}&pages=split", document((64, 64), (64, 64)), answered=True)
    elif kind == 9:  # a small file of very many pages
        assert client.ask("POST", "/api/v1/restore", directories(10_000)).status == 413
    elif kind == 10:  # a small file of values that many entries share
        shared = directories(1, values=100_000, entries=4000)
        assert client.ask("POST", "/api/v1/restore", shared).status == 422
    else:  # half a film
        assert client.ask("POST", "/api/v1/upscale", film()[:900]).status == 422


def busy(got: Answer) -> bool:
    """Whether the answer is to come again later."""
    if got.status in (429, 503):
        assert int(got.headers["retry-after"]) > 0
        return True
    assert got.status in (200, 201, 202), got.body
    return False


def upscaled(client: Client, draw: random.Random) -> bool:
    width = draw.randrange(8, 48)
    got = client.ask("POST", f"/api/v1/{FAST}", png(width, 20, seed=draw.randrange(99)))
    if busy(got):
        return False
    with Image.open(io.BytesIO(got.body)) as made:
        assert made.size == (2 * width, 40)
    return True


def restored(client: Client, draw: random.Random) -> bool:
    got = client.ask("POST", "/api/v1/restore", damaged(dark=draw.choice([1.0, 0.2])))
    if busy(got):
        return False
    assert "JPEG of quality 20" in got.headers["x-foveal-notes"].replace("%20", " ")
    with Image.open(io.BytesIO(got.body)) as made:
        assert (made.size, made.format) == ((96, 72), "JPEG")
    return True


def restored_in_steps(client: Client, draw: random.Random) -> bool:
    kept = client.ask("POST", "/api/v1/pictures?name=old.jpg", damaged())
    if busy(kept):
        return False
    base = f"/api/v1/pictures/{kept.json['id']}"
    assert "JPEG of quality 20" in client.ask("GET", f"{base}/plan?do=restore").json["notes"][0]
    crop = draw.choice(["", "&crop=8,8,32,24"])
    started = client.ask("POST", f"{base}/jobs?do=restore{crop}")
    if not busy(started):
        job = started.json["id"]
        assert until(client, job, "done", "failed")["state"] == "done"
        with Image.open(io.BytesIO(client.ask("GET", f"/api/v1/jobs/{job}/result").body)) as made:
            assert made.size == ((32, 24) if crop else (96, 72))
    assert client.ask("DELETE", base).status == 204
    return started.status == 202


def split(client: Client, _draw: random.Random) -> bool:
    got = client.ask("POST", f"/api/v1/{FAST}&pages=split&format=png", document((12, 9), (8, 14), (10, 10)))
    if busy(got):
        return False
    with zipfile.ZipFile(io.BytesIO(got.body)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 3
    return True


def filmed(client: Client, _draw: random.Random) -> bool:
    got = client.ask("POST", f"/api/v1/{FAST}", film())
    if busy(got):
        return False
    with av.open(io.BytesIO(got.body)) as made:
        assert [(one.width, one.height) for one in made.decode(video=0)] == [(64, 48)] * 4
    return True


GOOD = {upscaled: 10, restored: 5, restored_in_steps: 2, split: 1, filmed: 1}


@contextmanager
def ended(process: subprocess.Popen):
    """A process that does not outlive a failure."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_minute_of_clients(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (
        subprocess.Popen([*COMMAND, *LIMITS], stdout=subprocess.PIPE, text=True, env=environment) as process,
        ended(process),
    ):
        port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
        client = Client(None, port)
        for good in GOOD:  # engines are opened
            assert good(client, random.Random(0))
        counts, failures = Counter(), []
        before = descriptors(process.pid)
        end, memory = time.monotonic() + SECONDS, []

        def work(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < end:
                try:
                    if draw.random() < 0.3:
                        hostile(client, draw)
                        counts["hostile"] += 1
                        continue
                    (good,) = draw.choices(list(GOOD), weights=list(GOOD.values()))
                    counts[good.__name__ if good(client, draw) else "told to wait"] += 1
                except Exception as error:  # told at the end, from the main thread
                    failures.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            memory.append(resident(process.pid))
        print(", ".join(f"{number} {name}" for name, number in sorted(counts.items())))
        print(f"memory {memory[5]:.0f} MB after 5 s, at most {max(memory):.0f}, {memory[-1]:.0f} at the end")
        assert not failures, (len(failures), failures[:5])
        assert all(counts[good.__name__] for good in GOOD)
        assert counts["hostile"]
        settled = sorted(memory[10 : len(memory) // 2])
        assert memory[-1] < 1.15 * settled[len(settled) // 2] + 20
        (folder,) = tmp_path.glob("foveal-serve-*")
        for _ in range(100):
            if not list(folder.iterdir()):
                break
            time.sleep(0.1)
        assert not list(folder.iterdir())
        for good in GOOD:  # it still works
            assert good(client, random.Random(0))
        after = descriptors(process.pid)
        print(f"{before} descriptors before, {after} after")
        assert after < before + 8
        process.terminate()
        process.wait(20)
    assert not list(tmp_path.glob("foveal-serve-*"))
