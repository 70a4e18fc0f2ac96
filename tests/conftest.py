"""What tests of several folders share."""

import pytest
from documents import ROOT


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
