"""A crew in this process, for what is about commands and not about Ray: two machines of one worker each."""

from collections import deque

from foveal.runtime.crew import Event, Worker
from foveal.runtime.many_machines import carry_out


class InProcess:
    """What `RayCrew` is to the command; workers have the threads that the user wants, or one."""

    notes = ()

    def __init__(self, threads=None, machines=("north", "south")):
        self.threads = threads or 1
        self.workers = {f"{name}/1": Worker(f"{name}/1", name, self.threads) for name in machines}
        self.setup, self.news, self.ended = None, deque(), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def hire(self, setup, most=None):
        self.setup = setup
        names = list(self.workers)[:most]
        for name in names:
            self.restart(name)
        return names

    def restart(self, worker):
        self.news.append(Event(worker, "ready"))

    def give(self, worker, order):
        self.news.append(Event(worker, "made", carry_out(self.setup.build(), order, worker)))

    def wait(self, seconds):
        return [self.news.popleft()]

    def so_far(self):
        return 0.0

    def stop(self):
        self.ended += 1
        self.news.clear()
