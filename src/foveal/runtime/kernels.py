"""`foveal-kernels`, which holds the compiled kernels: whether it is there, and of the version that is called."""

from __future__ import annotations

__all__ = ["why_not"]

WANTED = "0.3"  # its version without the last number, which alone changes where the functions stay as they are


def why_not() -> str | None:
    """Why the compiled kernels cannot be used here.

    Returns:
        None when they can, else the reason and what to do.
    """
    try:
        import foveal_kernels
    except ImportError:
        return "foveal-kernels is not installed; run `pip install ./kernels` in foveal's folder"
    found = foveal_kernels.__version__
    if found.rpartition(".")[0] != WANTED:
        return (
            f"foveal-kernels {found} is installed, this foveal calls {WANTED}; run `pip install --force-reinstall "
            "--no-deps ./kernels` in foveal's folder"
        )
    return foveal_kernels.why_not()
