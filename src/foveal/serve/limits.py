"""Limits that a client of the server cannot exceed, and the error that says which one was reached."""

from __future__ import annotations

from dataclasses import dataclass, fields

from foveal.errors import FovealError

__all__ = ["Limits", "RefusedError", "StoppedError"]


class RefusedError(FovealError):
    """A request that is refused: HTTP status, what was wanted, what was got, what to do.

    Args:
        status: HTTP status.
        text: sentence for the client.
        retry_after: seconds after which to try again, for 429 and 503.
    """

    def __init__(self, status: int, text: str, *, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after


class StoppedError(Exception):
    """Raised inside a job that was cancelled or took too long; the text says which."""


@dataclass(frozen=True)
class Limits:
    """Limits of the server; each is an option of `foveal serve` and is named in the error of whoever reaches it.

    Args:
        megabytes: largest upload, in MB (10^6 bytes).
        megapixels: largest picture, all frames together, in megapixels; also the largest frame of a film.
        film_megapixels: largest film, all frames together, in megapixels.
        waiting: largest number of jobs that wait.
        per_client: largest number of jobs of one address that wait or run.
        pictures: largest number of pictures kept at a time.
        pages: largest number of pages of a TIFF document.
        seconds: longest work on one job.
        upload_seconds: longest upload.
        keep: seconds after which a picture and its results are deleted, counted from their last use.

    Raises:
        ValueError: a limit that is not above 0.
    """

    megabytes: float = 100
    megapixels: float = 50
    film_megapixels: float = 2000
    waiting: int = 32
    per_client: int = 8
    pictures: int = 500
    pages: int = 100
    seconds: float = 900
    upload_seconds: float = 120
    keep: float = 3600

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be above 0, got {value}")
