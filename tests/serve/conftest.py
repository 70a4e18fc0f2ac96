"""A real server on a free port."""

from __future__ import annotations

import socket
import threading

import pytest
import uvicorn
from served import Client

from foveal.serve.app import create_app
from foveal.serve.limits import Limits
from foveal.serve.work import Studio


@pytest.fixture(scope="module")
def serving():
    """Start servers: serving(limits=…, token=…)."""
    started = []

    def start(**settings) -> Client:
        app = create_app(threads=1, **settings)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        started.append((server, thread))
        client = Client(app, listening.getsockname()[1])
        assert client.ask("GET", "/static/page.css").status in (200, 401, 403)  # it is up
        return client

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(serving) -> Client:
    return serving(limits=Limits(megabytes=0.2, megapixels=0.05))


@pytest.fixture
def slow(monkeypatch):
    """Make the work wait for `go`; it reports progress meanwhile, so it can be stopped."""
    go = threading.Event()
    real = Studio.do

    def do(self, source, targets, wish, tell):
        while not go.wait(0.02):
            tell(0.5, 1.0)
        return real(self, source, targets, wish, tell)

    monkeypatch.setattr(Studio, "do", do)
    yield go
    go.set()
