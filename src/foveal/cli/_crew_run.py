"""The pictures of one `foveal upscale --ray`: planned here, made by the workers of a cluster."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveal.cli._upscale_run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from foveal.cli._progress import Show
    from foveal.cli._upscale_run import Wishes
    from foveal.runtime.batch import Job
    from foveal.runtime.crew import Done, Order
    from foveal.runtime.ray_batch import RayCrew
    from foveal.runtime.upscaler import Upscaler

__all__ = ["CrewRun"]


class CrewRun(Run):
    """The pictures of one command, made by a crew.

    Args:
        upscaler: upscaler of this machine, which plans.
        wishes: options of the user.
        passed_over: files that were found but are not processed, each with its kind.
        crew: workers of a Ray cluster.
        options: arguments of the Upscaler, for the workers.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        wishes: Wishes,
        passed_over: list[tuple[Path, str]],
        crew: RayCrew,
        options: dict[str, Any],
    ) -> None:
        super().__init__(upscaler, wishes, passed_over)
        self._crew, self._options = crew, options
        # What each worker does or did, and why it cannot.
        self._workers: dict[str, dict[str, Any]] = {}

    @property
    def failed(self) -> bool:
        """Whether a picture failed, or a worker could not take part."""
        return super().failed or any("problem" in worker for worker in self._workers.values())

    def tell_plans(self) -> None:
        """Print the plans, and who would do what."""
        super().tell_plans()
        self._foretell()

    @property
    def _by_whom(self) -> str:
        names = self._crew.workers
        machines = len({worker.node for worker in names.values()})
        return (
            f"{len(names)} worker{'' if len(names) == 1 else 's'} on {machines} machine{'' if machines == 1 else 's'}, "
            f"each with "
        )

    def _together(self, seconds: list[float]) -> float:
        from foveal.runtime.many_machines import share

        return share(seconds, len(self._crew.workers))[1]

    def _more(self) -> dict[str, Any]:
        return {"workers": list(self._workers.values())}

    def _foretell(self) -> None:
        """Print and note who would do which picture, if all took as long as estimated."""
        from foveal.cli._progress import duration
        from foveal.runtime.many_machines import share

        seconds = [plan.seconds - plan.start for _, plan in self._plans]
        for worker, part in zip(self._crew.workers.values(), share(seconds, len(self._crew.workers))[0], strict=True):
            long = sum(seconds[index] for index in part)
            self._workers[worker.name] = {
                "name": worker.name,
                "threads": worker.threads,
                "pictures": len(part),
                "megapixels": sum(self._plans[index][1].megapixels for index in part),
                "seconds": long,
            }
            for index in part:
                self.files[self._plans[index][0].source, self._plans[index][0].page]["worker"] = worker.name
            count = f"{len(part)} picture{'' if len(part) == 1 else 's'}"
            threads = f"{worker.threads} thread{'' if worker.threads == 1 else 's'}"
            self.say(f"worker {worker.name}: {threads}, {count}, about {duration(long)}")

    def _work(self) -> float:
        """Process the planned pictures by the workers; the megapixels done."""
        from foveal.cli._progress import Show
        from foveal.cli._upscale_crew import order_for, setup_for
        from foveal.runtime.many_machines import spread
        from foveal.runtime.upscaler import Upscaler

        assert isinstance(self.upscaler, Upscaler)  # only that command has --ray
        self._plans = [(job, plan) for job, plan in self._plans if self._has_folder(job)]
        if not self._plans:
            return 0.0
        orders = [order_for(job, plan, self.wishes) for job, plan in self._plans]
        names = self._crew.hire(setup_for(self.upscaler, self._options, orders), most=len(orders))
        self._workers = {
            name: {"name": name, "threads": self._crew.threads, "pictures": 0, "megapixels": 0.0, "seconds": 0.0}
            for name in names
        }
        done = finished = 0.0
        whole = self._megapixels
        many = f"{len(orders)} picture{'' if len(orders) == 1 else 's'}"
        with Show(1, whole, self._seconds, quiet=self.wishes.quiet, json=self.wishes.json) as show:
            show.begin(many, whole, self._seconds)

            def begin(index: int, _: str) -> None:
                if self.wishes.keep_record:
                    self._record(self._plans[index][0]).begin(self._plans[index][0])

            def unfit(worker: str, why: str) -> None:
                self._workers[worker]["problem"] = why
                show.problem(f"failed: worker {worker}: {why}")

            def beat(in_hand: float) -> None:
                if so_far := min(finished + in_hand, whole):
                    show.step(so_far, whole, (0, 0, 0, 0))

            events = spread(orders, self._crew, names, begin=begin, tell=show.line, unfit=unfit, beat=beat)
            with closing(events):
                for one in events:
                    plan = self._plans[one.index][1]
                    if self._take(one, orders[one.index], show):
                        done += plan.megapixels
                    finished += plan.megapixels
            show.end(whole)
        return done

    def _take(self, one: Done, order: Order, show: Show) -> bool:
        """Record and report what became of a picture in a worker."""
        job, plan = self._plans[one.index]
        result = one.outcome.result
        if result is None:
            # Workers know absolute paths, the user named these.
            message = one.outcome.error.replace(str(order.source), str(job.source))
            self.fail(job, message.replace(str(order.target), str(job.target)), show)
            return False
        had = self._workers[one.worker]
        had["pictures"] += 1
        had["megapixels"] += result.megapixels
        had["seconds"] += result.seconds
        self._finish(job, plan, replace(result, source=job.source, target=job.target), show, worker=one.worker)
        return True

    def _has_folder(self, job: Job) -> bool:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.fail(job, error)
            return False
        return True
