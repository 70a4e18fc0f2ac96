"""The base of foveal's own exceptions."""

__all__ = ["FovealError"]


class FovealError(Exception):
    """What every exception of foveal's own is, beside the built-in it refines."""
