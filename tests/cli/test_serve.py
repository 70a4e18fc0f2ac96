"""`foveal serve` as a process."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from foveal.cli.serve import serve

COMMAND = [sys.executable, "-c", "from foveal.cli.main import main; main()", "serve"]


@pytest.mark.dear("a process that imports a web framework")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_leaves_nothing_behind(tmp_path, how):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*COMMAND, "--port", "0"], stdout=subprocess.PIPE, text=True, env=environment) as process:
        said = process.stdout.readline()
        address = re.search(r"http://localhost:\d+/", said)
        assert address, said
        with urllib.request.urlopen(address[0], timeout=30) as page:
            assert b"<title>foveal</title>" in page.read()
        assert list(Path(tmp_path).glob("foveal-serve-*"))
        process.send_signal(how)
        process.wait(20)
    assert not list(Path(tmp_path).glob("foveal-serve-*"))


def run(*arguments: str):
    app = typer.Typer()
    app.command()(serve)
    return CliRunner().invoke(app, list(arguments))


def test_what_it_refuses():
    opened = run("--host", "0.0.0.0")
    assert opened.exit_code == 2
    assert "--host 0.0.0.0 opens the server to other computers and needs a token; add --token auto" in opened.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = run("--port", str(port))
    assert busy.exit_code == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in busy.stderr
    assert "choose another --port" in busy.stderr
    none = run("--max-megabytes", "0", "--port", "0")
    assert none.exit_code == 2
    assert "megabytes must be above 0, got 0" in none.stderr
