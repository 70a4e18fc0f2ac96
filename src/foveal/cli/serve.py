"""`foveal serve`: a page to drop pictures on, to enlarge or repair them, and the same over HTTP."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated

import typer

from foveal.cli._options import Threads, stop
from foveal.cli._speech import say

__all__ = ["serve"]

AUTO = "auto"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    token: Annotated[
        str, typer.Option(metavar="TEXT", help="Secret that clients must show; needed for other addresses.")
    ] = "",
    threads: Threads = None,
    max_megabytes: Annotated[float, typer.Option(metavar="N", help="Largest upload, in MB.")] = 100,
    max_megapixels: Annotated[float, typer.Option(metavar="N", help="Largest picture, in megapixels.")] = 50,
    max_film_megapixels: Annotated[
        float, typer.Option(metavar="N", help="Largest film, all frames together, in megapixels.")
    ] = 2000,
    max_waiting: Annotated[int, typer.Option(metavar="N", help="Largest number of waiting pictures.")] = 32,
    max_per_client: Annotated[int, typer.Option(metavar="N", help="Largest number of one client's pictures.")] = 8,
    max_pictures: Annotated[int, typer.Option(metavar="N", help="Largest number of pictures kept at a time.")] = 500,
    max_pages: Annotated[int, typer.Option(metavar="N", help="Largest number of pages of a TIFF document.")] = 100,
    max_seconds: Annotated[float, typer.Option(metavar="N", help="Longest work on one picture.")] = 900,
    max_upload_seconds: Annotated[float, typer.Option(metavar="N", help="Longest upload.")] = 120,
    keep: Annotated[float, typer.Option(metavar="SECONDS", help="Delete what was unused for this long.")] = 3600,
) -> None:
    """Serve a page to drop pictures on, and the same over HTTP.

    The server listens on this computer only. Another address needs a token: "--token auto" makes one, and the address
    printed contains it. Pictures and results are files in a temporary folder; they are deleted when they were not used
    for a while and when the server ends. Nothing is sent to or fetched from anywhere else.

    Args:
        host: address to listen on.
        port: port; 0 takes a free one.
        token: secret that clients must show; "auto" makes one.
        threads: processor threads.
        max_megabytes: largest upload, in MB.
        max_megapixels: largest picture, in megapixels.
        max_film_megapixels: largest film, all frames together, in megapixels.
        max_waiting: largest number of waiting pictures.
        max_per_client: largest number of one client's pictures that wait or run.
        max_pictures: largest number of pictures kept at a time.
        max_pages: largest number of pages of a TIFF document.
        max_seconds: longest work on one picture.
        max_upload_seconds: longest upload.
        keep: seconds after which unused pictures are deleted.

    Raises:
        typer.Exit: another address without a token, an unusable limit, or a port that is taken.

    Example:
        $ foveal serve
        foveal serves on http://localhost:7860/ (Ctrl-C ends it)
    """
    import socket

    import uvicorn

    from foveal.serve.app import create_app
    from foveal.serve.limits import Limits

    loopback = host in _LOOPBACK
    if not loopback and not token:
        stop("serve", f"--host {host} opens the server to other computers and needs a token; add --token auto")
    if token == AUTO:
        token = secrets.token_urlsafe(18)
    try:
        limits = Limits(
            megabytes=max_megabytes, megapixels=max_megapixels, film_megapixels=max_film_megapixels,
            waiting=max_waiting, per_client=max_per_client, pictures=max_pictures, pages=max_pages,
            seconds=max_seconds, upload_seconds=max_upload_seconds, keep=keep,
        )  # fmt: skip
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except ValueError as error:
        stop("serve", error)
    except OSError as error:
        stop("serve", f"cannot listen on {host}, port {port} ({error.strerror}); choose another --port")
    hosts = (*_LOOPBACK,) if loopback and not token else ()
    app = create_app(limits=limits, token=token, hosts=hosts, threads=threads)
    name = "localhost" if loopback else f"[{host}]" if ":" in host else host
    secret = f"?token={token}" if token else ""
    say(f"foveal serves on http://{name}:{listening.getsockname()[1]}/{secret} (Ctrl-C ends it)", sys.stdout)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, limit_concurrency=512, timeout_keep_alive=10,
        timeout_graceful_shutdown=3, h11_max_incomplete_event_size=32768, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(settings).run(sockets=[listening])
