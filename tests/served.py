"""Pictures to send to a server, and a client that speaks to its socket."""

from __future__ import annotations

import http.client
import io
import json
import socket
from dataclasses import dataclass

import numpy as np
from PIL import Image


def png(width: int = 12, height: int = 9, *, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
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
