"""What tests of several folders share."""

import os
import sys

# Before anything imports torch: with several test processes, tiny tensors gain nothing from a second thread.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from budget import Budget
from documents import ROOT
from order import shuffled


def pytest_addoption(parser):
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the files, and the tests of each, in random order"
    )


def pytest_configure(config):
    config.pluginmanager.register(Budget(), "budget")


def pytest_collection_modifyitems(config, items):
    seed = config.getoption("shuffle")
    if seed is not None:
        items[:] = shuffled(items, seed, file=lambda item: item.path)


@pytest.fixture(scope="session")
def measured_once(tmp_path_factory):
    """A cache folder of this run's own, so that a bundle is timed once and the user's cache is left alone."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def beside_samples(tmp_path, monkeypatch, measured_once):
    """A working folder that holds the sample pictures."""
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOVEAL_CACHE", str(measured_once))
    return tmp_path


@pytest.fixture(autouse=True)
def _threads_stay():
    """A command sets the threads of its process; the tests after it get back what they had, not threads that spin."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    if "torch" in sys.modules:
        count = before or int(os.environ.get("OMP_NUM_THREADS", "0"))
        if count and sys.modules["torch"].get_num_threads() != count:
            sys.modules["torch"].set_num_threads(count)
