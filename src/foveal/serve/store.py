"""Pictures and jobs of the server: files in one temporary folder, one worker, nothing kept longer than told.

Ids are random (128 bits) and are the only way to a picture or a job. Names of files on the disk are made here; nothing
that a client sends becomes part of a path.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.serve.film import forget_film
from foveal.serve.job import Job, Kept
from foveal.serve.limits import Limits, RefusedError, StoppedError

if TYPE_CHECKING:
    from foveal import images
    from foveal.serve.wish import Wish
    from foveal.serve.work import Studio

__all__ = ["Store", "worded"]


class Store:
    """Pictures, jobs, and the thread that works on one job at a time.

    Args:
        studio: what does the work.
        limits: limits.
    """

    def __init__(self, studio: Studio, limits: Limits) -> None:
        self.studio, self.limits = studio, limits
        self.folder = Path(tempfile.mkdtemp(prefix="foveal-serve-"))
        self.changed = threading.Condition()
        self._pictures: dict[str, Kept] = {}
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="foveal-serve", daemon=True)
        self._worker.start()

    # Pictures

    def room(self) -> Path:
        """A new path for an upload.

        Returns:
            Path of a file that does not exist.

        Raises:
            RefusedError: too many pictures are kept (503).
        """
        self.sweep()
        with self.changed:
            if len(self._pictures) >= self.limits.pictures and not self._forget_oldest():
                raise RefusedError(
                    503,
                    f"{self.limits.pictures} pictures are being worked on (--max-pictures); try again later",
                    retry_after=30,
                )
        return self.folder / secrets.token_hex(16)

    def keep(self, path: Path, name: str, info: images.Info) -> Kept:
        """Take in an upload.

        Args:
            path: the file, in `room`.
            name: the client's name of it.
            info: its header.

        Returns:
            The picture.
        """
        kept = Kept(secrets.token_urlsafe(16), name[:200], path, info, path.stat().st_size, time.monotonic())
        with self.changed:
            self._pictures[kept.id] = kept
        return kept

    def picture(self, key: str) -> Kept:
        """A picture by its id.

        Args:
            key: id.

        Returns:
            The picture.

        Raises:
            RefusedError: there is none (404).
        """
        with self.changed:
            if key not in self._pictures:
                raise RefusedError(404, "there is no such picture here; it may have been deleted, send it again")
            self._pictures[key].used = time.monotonic()
            return self._pictures[key]

    def forget(self, key: str) -> None:
        """Delete a picture and all that was made of it; its jobs stop.

        Args:
            key: id of the picture.
        """
        with self.changed:
            kept = self._pictures.pop(key, None)
            for job in [job for job in self._jobs.values() if kept is not None and job.picture is kept]:
                self._stop(job, "the picture was deleted")
                if job.state != "running":  # else the worker deletes its files
                    self._delete(job)
            if kept is not None and not any(job.picture is kept for job in self._jobs.values()):
                kept.path.unlink(missing_ok=True)
            self.changed.notify_all()

    def sweep(self) -> None:
        """Delete what was not used for longer than it is kept."""
        last = time.monotonic() - self.limits.keep
        with self.changed:
            old = [key for key, kept in self._pictures.items() if kept.used < last and not self._busy(kept)]
        for key in old:
            self.forget(key)

    def _busy(self, kept: Kept) -> bool:
        return any(job.picture is kept and not job.over for job in self._jobs.values())

    def _forget_oldest(self) -> bool:
        idle = [kept for kept in self._pictures.values() if not self._busy(kept)]
        if idle:
            self.forget(min(idle, key=lambda kept: kept.used).id)
        return bool(idle)

    # Jobs

    def submit(self, kept: Kept, wish: Wish, client: str) -> Job:
        """Put a job in the queue.

        Args:
            kept: the picture.
            wish: what to do.
            client: address of the client.

        Returns:
            The job.

        Raises:
            RefusedError: too many jobs of this client (429) or of all (503), or what cannot be done with it (422).
        """
        limits = self.limits
        wish.check(kept.path, kept.name, kept.info)
        with self.changed:
            if self._closed:
                raise RefusedError(503, "the server is shutting down; try again later", retry_after=30)
            if sum(job.client == client and not job.over for job in self._jobs.values()) >= limits.per_client:
                raise RefusedError(
                    429,
                    f"{limits.per_client} of your pictures wait already (--max-per-client); "
                    "wait for one of them, or cancel it",
                    retry_after=5,
                )
            if len(self._queue) >= limits.waiting:
                raise RefusedError(
                    503, f"{limits.waiting} pictures wait already (--max-waiting); try again later", retry_after=15
                )
            key = secrets.token_urlsafe(16)
            path = self.folder / f"{secrets.token_hex(16)}{wish.ending(kept.path, kept.info)}"
            job = Job(key, kept, wish, client, path, wish.files(kept.info))
            self._jobs[key] = job
            self._queue.append(job)
            self.changed.notify_all()
        return job

    def job(self, key: str) -> Job:
        """A job by its id.

        Args:
            key: id.

        Returns:
            The job.

        Raises:
            RefusedError: there is none (404).
        """
        with self.changed:
            if key not in self._jobs:
                raise RefusedError(404, "there is no such job here; its picture may have been deleted, send it again")
            self._jobs[key].picture.used = time.monotonic()
            return self._jobs[key]

    def cancel(self, key: str) -> None:
        """Stop a job, or delete its result if it is done.

        Args:
            key: id of the job.
        """
        with self.changed:
            job = self._jobs.get(key)
            if job is None:
                return
            self._stop(job, "cancelled")
            if job.state != "running":
                self._delete(job)
            self.changed.notify_all()

    def state(self, job: Job) -> dict[str, Any]:
        """A job as plain data.

        Args:
            job: the job.

        Returns:
            State, progress, place in the queue, seconds left where they are known, result, error.
        """
        with self.changed:
            place = self._queue.index(job) + 1 if job.state == "waiting" and job in self._queue else 0
            share = job.done / job.whole if job.whole else 0.0
            spent = time.monotonic() - job.began if job.state == "running" else 0.0
            left = spent * (1 - share) / share if share > 0.02 else None
            return {
                "id": job.id,
                "picture": job.picture.id,
                "name": job.download_name,
                "state": job.state,
                "place": place,
                "progress": 1.0 if job.state == "done" else share,
                "seconds_left": left,
                "error": job.error,
                "result": dict(job.result),
            }

    def _stop(self, job: Job, why: str) -> None:
        if job.state == "waiting":
            with suppress(ValueError):
                self._queue.remove(job)
            job.state, job.error = "cancelled", why
        elif job.state == "running":
            job.stop = why

    def _delete(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        for path in self.previews(job).values():
            path.unlink(missing_ok=True)
        _clear(job)
        if job.picture.id not in self._pictures and not any(j.picture is job.picture for j in self._jobs.values()):
            job.picture.path.unlink(missing_ok=True)

    def previews(self, job: Job) -> dict[str, Path]:
        """Paths of a job's previews, which need not exist.

        Args:
            job: the job.

        Returns:
            Paths of "before" and "after".
        """
        return {side: self.folder / f"{job.path.stem}.{side}.png" for side in ("before", "after")}

    # Work

    def _work(self) -> None:
        while True:
            with self.changed:
                while not self._queue and not self._closed:
                    self.changed.wait()
                if self._closed:
                    return
                job = self._queue.popleft()
                job.state, job.began = "running", time.monotonic()
                self.changed.notify_all()
            self._one(job)

    def _one(self, job: Job) -> None:
        def tell(done: float, whole: float) -> None:
            with self.changed:
                job.done, job.whole = done, whole
                if job.stop:
                    raise StoppedError(job.stop)
                self.changed.notify_all()
            if time.monotonic() - job.began > self.limits.seconds:
                raise StoppedError(
                    f"it took longer than {self.limits.seconds:g} seconds (--max-seconds); try a crop or a lower scale"
                )

        state, error = "done", ""
        try:
            tell(0.0, 0.0)
            result = self.studio.do(job.picture.path, [path for _, path in job.files], job.wish, tell)
        except StoppedError as stopped:
            state, error, result = "cancelled" if job.stop else "failed", str(stopped), {}
        except Exception as problem:  # one bad picture must not end the worker
            state, error, result = "failed", worded(problem, job.picture, job), {}
        with self.changed:
            job.state, job.error, job.result = state, error, result
            job.picture.used = time.monotonic()
            if state != "done":
                _clear(job)
            if job.stop:
                self._delete(job)
            self.changed.notify_all()

    def close(self, *, patience: float = 5.0) -> None:
        """Drop all jobs and delete all files.

        Args:
            patience: seconds to wait for the running job to stop.
        """
        with self.changed:
            self._closed = True
            for job in list(self._jobs.values()):
                self._stop(job, "the server is shutting down")
            self.changed.notify_all()
        self._worker.join(patience)
        shutil.rmtree(self.folder, ignore_errors=True)


def _clear(job: Job) -> None:
    """Delete the files of a job's result, or what there is of them."""
    for _, path in job.files:
        path.unlink(missing_ok=True)
    forget_film(job.path)


def worded(problem: Exception, kept: Kept, job: Job | None = None) -> str:
    """What went wrong, without the server's paths and the shell's options.

    Args:
        problem: the error.
        kept: the picture that it is about.
        job: the job; None for a plan.

    Returns:
        Text for the client.
    """
    text = str(problem).replace(str(kept.path), kept.name)
    for name, path in [] if job is None else job.files:
        text = text.replace(str(path), name)
    return text.replace("on the command line --pages split", "pages=split") or type(problem).__name__
