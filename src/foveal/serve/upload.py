"""Request bodies as files: streamed to the disk, with limits on bytes and time, raw or as a form."""

from __future__ import annotations

import asyncio
from email.message import Message
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.requests import ClientDisconnect

from foveal.serve.limits import RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any, BinaryIO

    from fastapi import Request

    from foveal.serve.limits import Limits

__all__ = ["received"]

FIRST = "file"  # name of the form's field


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413, f"the upload is larger than {limits.megabytes:g} MB (--max-megabytes); send a smaller file"
    )


async def _chunks(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    most, seen = int(limits.megabytes * 1e6), 0
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise _too_large(limits)
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > most:
            raise _too_large(limits)
        yield chunk


async def received(request: Request, path: Path, limits: Limits) -> str:
    """Write the body of a request to a file.

    Args:
        request: request with a picture as its body, or with a form whose field "file" holds it.
        path: file to write; deleted again if the body is refused or the client goes away.
        limits: limits.

    Returns:
        The file's name as the client says it, "" if it says none.

    Raises:
        RefusedError: too many bytes (413), too slow (408), an empty body or a form without a file (422).
    """
    try:
        async with asyncio.timeout(limits.upload_seconds):
            with path.open("wb") as file:
                if request.headers.get("content-type", "").startswith("multipart/form-data"):
                    name = await _form(request, file, limits)
                else:
                    name = unquote(request.query_params.get("name", ""))
                    async for chunk in _chunks(request, limits):
                        file.write(chunk)
        if not path.stat().st_size:
            raise RefusedError(
                422, "the body is empty; send the bytes of a picture, such as curl --data-binary @photo.jpg"
            )
    except ClientDisconnect:
        path.unlink(missing_ok=True)
        raise RefusedError(499, "the client went away") from None
    except TimeoutError:
        path.unlink(missing_ok=True)
        raise RefusedError(
            408, f"the upload took longer than {limits.upload_seconds:g} seconds (--max-upload-seconds); send it again"
        ) from None
    except BaseException:  # a client that goes away must leave nothing behind either
        path.unlink(missing_ok=True)
        raise
    return name


class _OneFile:
    """Callbacks of a form parser that write the first field called "file"."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.name, self.found, self._headers, self._field, self._value = file, "", False, Message(), b"", b""
        self._writing = False

    def on_part_begin(self) -> None:
        self._headers = Message()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._field.decode("latin-1")] = self._value.decode("utf-8", "replace")
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        self._writing = not self.found and self._headers.get_param("name", header="content-disposition") == FIRST
        if self._writing:
            self.found, self.name = True, self._headers.get_filename("")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._writing:
            self.file.write(data[start:end])

    def on_part_end(self) -> None:
        self._writing = False


async def _form(request: Request, file: BinaryIO, limits: Limits) -> str:
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(request.headers["content-type"])
    one = _OneFile(file)
    names = ("on_part_begin", "on_header_field", "on_header_value", "on_header_end", "on_headers_finished",
             "on_part_data", "on_part_end")  # fmt: skip
    callbacks: Any = {name: getattr(one, name) for name in names}
    try:
        parser = MultipartParser(options[b"boundary"], callbacks)
        async for chunk in _chunks(request, limits):
            parser.write(chunk)
        parser.finalize()
    except (KeyError, MultipartParseError) as error:
        raise RefusedError(422, f"the form cannot be read ({error}); send it as curl -F file=@photo.jpg does") from None
    if not one.found:
        raise RefusedError(422, 'the form has no field "file"; send it as curl -F file=@photo.jpg does')
    return one.name
