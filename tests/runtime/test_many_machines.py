import json
import os
import pickle
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.images.temporary import Temporary, remove_unfinished
from foveal.runtime import engine_choice, many_machines
from foveal.runtime.batch import RECORD, Job, Record, settings_of
from foveal.runtime.crew import CrewError, Event, Order, Outcome, Setup
from foveal.runtime.errors import EngineError, wording
from foveal.runtime.many_machines import carry_out, share, spread, threads_of_workers
from foveal.runtime.upscaler import Upscaler


class Fake:
    """Workers in this process, one event at a time; a worker dies where the script says so."""

    def __init__(self, *, deaths=(), starts=(), unfit=(), work=None):
        self.deaths = list(deaths)  # names of sources, one for each death
        self.starts = list(starts)  # names of workers that die when they are started
        self.unfit = unfit
        self.work = work or (lambda order, worker: Outcome(error="no work"))
        self.news, self.stopped, self.given, self.restarts = deque(), 0, [], []

    def hire(self, *names):
        for name in names:
            self._start(name)
        return names

    def _start(self, worker):
        if worker in self.unfit:
            self.news.append(Event(worker, "unfit", why="it does not see /pictures"))
        elif worker in self.starts:
            self.starts.remove(worker)
            self.news.append(Event(worker, "lost", why="its machine is gone"))
        else:
            self.news.append(Event(worker, "ready"))

    def give(self, worker, order):
        self.given.append((worker, order.source.name))
        if order.source.name in self.deaths:
            self.deaths.remove(order.source.name)
            Temporary(order.target).path.write_bytes(b"half a picture")
            self.news.append(Event(worker, "lost", why="killed"))
        else:
            self.news.append(Event(worker, "made", self.work(order, worker)))

    def wait(self, seconds):
        assert self.news, "nobody is doing anything, and there is something to wait for"
        return [self.news.popleft()]

    def restart(self, worker):
        self.restarts.append(worker)
        self._start(worker)

    def so_far(self):
        return 0.25

    def stop(self):
        self.stopped += 1


@pytest.fixture
def orders(tmp_path):
    """Function that makes pictures of noise and an order for each."""

    def make(count, seconds=None):
        made = []
        for index in range(count):
            source = tmp_path / "in" / f"{index}.png"
            source.parent.mkdir(exist_ok=True)
            (tmp_path / "out").mkdir(exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 256, (7, 9 + index, 3), np.uint8)
            Image.fromarray(pixels).save(source)
            size = source.stat().st_size
            long = 1.0 if seconds is None else seconds[index]
            made.append(Order(source, tmp_path / "out" / source.name, size, seconds=long))
        return made

    return make


@pytest.fixture
def setup(bundles):
    options = {"model": str(bundles["trims"].folder), "engine": "onnxruntime", "threads": 1}
    upscaler = Upscaler(**options)
    import foveal

    return Setup(options, upscaler.settled(), settings_of(upscaler), foveal.__version__)


def work_of(setup):
    upscaler = setup.build()
    return lambda order, worker: carry_out(upscaler, order, worker)


def finished(orders, crew, *names, **listeners):
    done = list(spread(orders, crew, crew.hire(*names), **listeners))
    assert sorted(one.index for one in done) == list(range(len(orders))), "each picture once"
    assert crew.stopped == 1
    return {one.index: one for one in done}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Who does what


def test_results_are_those_of_one_process(orders, setup, tmp_path):
    made = orders(5)
    done = finished(made, Fake(work=work_of(setup)), "a/1", "b/1")
    upscaler = Upscaler(**setup.options)
    assert {one.worker for one in done.values()} == {"a/1", "b/1"}
    for index, order in enumerate(made):
        assert done[index].outcome.error == ""
        plain = tmp_path / f"plain{index}.png"
        upscaler.upscale_file(order.source, plain)
        assert order.target.read_bytes() == plain.read_bytes()


def test_the_longest_go_first(orders):
    crew = Fake()
    finished(orders(4, seconds=[1, 4, 2, 3]), crew, "a/1")
    assert [name for _, name in crew.given] == ["1.png", "3.png", "2.png", "0.png"]


def test_shares_are_even_and_each_picture_has_one():
    shares, seconds = share([5, 4, 3, 3, 3], 2)
    assert (shares, seconds) == ([[0, 3], [1, 2, 4]], 10)
    assert share([1.0], 3) == ([[0], [], []], 1.0)
    assert share([], 2) == ([[], []], 0.0)


@pytest.mark.parametrize(("wanted", "processors", "threads"), [
    (None, [2, 8], 2), (None, [16, 64], 4), (None, [0, 3], 3), (1, [2], 1), (8, [2, 8], 8),
])  # fmt: skip
def test_a_machine_is_not_overfull(wanted, processors, threads):
    assert threads_of_workers(wanted, processors) == threads


@pytest.mark.parametrize(("wanted", "processors", "text"), [
    (4, [2, 1], "no machine has 4 processors for a worker, the largest has 2; give a smaller --threads"),
    (None, [0], "no machine has 1 processors for a worker, the largest has 0; start Ray with --num-cpus"),
])  # fmt: skip
def test_more_threads_than_any_machine_has(wanted, processors, text):
    with pytest.raises(CrewError, match=text):
        threads_of_workers(wanted, processors)


# Workers that die


def test_a_killed_worker_loses_nothing_and_doubles_nothing(orders, setup, tmp_path):
    said = []
    crew = Fake(deaths=["1.png"], work=work_of(setup))
    done = finished(orders(3), crew, "a/1", "b/1", tell=said.append)
    assert [one.outcome.error for one in done.values()] == ["", "", ""]
    assert names(tmp_path / "out") == ["0.png", "1.png", "2.png"], "what it left of the file is removed"
    assert [name for _, name in crew.given].count("1.png") == 2
    assert said == [f"worker b/1 died over {tmp_path}/in/1.png (killed); it is tried again"]
    assert crew.restarts == ["b/1"]


def test_a_picture_that_kills_twice_has_failed_and_the_rest_goes_on(orders, setup, tmp_path):
    done = finished(orders(3), Fake(deaths=["1.png", "1.png"], work=work_of(setup)), "a/1")
    assert [index for index, one in done.items() if one.outcome.error] == [1]
    error = done[1].outcome.error
    assert error.startswith(f"{tmp_path}/in/1.png: it was given up after its worker died 2 times (worker a/1: killed")
    assert "a smaller --tile" in error
    assert names(tmp_path / "out") == ["0.png", "2.png"]


def test_a_worker_that_cannot_be_started_is_left_out(orders, setup):
    said = []
    crew = Fake(starts=["a/1"] * 3, work=work_of(setup))
    done = finished(orders(3), crew, "a/1", "b/1", tell=said.append)
    assert {one.worker for one in done.values()} == {"b/1"}
    assert said[-1] == "worker a/1 is not started again: it ended 3 times in a row"


def test_when_nobody_is_left_the_pictures_have_failed(orders, tmp_path):
    done = finished(orders(2), Fake(starts=["a/1"] * 3), "a/1")
    expected = f"{tmp_path}/in/0.png: no worker is left (worker a/1: its machine is gone)"
    assert (done[0].outcome.error, done[0].worker) == (expected, "")


def test_a_worker_that_cannot_do_the_batch_takes_no_part(orders, setup):
    told = []
    crew = Fake(unfit=["b/1"], work=work_of(setup))
    done = finished(orders(2), crew, "a/1", "b/1", unfit=lambda *both: told.append(both))
    assert {one.worker for one in done.values()} == {"a/1"}
    assert told == [("b/1", "it does not see /pictures")]


def test_stopping_early_ends_workers_and_removes_what_is_unfinished(orders, tmp_path):
    made = orders(2)
    crew = Fake()
    crew.give = lambda worker, order: Temporary(order.target).path.write_bytes(b"half a picture")
    crew.hire("a/1", "b/1")

    def interrupted(seconds):
        if crew.news:
            return [crew.news.popleft()]
        raise KeyboardInterrupt

    crew.wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(spread(made, crew, ("a/1", "b/1")))
    assert crew.stopped == 1
    assert names(tmp_path / "out") == []


def test_progress_is_asked_for_now_and_then(orders, monkeypatch):
    monkeypatch.setattr(many_machines, "_BEAT", -1.0)
    heard = []
    finished(orders(2), Fake(), "a/1", beat=heard.append)
    assert heard == [0.25] * 3


# What a worker does with a picture


def test_a_file_that_cannot_be_read_fails_as_it_does_in_one_process(orders, setup, tmp_path):
    (order,) = orders(1)
    whole = order.source.read_bytes()
    order.source.write_bytes(whole[: len(whole) // 2])
    order = replace(order, size=order.source.stat().st_size)
    outcome = work_of(setup)(order, "a/1")
    with pytest.raises(ValueError, match=r"0\.png") as plain:
        Upscaler(**setup.options).upscale_file(order.source, order.target)
    assert (outcome.error, outcome.known) == (str(plain.value), True)
    assert names(tmp_path / "out") == []


def test_a_full_disk_is_one_pictures_failure(orders, setup, tmp_path, monkeypatch):
    from foveal.images.stream import VipsSink

    def full(self, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VipsSink, "rows", full)
    outcome = work_of(setup)(orders(1)[0], "a/1")
    assert "0.png: it cannot be written (No space left on device); check the space and rights" in outcome.error
    assert names(tmp_path / "out") == []


def test_a_worker_that_does_not_see_a_file_says_who_and_which(orders, setup, tmp_path):
    order, other = orders(2)
    order.source.unlink()
    other.source.write_bytes(b"x")
    work = work_of(setup)
    shared = "every machine must see the same folders under the same paths"
    assert work(order, "b/2").error == f"{tmp_path}/in/0.png: worker b/2 does not see it; {shared}"
    assert f"{tmp_path}/in/1.png: worker b/2 sees another file there (1 bytes, not " in work(other, "b/2").error


def test_a_result_that_is_not_seen_from_here_has_failed(orders, setup, tmp_path, monkeypatch):
    monkeypatch.setattr(many_machines, "_SEEN", 0.0)
    work = work_of(setup)

    def elsewhere(order, worker):
        outcome = work(order, worker)
        order.target.unlink()
        return outcome

    done = finished(orders(1), Fake(work=elsewhere), "a/1")
    assert f"{tmp_path}/out/0.png: worker a/1 wrote it, and it is not seen from here" in done[0].outcome.error


@pytest.mark.parametrize(("changed", "text"), [
    ({"folders": (Path("/nowhere/at/all"),)}, "it does not see /nowhere/at/all; every machine must see the same"),
    ({"version": "0.0.1"}, "the batch was started by 0.0.1; install the same"),
    ({"settings": "other 0123"}, "its bundle tiny is another than that of the batch"),
])  # fmt: skip
def test_a_worker_that_differs_says_how(setup, changed, text):
    with pytest.raises(CrewError, match=text):
        replace(setup, **changed).build()


def test_an_engine_that_is_missing_there_is_named(bundles, monkeypatch):
    upscaler = Upscaler(model=bundles["trims"], engine="onnxruntime", threads=1)
    monkeypatch.setattr(engine_choice, "why_not", lambda name: f"{name} not installed")
    with pytest.raises(EngineError, match="engine ncnn: ncnn not installed"):
        upscaler.adopt([{"uint8": ("ncnn", 32)}])


def test_engines_and_tiles_are_those_of_the_machine_that_starts(bundles):
    upscaler = Upscaler(model=bundles["trims"], engine="onnxruntime", threads=1)
    assert upscaler.settled() == ({"float": ("onnxruntime", 256), "uint8": ("onnxruntime", 256)},)
    other = Upscaler(model=bundles["trims"], threads=1)
    other.adopt([{"float": ("onnxruntime", 64), "uint8": ("onnxruntime", 96)}])
    assert other.settled() == ({"float": ("onnxruntime", 64), "uint8": ("onnxruntime", 96)},)
    assert Upscaler(2, content="pixel").settled() == ()


def test_what_goes_between_machines_can_be_packed(orders, setup):
    (order,) = orders(1)
    assert pickle.loads(pickle.dumps((order, setup))) == (order, setup)
    outcome = work_of(setup)(order, "a/1")
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_errors_nobody_wrote_for_users_name_their_type():
    assert wording(OSError("full")) == "full"
    assert wording(KeyError("a")) == "KeyError: 'a'"
    assert wording(EngineError("")) == "EngineError"


# The record


@pytest.fixture
def job(tmp_path):
    source = tmp_path / "a.png"
    source.write_bytes(b"source")
    (tmp_path / "out").mkdir()
    return Job(source, tmp_path / "out" / "a.png", tmp_path / "out")


def test_a_result_of_a_worker_that_outlived_the_record_is_done(job):
    record = Record(job.folder, "s")
    record.begin(job)
    assert Record(job.folder, "s").state(job) == "missing"
    job.target.write_bytes(b"result")
    assert Record(job.folder, "s").state(job) == "done"
    assert Record(job.folder, "other").state(job) == "stale"
    record.add(job)
    assert Record(job.folder, "s").state(job) == "done"
    lines = [json.loads(line) for line in (job.folder / RECORD).read_text().splitlines()]
    assert ["before" in line for line in lines] == [True, False]


def test_a_file_that_was_there_before_is_as_it_was(job):
    job.target.write_bytes(b"mine")
    Record(job.folder, "s").begin(job)
    assert Record(job.folder, "s").state(job) == "unknown"
    changed = job.target.stat().st_mtime_ns + 10**9
    os.utime(job.target, ns=(changed, changed))
    assert Record(job.folder, "s").state(job) == "done"
    job.source.unlink()
    Record(job.folder, "s").begin(job)  # fails where it is read, and not here


def test_unfinished_files_are_removed_and_those_of_the_living_stay(tmp_path):
    target = tmp_path / "a.png"
    left, alive = Temporary(target), Temporary(target)
    left.path.write_bytes(b"half")
    alive.begin(alive.path)
    left.path.write_bytes(b"half")
    (tmp_path / ".a.png.text.part").write_bytes(b"mine")
    (tmp_path / ".b.png.00000000.part").write_bytes(b"another's")
    remove_unfinished([target, tmp_path / "no folder" / "c.png"], seconds=0.0)
    assert names(tmp_path) == sorted([".a.png.text.part", ".b.png.00000000.part", alive.path.name])
    alive.end(alive.path)
