"""Who may ask the server, the headers of its answers, and refusals as JSON."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders

from foveal.serve.limits import RefusedError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["COOKIE", "guard"]

COOKIE = "foveal"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def _refusal(error: RefusedError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse({"error": str(error)}, error.status, headers={**_HEADERS, **headers})


def guard(app: FastAPI, token: str, hosts: tuple[str, ...]) -> None:
    """Add to an application the headers, who may ask, and errors as JSON {"error": …}.

    Args:
        app: the application.
        token: secret that every request must show; "" for none.
        hosts: names by which requests may address the server; empty for any.
    """

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> JSONResponse:  # noqa: ARG001
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:  # noqa: ARG001
        first = error.errors()[0]
        return _refusal(RefusedError(422, f"{first['loc'][-1]}: {first['msg']}"))

    app.add_middleware(_Guard, token=token, hosts=hosts)


class _Guard:
    """ASGI middleware: who may ask, and headers. With Starlette's own base class a client's going away is not seen."""

    def __init__(self, app: ASGIApp, token: str, hosts: tuple[str, ...]) -> None:
        self.app, self.token, self.hosts = app, token, hosts

    def _refused(self, request: Request) -> RefusedError | None:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if self.hosts and name not in self.hosts:
            return RefusedError(403, f"this server answers to {', '.join(self.hosts)} only, got host {name!r}")
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            return RefusedError(403, "requests from other sites' pages are refused; open this server's page")
        if self.token and not _knows(request, self.token):
            return RefusedError(401, "wanted the server's token; open the address that `foveal serve` printed")
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refused(Request(scope))
        if refused is not None:
            await _refusal(refused)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for key, value in _HEADERS.items():
                    headers.setdefault(key, value)
            await send(message)

        await self.app(scope, receive, with_headers)


def _knows(request: Request, token: str) -> bool:
    shown = [request.headers.get("authorization", "").removeprefix("Bearer ").strip(), request.cookies.get(COOKIE, "")]
    if request.url.path == "/":
        shown.append(request.query_params.get("token", ""))
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in shown)
