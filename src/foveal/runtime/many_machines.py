"""One batch on many machines: what a worker does, and who does which picture. Any framework can carry the messages.

A file system that every machine sees under the same paths is assumed, and looked for: a worker says which folder it
does not see, and a result that the starting machine does not see counts as failed. A worker that dies loses nothing:
results get their name when they are complete, its picture is given to another worker, and what it left of the file is
removed. A picture whose workers died twice has failed, and the others go on.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from foveal.images.temporary import remove_unfinished
from foveal.runtime.crew import SHARED, Crew, CrewError, Done, Event, Order, Outcome
from foveal.runtime.errors import wording

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from foveal.runtime.enlarge import Progress
    from foveal.runtime.upscaler import Upscaler

__all__ = ["carry_out", "share", "spread", "threads_of_workers"]

TRIES = 2  # deaths of workers over one picture, and of one worker in a row
_THREADS = 4  # beyond these, reading and writing keep the others waiting
_BEAT = 0.9  # seconds between two questions how far the workers are
_SEEN = 5.0  # seconds that a network drive may take to show a file


def threads_of_workers(wanted: int | None, processors: Sequence[int]) -> int:
    """Processor threads of each worker; as many workers as fit are started on each machine.

    Args:
        wanted: what the user asked for.
        processors: processors of each machine.

    Returns:
        What was asked for, or 4, or fewer if a machine has fewer.

    Raises:
        CrewError: no machine has so many.
    """
    having = [count for count in processors if count > 0]
    if not having or (wanted or 1) > max(having):
        most = max(having, default=0)
        raise CrewError(
            f"no machine has {wanted or 1} processors for a worker, the largest has {most}; "
            + ("give a smaller --threads" if most else "start Ray with --num-cpus")
        )
    return wanted or min(_THREADS, *having)


def share(seconds: Sequence[float], workers: int) -> tuple[list[list[int]], float]:
    """Who would do which picture if all took as long as estimated: the longest first, each to whoever is free first.

    Args:
        seconds: estimate of each picture.
        workers: number of workers.

    Returns:
        Indices of pictures by worker, and the seconds until the last is done.
    """
    free = [(0.0, worker) for worker in range(workers)]
    shares: list[list[int]] = [[] for _ in range(workers)]
    for index in _longest_first(seconds):
        at, worker = heapq.heappop(free)
        shares[worker].append(index)
        heapq.heappush(free, (at + seconds[index], worker))
    return shares, max(at for at, _ in free)


def _longest_first(seconds: Sequence[float]) -> list[int]:
    return sorted(range(len(seconds)), key=lambda index: -seconds[index])


def carry_out(upscaler: Upscaler, order: Order, worker: str, progress: Progress | None = None) -> Outcome:
    """What a worker does with a picture.

    Args:
        upscaler: from `Setup.build`.
        order: the picture.
        worker: name of the worker.
        progress: function called after every batch of tiles.

    Returns:
        What became of it; nothing is raised.
    """
    try:
        seen = order.source.stat().st_size
    except FileNotFoundError:
        return Outcome(error=f"{order.source}: worker {worker} does not see it; {SHARED}", known=False)
    except OSError as error:
        return Outcome(error=f"{order.source}: worker {worker} cannot look at it ({error.strerror})", known=False)
    if seen != order.size:
        text = f"{order.source}: worker {worker} sees another file there ({seen} bytes, not {order.size}); {SHARED}"
        return Outcome(error=text, known=False)
    try:
        result = upscaler.upscale_file(
            order.source,
            order.target,
            page=order.page,
            overwrite=order.overwrite,
            limit_pixels=order.limit_pixels,
            background=order.background,
            progress=progress,
        )
        return Outcome(result, size=order.target.stat().st_size)
    except Exception as error:  # one bad file, however bad, does not stop the others
        return Outcome(error=wording(error))


def spread(
    orders: Sequence[Order],
    crew: Crew,
    workers: Sequence[str],
    *,
    begin: Callable[[int, str], None] = lambda _index, _worker: None,
    tell: Callable[[str], None] = lambda _: None,
    unfit: Callable[[str, str], None] = lambda _worker, _why: None,
    beat: Callable[[float], None] = lambda _: None,
) -> Generator[Done, None, None]:
    """Give pictures to workers until all are finished; the longest first, so that the end is not one long wait.

    Close the iterator to stop early: the workers are ended, and what they had not finished is removed.

    Args:
        orders: pictures to do.
        crew: workers that were started.
        workers: their names.
        begin: called with a picture's index and a worker before it is given to it.
        tell: called with sentences about workers that died.
        unfit: called with a worker that cannot do this batch, and why.
        beat: called about once a second with the megapixels done of the pictures in hand.

    Yields:
        Pictures as they are finished, each once.
    """
    waiting = deque(_longest_first([order.seconds for order in orders]))
    state, asked = _State(set(workers)), time.monotonic()
    try:
        while waiting or state.hand:
            while waiting and state.idle:
                worker, index = state.idle.popleft(), waiting.popleft()
                begin(index, worker)
                state.hand[worker] = index
                crew.give(worker, orders[index])
            if waiting and not state.here:
                yield from (Done(i, Outcome(error=state.nobody(orders[i]), known=False), "") for i in waiting)
                waiting.clear()
                continue
            news = crew.wait(1.0)
            if time.monotonic() - asked > _BEAT:
                asked = time.monotonic()
                beat(crew.so_far())
            for event in news:
                if event.kind == "made" and event.outcome is not None:
                    index = state.made(event.worker)
                    yield Done(index, _checked(orders[index], event), event.worker)
                elif event.kind == "ready":
                    state.idle.append(event.worker)
                elif event.kind == "unfit":
                    state.here.discard(event.worker)
                    state.why = f"worker {event.worker}: {event.why}"
                    unfit(event.worker, event.why)
                elif event.kind == "lost":
                    lost = state.lost(event, crew, tell, orders)
                    if lost is not None:
                        remove_unfinished([orders[lost].target])
                        if state.deaths[lost] < TRIES:
                            waiting.appendleft(lost)
                        else:
                            yield Done(lost, Outcome(error=state.blame(lost, orders[lost])), event.worker)
    finally:
        crew.stop()
        remove_unfinished([orders[index].target for index in state.hand.values()])


class _State:
    """Who has what, and who died over what."""

    def __init__(self, workers: set[str]) -> None:
        self.here = workers
        self.idle: deque[str] = deque()
        self.hand: dict[str, int] = {}
        self.deaths: Counter[int] = Counter()
        self.falls: Counter[str] = Counter()
        self.stories: dict[int, list[str]] = {}
        self.why = ""

    def made(self, worker: str) -> int:
        self.idle.append(worker)
        self.falls[worker] = 0
        return self.hand.pop(worker)

    def lost(self, event: Event, crew: Crew, tell: Callable[[str], None], orders: Sequence[Order]) -> int | None:
        """The picture that a dead worker had; the worker is started again unless it keeps dying."""
        worker = event.worker
        index = self.hand.pop(worker, None)
        if worker in self.idle:
            self.idle.remove(worker)
        self.falls[worker] += 1
        self.why = f"worker {worker}: {event.why}"
        if index is None:
            text = f"worker {worker} ended: {event.why}"
        else:
            self.deaths[index] += 1
            self.stories.setdefault(index, []).append(self.why)
            again = "; it is tried again" if self.deaths[index] < TRIES else ""
            text = f"worker {worker} died over {orders[index].source} ({event.why}){again}"
            # Pictures that kill are blamed, not the worker; only its starts are counted.
            self.falls[worker] = 0
        tell(text)
        if self.falls[worker] > TRIES:
            self.here.discard(worker)
            tell(f"worker {worker} is not started again: it ended {self.falls[worker]} times in a row")
        else:
            crew.restart(worker)
        return index

    def blame(self, index: int, order: Order) -> str:
        return (
            f"{order.source}: it was given up after its worker died {self.deaths[index]} times "
            f"({', '.join(self.stories[index])}); if memory ran out, a smaller --tile or fewer workers (a larger "
            "--threads) may help"
        )

    def nobody(self, order: Order) -> str:
        return f"{order.source}: no worker is left ({self.why})"


def _checked(order: Order, event: Event) -> Outcome:
    """An outcome, after a look at whether its result is to be seen from here."""
    assert event.outcome is not None
    outcome = event.outcome
    if outcome.result is None:
        return outcome
    end = time.monotonic() + _SEEN
    while True:
        try:
            if order.target.stat().st_size == outcome.size:
                return outcome
        except OSError:
            pass
        if time.monotonic() > end:
            text = f"{order.target}: worker {event.worker} wrote it, and it is not seen from here; {SHARED}"
            return replace(outcome, result=None, error=text, known=False)
        time.sleep(0.2)
