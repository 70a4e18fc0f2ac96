"""Signals that end the process, handled like Ctrl-C: unfinished work is cleaned up first."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Ended", "exit_code", "like_ctrl_c"]


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C that ends the process.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(error: KeyboardInterrupt) -> int:
    """Exit code of a process ended by a signal.

    Args:
        error: exception raised by the signal.

    Returns:
        128 plus the signal's number.
    """
    return 128 + (error.number if isinstance(error, Ended) else int(signal.SIGINT))


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Raise `Ended` at SIGTERM (docker stop, timeout) and SIGHUP (a closed terminal), unless they are ignored (nohup).

    Yields:
        Nothing.
    """

    def end(number: int, _: Any) -> None:
        # A second signal is ignored, so that the cleanup can finish.
        signal.signal(number, signal.SIG_IGN)
        raise Ended(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
