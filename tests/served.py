"""Pictures to send to a server, and a client that speaks to its socket."""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image


def png(width: int = 12, height: int = 9, *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def damaged(width: int = 96, height: int = 72, *, quality: int = 20, dark: float = 1.0) -> bytes:
    """A JPEG whose artefacts are found, of smooth colours and an edge; below 0.3, `dark` is found too."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([2 * columns + 40, 2 * rows + 60, 90 + 80 * (rows + columns > (width + height) // 2)], axis=2)
    file = io.BytesIO()
    Image.fromarray((pixels.clip(0, 255) * dark).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def document(*sizes: tuple[int, int]) -> bytes:
    """A TIFF of several pages, each of other colours."""
    rng, file = np.random.default_rng(len(sizes)), io.BytesIO()
    pages = [Image.fromarray(rng.integers(0, 255, (high, wide, 3), np.uint8)) for wide, high in sizes]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def directories(count: int, *, values: int = 0, entries: int = 1) -> bytes:
    """A TIFF of empty pages; more entries share a number of values behind them."""
    size = 2 + 12 * (entries if values else 0) + 4
    out = b"II*\0" + struct.pack("<I", 8)
    for page in range(count):
        shared = [struct.pack("<HHII", 40000 + one, 4, values, 8) for one in range(entries if values else 0)]
        following = len(out) + size if page < count - 1 else 0
        out += struct.pack("<H", len(shared)) + b"".join(shared) + struct.pack("<I", following)
    return out + bytes(4 * values)


def until(client: Client, job: str, *states: str) -> dict:
    """Wait for a state of a job."""
    for _ in range(1000):
        state = client.ask("GET", f"/api/v1/jobs/{job}").json
        if state["state"] in states:
            return state
        time.sleep(0.02)
    raise AssertionError(state)


def film(frames: int = 4, *, rotation: int = 0) -> bytes:
    """An MP4 of 32×24, each frame brighter than the one before, with a tone."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        video = made.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        video.codec_context.thread_count = 1
        if rotation:
            video.set_display_rotation(rotation)
        tone = made.add_stream("aac", rate=8000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 20 * i + 20, np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            made.mux(video.encode(frame))
        made.mux(video.encode())
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.float32), "fltp", "mono")
        wave.sample_rate, wave.pts = 8000, 0
        made.mux(tone.encode(wave))
        made.mux(tone.encode())
    return file.getvalue()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Client:
    """Requests to a server, each over a connection of its own."""

    def __init__(self, app, port: int) -> None:
        self.app, self.port = app, port

    @property
    def store(self):
        return self.app.state.store

    def ask(self, method: str, path: str, body=None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)
