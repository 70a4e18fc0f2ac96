"""What engines raise, in one vocabulary whatever library failed."""

from __future__ import annotations

from foveal.errors import FovealError

__all__ = ["EngineError", "EngineMemoryError", "EngineUnsupportedError", "failure", "wording"]


class EngineError(FovealError, RuntimeError):
    """An engine that cannot be had, or that failed."""


class EngineMemoryError(EngineError, MemoryError):
    """An engine that ran out of memory; a smaller tile may still run."""


class EngineUnsupportedError(EngineError):
    """A network that this engine does not run, while another may."""


def failure(engine: str, error: BaseException) -> EngineError:
    """The error of a library in our words; out of memory has a class of its own, because a smaller tile helps.

    Args:
        engine: name of the engine.
        error: error that the library raised.

    Returns:
        The error to raise.
    """
    text = str(error)
    lower = text.lower()
    starved = isinstance(error, MemoryError) or any(
        sign in lower for sign in ("bad_alloc", "bad alloc", "out of memory", "failed to allocate", "can't allocate")
    )
    if starved:
        return EngineMemoryError(f"{engine} ran out of memory; a smaller tile (--tile) needs less")
    first_line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return EngineError(f"{engine} failed: {first_line[:300]}")


def wording(error: Exception) -> str:
    """What the user reads about a picture that failed.

    Args:
        error: why it failed.

    Returns:
        The error's text, with its type in front where nobody wrote the text for users.
    """
    message = str(error) or type(error).__name__
    if isinstance(error, FovealError | OSError | MemoryError):
        return message
    return f"{type(error).__name__}: {message}"
