import pytest

from foveal.runtime import machine
from foveal.runtime.machine import cache_folder, cores, cpu_flags, cpu_model


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Function that sets what /proc/cpuinfo and the container's quota say; None for no such file."""

    def write(cpuinfo=None, quota=None):
        for name, text in (("_CPUINFO", cpuinfo), ("_CPU_MAX", quota)):
            path = tmp_path / name
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
            monkeypatch.setattr(machine, name, path)
        machine.cores.cache_clear()
        machine._cpuinfo.cache_clear()

    yield write
    machine.cores.cache_clear()
    machine._cpuinfo.cache_clear()


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FOVEAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "foveal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "foveal"


def test_cores_obey_the_binding_and_the_quota(files, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for quota, wanted in [(None, 6), ("max 100000", 6), ("250000 100000", 2), ("10000 100000", 1), ("?", 6)]:
        files(quota=quota)
        assert cores() == wanted
    monkeypatch.delattr(machine.os, "sched_getaffinity")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    files()
    assert cores() == 1


def test_processor_of_x86_and_of_arm(files):
    files(
        "processor : 0\nmodel name\t: Zen 9\nflags\t\t: avx2 fma\n\nprocessor : 1\nmodel name\t: other\nflags : sse\n"
    )
    assert cpu_model() == "Zen 9"
    assert cpu_flags() == {"avx2", "fma"}
    files("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags() == {"fp", "asimd"}
    files()
    assert cpu_flags() == set()
    assert cpu_model()
