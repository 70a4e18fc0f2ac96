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
from pathlib import Path

import pytest
from PIL import Image
from served import Client, png

COMMAND = [sys.executable, "-c", "from foveal.cli.main import main; main()", "serve", "--port", "0"]
LIMITS = ["--max-megabytes", "0.5", "--max-per-client", "40", "--max-waiting", "40", "--max-upload-seconds", "2"]
CLIENTS, SECONDS = 32, 60


def resident(pid: int) -> float:
    """Resident memory of a process, MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1e3


def hostile(client: Client, draw: random.Random) -> None:
    """One request that must be refused or dropped."""
    kind = draw.randrange(6)
    if kind == 0:  # garbage
        assert client.ask("POST", "/api/v1/upscale", draw.randbytes(2000)).status == 415
    elif kind == 1:  # more than is allowed
        assert client.ask("POST", "/api/v1/pictures", bytes(600_000)).status == 413
    elif kind == 2:  # a small file that would become a large picture
        bomb = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
        assert client.ask("POST", "/api/v1/upscale", bomb.getvalue()).status == 413
    elif kind == 3:  # half a picture
        assert client.ask("POST", "/api/v1/upscale", png(64, 64)[:-2000]).status == 422
    elif kind == 4:  # goes away in the middle of an upload
        with client.raw() as connection:
            connection.sendall(b"POST /api/v1/upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nbit")
    else:  # goes away while its picture is worked on
        data = png(40, 40)
        with client.raw() as connection:
            head = f"POST /api/v1/upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_minute_of_clients(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*COMMAND, *LIMITS], stdout=subprocess.PIPE, text=True, env=environment) as process:
        port = int(re.search(r":(\d+)/", process.stdout.readline())[1])
        client = Client(None, port)
        assert client.ask("POST", "/api/v1/upscale?scale=2&quality=fast", png()).status == 200
        counts, failures = [0, 0, 0], []
        until, memory = time.monotonic() + SECONDS, []

        def work(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < until:
                try:
                    if draw.random() < 0.3:
                        hostile(client, draw)
                        counts[1] += 1
                        continue
                    width = draw.randrange(8, 48)
                    got = client.ask("POST", "/api/v1/upscale?scale=2&quality=fast", png(width, 20, seed=number))
                    if got.status in (429, 503):
                        assert int(got.headers["retry-after"]) > 0
                        counts[2] += 1
                        continue
                    assert got.status == 200, got.body
                    with Image.open(io.BytesIO(got.body)) as made:
                        assert made.size == (2 * width, 40)
                    counts[0] += 1
                except Exception as error:  # told at the end, from the main thread
                    failures.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            memory.append(resident(process.pid))
        print(f"{counts[0]} pictures, {counts[1]} hostile, {counts[2]} told to wait")
        print(f"memory from {memory[5]:.0f} to {memory[-1]:.0f} MB")
        assert not failures, (len(failures), failures[:5])
        assert min(counts[:2]) > 0
        settled = sorted(memory[10 : len(memory) // 2])
        assert memory[-1] < 1.15 * settled[len(settled) // 2] + 20
        (folder,) = tmp_path.glob("foveal-serve-*")
        for _ in range(100):
            if not list(folder.iterdir()):
                break
            time.sleep(0.1)
        assert not list(folder.iterdir())
        assert client.ask("POST", "/api/v1/upscale?scale=2&quality=fast", png()).status == 200  # it still works
        process.terminate()
        process.wait(20)
    assert not list(tmp_path.glob("foveal-serve-*"))
