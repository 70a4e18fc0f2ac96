"""The base of every error that foveal raises on purpose, for callers who want to catch all of them."""

__all__ = ["FovealError"]


class FovealError(Exception):
    """Something foveal was asked to do cannot be done; the text says what was wanted, what it got and what to do.

    Subclasses also derive from the built-in error that they are, so `except ValueError` still catches them.
    """
