"""The HTTP interface: pictures in, jobs, progress as server-sent events, results out. OpenAPI at /openapi.json."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, nullcontext
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, StreamingResponse

from foveal.images import PictureError
from foveal.images.formats import FORMATS, READABLE
from foveal.images.needs import readable
from foveal.runtime.asked import FIXES
from foveal.runtime.engines import EngineError
from foveal.serve.archive import zipped
from foveal.serve.film import suffixes
from foveal.serve.guard import COOKIE, guard
from foveal.serve.limits import Limits, RefusedError
from foveal.serve.options import Either, Restored, Upscaled  # noqa: TC001 - FastAPI reads annotations
from foveal.serve.store import Store, worded
from foveal.serve.turns import Turns
from foveal.serve.upload import received
from foveal.serve.wish import PAGES, QUALITIES, SCALES
from foveal.serve.work import Studio, checked, preview

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from foveal.serve.job import Job, Kept
    from foveal.serve.wish import Wish

__all__ = ["create_app"]

MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "tiff": "image/tiff", "avif": "image/avif",
        "gif": "image/gif", "bmp": "image/bmp"}  # fmt: skip
_FILM_MIME = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".mkv": "video/x-matroska",
              ".webm": "video/webm", ".avi": "video/x-msvideo"}  # fmt: skip
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _FILE}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}},
    }
}
PLANS = 16  # plans of a picture that are kept, where the whole picture was looked at
_SCRIPT = "text/javascript; charset=utf-8"
_PAGE = {"page.css": "text/css; charset=utf-8", "page.js": _SCRIPT, "compare.js": _SCRIPT}


def create_app(
    *, limits: Limits | None = None, token: str = "", hosts: tuple[str, ...] = (), threads: int | None = None
) -> FastAPI:
    """The application; closing it (its lifespan) drops all jobs and deletes all files.

    Args:
        limits: limits; None for the defaults.
        token: secret that every request must show, as "Authorization: Bearer …" or as the cookie that /?token=… sets;
            "" for none.
        hosts: names by which requests may address the server, such as "localhost"; empty for any. Keeps web pages of
            others from reaching a server without a token by a name of theirs.
        threads: processor threads; None for all.

    Returns:
        The application; `app.state.store` holds the pictures and jobs.
    """
    limits = limits or Limits()
    store = Store(Studio(threads), limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001 - FastAPI's signature
        sweeping = asyncio.create_task(_sweep(store))
        yield
        sweeping.cancel()
        await run_in_threadpool(store.close)

    app = FastAPI(
        title="foveal",
        description="Upscale pictures and films, restore pictures.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        version="1",
    )
    app.state.store = store
    guard(app, token, hosts)
    _page(app, token)
    _pictures(app, store)
    _jobs(app, store)
    return app


async def _sweep(store: Store) -> None:
    while True:
        await asyncio.sleep(min(60.0, store.limits.keep / 4))
        await run_in_threadpool(store.sweep)


def _page(app: FastAPI, token: str) -> None:
    folder = files("foveal.serve")

    @app.get("/", include_in_schema=False)
    def page(request: Request) -> Response:
        if token and request.query_params.get("token"):  # the secret leaves the address line
            response: Response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return response
        return HTMLResponse(folder.joinpath("page.html").read_text(encoding="utf-8"))

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in _PAGE:
            raise RefusedError(404, "there is no such file here")
        return Response(folder.joinpath(name).read_text(encoding="utf-8"), media_type=_PAGE[name])


def _described(kept: Kept) -> dict[str, Any]:
    info = kept.info
    return {
        "id": kept.id, "name": kept.name, "bytes": kept.size, "width": info.width, "height": info.height,
        "frames": info.frames, "format": info.format, "kind": "picture" if info.format in READABLE else "film",
    }  # fmt: skip


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


async def _taken(request: Request, store: Store) -> Kept:
    path = await run_in_threadpool(store.room)
    name = await received(request, path, store.limits)
    try:
        info = await run_in_threadpool(checked, path, name or "the picture", store.limits)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    # A suffix, because readers may look at it; from the format found, not from the client's name.
    film = info.format not in READABLE
    final = path.with_suffix(f".{info.format}" if film else READABLE[info.format].suffixes[0])
    path.rename(final)
    return store.keep(final, name or f"picture{final.suffix}", info)


def _pictures(app: FastAPI, store: Store) -> None:
    """Routes of uploads."""

    @app.get("/api/v1")
    def about() -> dict[str, Any]:
        """What the server offers, and its limits."""
        limits = {name: getattr(store.limits, name) for name in Limits.__dataclass_fields__}
        return {
            "scales": SCALES,
            "qualities": QUALITIES,
            "fixes": list(FIXES),
            "pages": PAGES,
            "formats": list(FORMATS),
            "reads": readable(),
            "films": suffixes(),
            "limits": limits,
        }

    async def made(request: Request, wish: Wish) -> Response:
        kept = await _taken(request, store)
        try:
            job = store.submit(kept, wish, _client(request))
            await _finished(request, store, job)
        except BaseException:
            store.forget(kept.id)
            raise
        if job.state != "done":
            store.forget(kept.id)
            raise RefusedError(504 if "--max-seconds" in job.error else 422, job.error)
        return _result(job, then=lambda: store.forget(kept.id))

    @app.post("/api/v1/upscale", openapi_extra=_BODY)
    async def upscale(request: Request, wish: Upscaled) -> Response:
        """A picture or a short film in, the larger one out. Body: its bytes, or a form with a field "file"."""
        return await made(request, wish)

    @app.post("/api/v1/restore", openapi_extra=_BODY)
    async def restore(request: Request, wish: Restored) -> Response:
        """A damaged picture in, the repaired one out. Body: its bytes, or a form with a field "file"."""
        return await made(request, wish)

    @app.post("/api/v1/pictures", status_code=201, openapi_extra=_BODY)
    async def upload(request: Request) -> dict[str, Any]:
        """Send a picture or a film, for plans and jobs. Body: its bytes, or a form with a field "file"."""
        return _described(await _taken(request, store))

    turns = app.state.turns = Turns()

    @app.get("/api/v1/pictures/{key}/plan")
    async def plan(key: str, wish: Either, request: Request) -> dict[str, Any]:
        """Size and seconds of a result, and what will not be kept; of a repair, what was found."""
        kept = store.picture(key)
        wish.check(kept.path, kept.name, kept.info)
        if wish in kept.plans:
            return kept.plans[wish]
        async with turns.turn(_client(request), store.limits) if wish.looks else nullcontext():
            if await request.is_disconnected():
                raise RefusedError(499, "the client went away")
            try:
                found = await run_in_threadpool(store.studio.plan, kept.path, kept.info, wish)
            except (PictureError, EngineError) as error:
                raise RefusedError(422, worded(error, kept)) from None
        if wish.looks and len(kept.plans) < PLANS:
            kept.plans[wish] = found
        return found

    @app.post("/api/v1/pictures/{key}/jobs", status_code=202)
    def start(key: str, wish: Either, request: Request, response: Response) -> dict[str, Any]:
        """Put a job in the queue."""
        job = store.submit(store.picture(key), wish, _client(request))
        response.headers["Location"] = f"/api/v1/jobs/{job.id}"
        return store.state(job)

    @app.delete("/api/v1/pictures/{key}", status_code=204)
    def forget(key: str) -> None:
        """Delete a picture, its jobs and their results."""
        store.forget(key)


async def _finished(request: Request, store: Store, job: Job) -> None:
    """Wait for a job; a client that goes away frees it."""
    while not job.over:
        if await request.is_disconnected():
            store.cancel(job.id)
            raise RefusedError(499, "the client went away")
        await asyncio.sleep(0.05)


def _result(job: Job, then: Callable[[], None] | None = None) -> Response:
    from starlette.background import BackgroundTask

    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(job.download_name)}"}
    notes = " | ".join(job.result.get("notes", ()))
    if notes:
        headers["X-Foveal-Notes"] = quote(notes, safe=" |,.;:()×→")[:2000].encode("ascii", "ignore").decode()
    after = BackgroundTask(then) if then else None
    if job.pages > 1:
        return StreamingResponse(zipped([job]), media_type="application/zip", headers=headers, background=after)
    suffix = job.path.suffix.lower()
    kind = _FILM_MIME.get(suffix) or next(MIME[name] for name, form in FORMATS.items() if suffix in form.suffixes)
    return FileResponse(job.path, media_type=kind, headers=headers, background=after)


def _jobs(app: FastAPI, store: Store) -> None:
    """Routes of jobs."""

    def done(key: str) -> Job:
        job = store.job(key)
        if job.state != "done":
            raise RefusedError(
                409, f"the job is {job.state}, its result is there once it is done; {job.error or 'wait'}"
            )
        return job

    @app.get("/api/v1/jobs/{key}")
    def state(key: str) -> dict[str, Any]:
        """State and progress of a job."""
        return store.state(store.job(key))

    @app.get("/api/v1/jobs/{key}/events")
    async def events(key: str, request: Request) -> StreamingResponse:
        """Progress as server-sent events, until the job is over."""
        return StreamingResponse(_events(store, store.job(key), request), media_type="text/event-stream")

    @app.get("/api/v1/jobs/{key}/result")
    def result(key: str) -> Response:
        """The result's file, or a zip of the files of its pages."""
        return _result(done(key))

    @app.get("/api/v1/jobs/{key}/{side}.png")
    def shown(key: str, side: str) -> Response:
        """The picture, its first page, or a frame of the film, "before" and "after" as PNGs of one size."""
        job = done(key)
        if side not in ("before", "after"):
            raise RefusedError(404, f"the sides are before and after, got {side[:20]!r}")
        target = store.previews(job)[side]
        if not target.exists():
            part = job.wish.crop if side == "before" else None
            source = job.picture.path if side == "before" else job.files[0][1]
            preview(source, target, (job.result["width"], job.result["height"]), part)
        return FileResponse(target, media_type="image/png")

    @app.delete("/api/v1/jobs/{key}", status_code=204)
    def cancel(key: str) -> None:
        """Stop a job, or delete its result."""
        store.cancel(key)

    @app.get("/api/v1/zip")
    def together(job: Annotated[list[str], Query(description="Ids of jobs.")]) -> StreamingResponse:
        """Several results in one zip file."""
        jobs = [done(key) for key in job]
        headers = {"Content-Disposition": "attachment; filename=foveal.zip"}
        return StreamingResponse(zipped(jobs), media_type="application/zip", headers=headers)


async def _events(store: Store, job: Job, request: Request) -> AsyncIterator[str]:
    last, quiet = "", 0
    while True:
        state = store.state(job)
        said = json.dumps(state)
        if said != last:
            last, quiet = said, 0
            yield f"event: {'end' if job.over else 'progress'}\ndata: {said}\n\n"
        if job.over or await request.is_disconnected():
            return
        quiet += 1
        if quiet % 50 == 0:
            yield ": still here\n\n"
        await asyncio.sleep(0.2)
