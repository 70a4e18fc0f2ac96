import subprocess

from foveal.evidence import machine


def test_describe_names_the_processor_and_cores():
    found = machine.describe()
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["system"]


def test_versions_name_only_what_is_loaded(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "never_loaded"))
    import numpy as np

    assert machine.versions()["numpy"] == np.__version__
    assert "never_loaded" not in machine.versions()


def test_commit_marks_changed_files(monkeypatch):
    answers = iter(["abc1234\n", "", "abc1234\n", " M a.py\n"])
    monkeypatch.setattr(
        machine.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, next(answers), "")
    )
    for want in ("abc1234", "abc1234+"):
        assert machine.commit() == want


def test_commit_is_empty_without_git(monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(machine.subprocess, "run", gone)
    assert machine.commit() == ""
