"""The base class of every error that foveal raises on purpose."""

__all__ = ["FovealError"]


class FovealError(Exception):
    """A request that foveal cannot fulfil; the text says what was wanted, what was given and what to do.

    Subclasses also derive from the matching built-in error, so `except ValueError` still catches them.
    """
