"""What is said between a batch and its workers on many machines, whichever framework carries the messages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003  unpickled in another process
from typing import TYPE_CHECKING, Any, Literal, Protocol

from foveal.errors import FovealError
from foveal.runtime.resume import settings_of
from foveal.runtime.upscaler import Upscaler

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foveal.runtime.result import Result

__all__ = ["SHARED", "Crew", "CrewError", "Done", "Event", "Order", "Outcome", "Setup", "Worker"]

SHARED = "every machine must see the same folders under the same paths"


class CrewError(FovealError, RuntimeError):
    """Machines that cannot be had, or a worker that cannot do this batch."""


@dataclass(frozen=True)
class Worker:
    """A process that enlarges one picture at a time.

    Args:
        name: name of its machine and a number.
        node: identity of its machine in the framework.
        threads: processor threads.
    """

    name: str
    node: str
    threads: int


@dataclass(frozen=True)
class Setup:
    """What every worker of a batch is made of.

    Args:
        options: arguments of `Upscaler`.
        settled: engines and tiles of the machine that starts the batch, from `Upscaler.settled`.
        settings: what the results depend on there, from `settings_of`.
        version: version of foveal there.
        folders: folders of sources and results.
    """

    options: Mapping[str, Any]
    settled: tuple[Mapping[Any, tuple[str, int]], ...]
    settings: str
    version: str
    folders: tuple[Path, ...] = ()

    def build(self) -> Upscaler:
        """Make the worker's Upscaler, after a look at whether this machine can do the batch.

        Returns:
            The Upscaler, which makes the pixels that the starting machine would make.

        Raises:
            CrewError: a folder that is not seen, another version of foveal, or another bundle.
            EngineError: an engine that is missing.
            ValueError: no such bundle.
        """
        import foveal

        for folder in self.folders:
            if not folder.is_dir():
                raise CrewError(f"it does not see {folder}; {SHARED}")
        if foveal.__version__ != self.version:
            raise CrewError(
                f"it has foveal {foveal.__version__}, and the batch was started by {self.version}; install the same"
            )
        upscaler = Upscaler(**self.options)
        if settings_of(upscaler) != self.settings:
            raise CrewError(f"its bundle {upscaler.name} is another than that of the batch; install the same foveal")
        upscaler.adopt(self.settled)
        return upscaler


@dataclass(frozen=True)
class Order:
    """One picture as a worker is told.

    Args:
        source: file to read, as an absolute path.
        target: file to write, as an absolute path.
        size: bytes of the source.
        seconds: estimated seconds.
        megapixels: megapixels of the result.
        overwrite: whether to replace a target that exists.
        limit_pixels: largest number of pixels of a source.
        background: colour behind transparent pixels, for formats without transparency.
        page: page of a TIFF document, from 0, that becomes a picture of its own; None for all of them in one file.
    """

    source: Path
    target: Path
    size: int
    seconds: float = 0.0
    megapixels: float = 0.0
    overwrite: bool = False
    limit_pixels: int | None = None
    background: tuple[int, int, int] | None = None
    page: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a picture.

    Args:
        result: what was done; None if it failed.
        error: why it failed.
        size: bytes of the result.
        known: whether the picture itself was at fault, and the worker saw its file.
    """

    result: Result | None = None
    error: str = ""
    size: int = 0
    known: bool = True


@dataclass(frozen=True)
class Event:
    """News of a worker.

    Args:
        worker: name of the worker.
        kind: "ready" to be given a picture; "made", and so ready again; "lost", because its process ended; "unfit" to
            do this batch at all.
        outcome: what became of its picture, of "made".
        why: what is known about it, of "lost" and "unfit".
    """

    worker: str
    kind: Literal["ready", "made", "lost", "unfit"]
    outcome: Outcome | None = None
    why: str = ""


@dataclass(frozen=True)
class Done:
    """A picture that is finished.

    Args:
        index: its place in the list of orders.
        outcome: what became of it.
        worker: name of the worker that had it last; "" if none was left.
    """

    index: int
    outcome: Outcome
    worker: str


class Crew(Protocol):
    """Workers of a batch, whatever carries the messages."""

    def give(self, worker: str, order: Order) -> None:
        """Give a picture to a worker that is ready.

        Args:
            worker: its name.
            order: the picture.
        """

    def wait(self, seconds: float) -> list[Event]:
        """Wait for news.

        Args:
            seconds: longest time to wait.

        Returns:
            The news; nothing if there was none.
        """

    def restart(self, worker: str) -> None:
        """Start a lost worker again; it will say that it is ready, or lost again.

        Args:
            worker: its name.
        """

    def so_far(self) -> float:
        """Progress of the pictures in hand.

        Returns:
            Megapixels done of them.
        """

    def stop(self) -> None:
        """End all workers, whatever they are doing."""
