"""Several results as one zip file, without a copy of it on the disk or in memory."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foveal.serve.job import Job

__all__ = ["zipped"]


class _Sink:
    """Unseekable file that hands on what is written."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        data, self.parts = b"".join(self.parts), []
        return data


def zipped(jobs: list[Job]) -> Iterator[bytes]:
    """Results in one zip file, made while it is sent.

    Args:
        jobs: jobs that are done.

    Yields:
        The file, in pieces.
    """
    sink, used = _Sink(), set()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for job in jobs:
            for theirs, path in job.files:
                name, number = theirs, 1
                while name in used:
                    number += 1
                    name = f"{number}_{theirs}"
                used.add(name)
                with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as into:
                    while chunk := source.read(1 << 20):
                        into.write(chunk)
                        yield sink.taken()
    yield sink.taken()
