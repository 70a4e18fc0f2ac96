"""The one door to Ray, which carries the messages of `many_machines.py`: a worker is an actor on one of its machines.

Ray sends usage statistics unless it is told not to before it is imported, and takes over SIGTERM; foveal promises that
nothing leaves the machines, so the first is switched off here, and signals are put back. A user who sets
`RAY_USAGE_STATS_ENABLED` is obeyed. Without an address a cluster of this machine alone is started, without dashboard,
with its files in a temporary folder; both end with the batch.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

from foveal.runtime.crew import CrewError, Event, Order, Outcome, Setup, Worker
from foveal.runtime.machine import cores
from foveal.runtime.many_machines import carry_out, threads_of_workers
from foveal.runtime.ray_home import home, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType, TracebackType

    from foveal.runtime.upscaler import Upscaler

__all__ = ["LOCAL", "RayCrew", "checked_address", "load_ray"]

LOCAL = "local"
_ADDRESS = re.compile(r"auto|local|(\[[0-9a-fA-F:]+\]|[^/\\\s:]+):\d{1,5}")
_STORE = 80 << 20  # bytes of Ray's store of objects, the least it takes; pictures go through the file system
_REACHED = 5.0  # seconds to wait for the head of a cluster


def checked_address(address: str) -> str:
    """An address as it is used.

    Args:
        address: "local" for this machine alone, "auto" for the cluster that runs here, or HOST:PORT of the head of one.

    Returns:
        The same.

    Raises:
        ValueError: anything else.
    """
    if _ADDRESS.fullmatch(address):
        return address
    hint = "; start the batch on a machine of the cluster, with the port of ray start" if "://" in address else ""
    raise ValueError(f"--ray must be HOST:PORT of a cluster's head, auto or local, got {address!r}{hint}")


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back what a library makes of SIGTERM; in another thread than the main one it can make nothing of it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


class OneThread:
    """A stream that passes on what one thread writes: Ray prints to standard output from a thread of its own.

    Args:
        stream: stream that is written to.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write, or drop what another thread writes.

        Args:
            text: text to write.

        Returns:
            Number of characters.
        """
        return self._stream.write(text) if threading.get_ident() == self._thread else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def load_ray() -> ModuleType:
    """Import Ray with its usage statistics off.

    Returns:
        The module.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _signals_kept():
        import ray
    return ray


class Hand:
    """A worker's process.

    Args:
        name: name of the worker.
        threads: its processor threads.
        setup: what it is made of.
    """

    def __init__(self, name: str, threads: int, setup: Setup) -> None:
        # libvips reads it when it is loaded; Ray sets OMP_NUM_THREADS to the processors of an actor.
        os.environ["VIPS_CONCURRENCY"] = str(threads)
        self._name, self._setup = name, setup
        self._upscaler: Upscaler | None = None
        self._done = 0.0

    def open(self) -> str:
        """Get ready.

        Returns:
            Why this worker cannot do the batch; "" if it can.
        """
        try:
            self._upscaler = self._setup.build()
        except (CrewError, RuntimeError, ValueError, OSError, ImportError) as error:
            return str(error) or type(error).__name__
        return ""

    def do(self, order: Order) -> Outcome:
        """Enlarge a picture.

        Args:
            order: the picture.

        Returns:
            What became of it.
        """
        assert self._upscaler is not None

        def progress(done: float, _total: float, _region: tuple[int, int, int, int]) -> None:
            self._done = done

        try:
            return carry_out(self._upscaler, order, self._name, progress)
        finally:
            self._done = 0.0

    def so_far(self) -> float:
        """Progress of the picture in hand.

        Returns:
            Megapixels done of it.
        """
        return self._done


class RayCrew:
    """Workers on the machines of a Ray cluster: as many on each as its processors hold. A context manager.

    Args:
        address: "local", "auto" or HOST:PORT, see `checked_address`.
        threads: processor threads of each worker; by default 4, or fewer if a machine has fewer.

    Attributes:
        threads: processor threads of each worker.
        workers: the workers, by name; started by `hire`.
        notes: sentences the user should read about machines without a worker.
    """

    def __init__(self, address: str = LOCAL, threads: int | None = None) -> None:
        self.address, self._wanted = checked_address(address), threads
        self.threads = threads or 1
        self.workers: dict[str, Worker] = {}
        self.notes: tuple[str, ...] = ()
        self._ray: Any = None
        self._folder: str | None = None
        self._setup: Setup | None = None
        self._hand_class: Any = None
        self._actors: dict[str, Any] = {}
        self._running: dict[Any, tuple[str, str]] = {}  # what is waited for: its worker, and the method's name
        self._speech: Any = None

    def __enter__(self) -> RayCrew:
        self._speech = redirect_stdout(OneThread(sys.stdout))  # type: ignore[type-var]
        self._speech.__enter__()
        try:
            self._connect()
            self._look_around()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._leave()

    def _connect(self) -> None:
        words: dict[str, Any] = {"address": self.address}
        if self.address == LOCAL:
            self._folder = tempfile.mkdtemp(prefix="foveal-ray-")
            os.environ.update({key: os.environ.get(key, value) for key, value in settings().items()})
            words |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": _STORE}
            if len(self._folder) < 40:  # the system limits the names of sockets in it to 107 bytes
                words["_temp_dir"] = self._folder
        elif self.address != "auto":
            _reach(self.address)
        self._ray = load_ray()
        try:
            with _signals_kept(), home(self._folder):
                self._ray.init(log_to_driver=False, configure_logging=False, **words)
        except (RuntimeError, ValueError, OSError, AssertionError, self._ray.exceptions.RayError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            hint = "" if self.address == LOCAL else "; start it with ray start --head, and this on one of its machines"
            raise CrewError(f"no Ray cluster at {self.address} ({first}){hint}") from error

    def _look_around(self) -> None:
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        having = [int(node["Resources"].get("CPU", 0)) for node in nodes]
        self.threads = threads_of_workers(self._wanted, having)
        numbers: Counter[str] = Counter()
        notes = []
        for node, count in sorted(zip(nodes, having, strict=True), key=lambda pair: pair[0]["NodeManagerHostname"]):
            host = node["NodeManagerHostname"] or node["NodeManagerAddress"]
            if 0 < count < self.threads:
                notes.append(f"{host} has {count} processors, too few for a worker of {self.threads} threads")
            for _ in range(count // self.threads):
                numbers[host] += 1
                worker = Worker(f"{host}/{numbers[host]}", node["NodeID"], self.threads)
                self.workers[worker.name] = worker
        self.notes = tuple(notes)

    def hire(self, setup: Setup, most: int | None = None) -> list[str]:
        """Start the workers; `wait` says when each is ready.

        Args:
            setup: what each is made of.
            most: largest number of workers.

        Returns:
            Names of those that were started, spread over the machines.
        """
        self._setup = setup
        self._hand_class = self._ray.remote(num_cpus=self.threads, max_concurrency=2, max_restarts=0)(Hand)
        # The first of each machine before the second of any.
        order = sorted(self.workers, key=lambda name: int(name.rpartition("/")[2]))
        names = order[: len(order) if most is None else max(1, most)]
        for name in names:
            self.restart(name)
        return names

    def restart(self, worker: str) -> None:
        """Start a worker, or start it again.

        Args:
            worker: its name.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._dismiss(worker)
        place = NodeAffinitySchedulingStrategy(self.workers[worker].node, soft=False)
        actor = self._hand_class.options(scheduling_strategy=place).remote(worker, self.threads, self._setup)
        self._actors[worker] = actor
        self._running[actor.open.remote()] = (worker, "open")

    def give(self, worker: str, order: Order) -> None:
        """Give a picture to a worker that is ready.

        Args:
            worker: its name.
            order: the picture.
        """
        self._running[self._actors[worker].do.remote(order)] = (worker, "do")

    def wait(self, seconds: float) -> list[Event]:
        """Wait for news.

        Args:
            seconds: longest time to wait.

        Returns:
            The news; nothing if there was none.
        """
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), timeout=seconds)
        if ready:  # and who else is
            ready, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [self._event(ref) for ref in ready]

    def _event(self, ref: Any) -> Event:
        worker, method = self._running.pop(ref)
        try:
            got = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            text = str(error.cause) if getattr(error, "cause", None) is not None else str(error)
            return Event(worker, "made", Outcome(error=text)) if method == "do" else Event(worker, "unfit", why=text)
        except self._ray.exceptions.RayError as error:
            return Event(worker, "lost", why=_cause(str(error)))
        if method == "do":
            return Event(worker, "made", got)
        return Event(worker, "unfit", why=got) if got else Event(worker, "ready")

    def so_far(self) -> float:
        """Progress of the pictures in hand.

        Returns:
            Megapixels done of them, as far as their workers answer at once.
        """
        busy = [self._actors[worker].so_far.remote() for worker, method in self._running.values() if method == "do"]
        if not busy:
            return 0.0
        ready, _ = self._ray.wait(busy, num_returns=len(busy), timeout=0.5)
        done = 0.0
        for ref in ready:
            with suppress(self._ray.exceptions.RayError):
                done += self._ray.get(ref)
        return done

    def stop(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in list(self._actors):
            self._dismiss(worker)
        self._running.clear()

    def _dismiss(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        if actor is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor, no_restart=True)

    def _leave(self) -> None:
        if self._ray is not None:
            # What Ray has kept back to print once is printed then.
            with _signals_kept(), redirect_stdout(io.StringIO()):
                self._ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._speech is not None:
            self._speech.__exit__(None, None, None)
            self._speech = None


def _reach(address: str) -> None:
    """Stop at once where nobody answers; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED).close()
    except (OSError, OverflowError) as error:
        raise CrewError(
            f"no Ray cluster at {address} ({error}); ray start --head starts one and names its address"
        ) from error


def _cause(text: str) -> str:
    """Why a worker ended, in a few words; Ray's own account is a page."""
    if "running low on memory" in text or "OutOfMemory" in text:
        return "its machine ran out of memory"
    if "doesn't exist any more" in text or "node has died" in text.lower() or "node was terminated" in text.lower():
        return "its machine is gone"
    return "its process was killed or crashed"
