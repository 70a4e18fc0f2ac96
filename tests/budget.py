"""A budget: no test takes more than a second of processor time, no file more than three, unless `slow`.

Processor time, not time on the clock: a busy machine makes no test dearer. It is measured against a small fixed piece
of work, so that a slower processor may take longer; setting up (imports, fixtures) is not counted. A test that may be
dearer than others is marked `dear` with the reason. What is over is named; more than 2.5 times the budget fails,
since even processor time doubles where other machines share the memory and the cores.
"""

from __future__ import annotations

import time
from collections import defaultdict

import pytest

TEST, FILE = 1.0, 3.0  # seconds of a processor that does the piece of work in PIECE seconds
PIECE = 0.055
NAMED, FAILS = 1.2, 2.5  # times the budget; processor time varies with what else runs on a shared machine
SHOWN = 12  # slowest tests that a run prints


def _piece() -> float:
    """Seconds of a fixed piece of work: the least of three."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        total = 0
        for i in range(1_000_000):
            total += i * i
        times.append(time.process_time() - begun)
    return min(times)


class Budget:
    """Adds up what tests take, in this process or, with several, in the one that collects reports."""

    def __init__(self) -> None:
        self.pace = max(1.0, _piece() / PIECE)
        self.tests: dict[str, float] = {}
        self.allowed: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        begun = time.process_time()
        try:
            return (yield)
        finally:
            seconds = (time.process_time() - begun) / self.pace
            marker = (
                item.get_closest_marker("dear") or item.get_closest_marker("slow") or item.get_closest_marker("gpu")
            )
            item.user_properties += [("processor seconds", seconds), ("dear", marker is not None)]

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            found = dict(report.user_properties)
            self.tests[report.nodeid] = found.get("processor seconds", 0.0)
            if found.get("dear"):
                self.allowed[report.nodeid] = ""

    def over(self, slack: float) -> list[str]:
        """What is over so many times the budget, in words."""
        files: dict[str, float] = defaultdict(float)
        said = []
        for name, seconds in self.tests.items():
            if name not in self.allowed:
                files[name.partition("::")[0]] += seconds
                if seconds > slack * TEST:
                    said.append(f"{name}: {seconds:.2f} s of a budget of {TEST:.0f} s a test")
        said += [f"{f}: {s:.2f} s of a budget of {FILE:.0f} s a file" for f, s in files.items() if s > slack * FILE]
        return sorted(said)

    def pytest_terminal_summary(self, terminalreporter):
        slowest = sorted(self.tests.items(), key=lambda item: -item[1])[:SHOWN]
        if len(self.tests) > SHOWN:
            terminalreporter.section("slowest, seconds of processor time")
            for name, seconds in slowest:
                terminalreporter.line(f"{seconds:6.2f}  {name}")
        for line in self.over(NAMED):
            terminalreporter.line(f"over budget: {line}", red=True)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == 0 and not hasattr(session.config, "workerinput") and self.over(FAILS):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
