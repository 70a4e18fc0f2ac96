"""`foveal upscale --ray` with a crew in this process: what the command says and records."""

import json
from pathlib import Path

import numpy as np
import pytest
from crew import InProcess
from PIL import Image

from foveal.cli import upscale
from foveal.cli.main import main
from foveal.runtime import throughput
from foveal.runtime.batch import RECORD
from foveal.runtime.crew import Event, Outcome

QUICK = ("-s", "2", "--quality", "fast", "--engine", "onnxruntime", "--threads", "1", "--ray")


@pytest.fixture(autouse=True)
def crew(tmp_path, monkeypatch):
    """A crew of two, and three pictures in a folder."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(throughput, "_TRIED", (32,))
    monkeypatch.chdir(tmp_path)
    made = InProcess()
    monkeypatch.setattr(upscale, "_crew", lambda address, threads: made)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deep/c.jpg")):
        pixels = np.random.default_rng(index).integers(0, 256, (8 + index, 9, 3), np.uint8)
        Image.fromarray(pixels).save(Path("in") / name)
    return made


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["upscale", "in", "-o", "out", "-r", *arguments, *QUICK])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_each_picture_is_done_once_and_named_with_its_worker(capsys, crew):
    code, out, err = run(capsys, "--clean", "off")
    assert (code, err) == (0, "")
    first, *lines, last = out.splitlines()
    assert "3 pictures, 0.00 MP with fast_x2, onnxruntime, 2 workers on 2 machines, each with 1 thread: about" in first
    assert [line.rpartition("; by ")[2] for line in lines] == ["north/1", "south/1", "north/1"]
    assert last.startswith("3 pictures, 0.00 MP in")
    assert all(Path("out", name).exists() for name in ("a.png", "b.png", "deep/c.jpg"))
    assert crew.ended == 2
    folders = {Path.cwd() / name for name in ("in", "out", "in/deep", "out/deep")}
    assert set(crew.setup.folders) == folders
    assert run(capsys, "--clean", "off", "--resume")[1] == "nothing to do: 3 done already\n"


def test_a_dry_run_hires_nobody_and_says_who_would_do_what(capsys, crew):
    code, out, _ = run(capsys, "--dry-run")
    assert code == 0
    north, south = out.splitlines()[-2:]
    assert north.startswith("worker north/1: 1 thread, ")
    assert south.startswith("worker south/1: 1 thread, ")
    assert not Path("out").exists()
    assert crew.setup is None
    document = json.loads(run(capsys, "--dry-run", "--json")[1])
    assert sorted(worker["pictures"] for worker in document["workers"]) == [1, 2]
    assert {file["worker"] for file in document["files"]} == {"north/1", "south/1"}


def test_json_says_what_each_worker_did(capsys):
    document = json.loads(run(capsys, "--json")[1])
    assert [(worker["name"], worker["pictures"]) for worker in document["workers"]] == [("north/1", 2), ("south/1", 1)]
    assert sum(worker["megapixels"] for worker in document["workers"]) == pytest.approx(
        sum(file["megapixels"] for file in document["files"])
    )
    assert {file["worker"] for file in document["files"]} == {"north/1", "south/1"}


def test_failures_are_named_as_the_user_named_them(capsys):
    whole = Path("in/b.png").read_bytes()
    Path("in/b.png").write_bytes(whole[: len(whole) // 2])
    Path("in/deep/text.png").write_text("no picture")
    code, _, err = run(capsys)
    assert code == 1
    assert sorted(line.split(": ")[:2] for line in err.splitlines()) == [
        ["failed", "in/b.png"],
        ["failed", "in/deep/text.png"],
    ]
    assert sorted(path.name for path in Path("out").iterdir()) == [RECORD, "a.png", "deep"]


def test_a_worker_that_takes_no_part_makes_the_code_1(capsys, crew):
    def restart(worker):
        south = worker == "south/1"
        crew.news.append(Event(worker, "unfit" if south else "ready", why="it does not see /in" if south else ""))

    crew.restart = restart
    code, out, err = run(capsys, "--json")
    assert (code, err.splitlines()[-1].startswith("3 pictures")) == (1, True)
    assert "failed: worker south/1: it does not see /in" in err
    document = json.loads(out)
    assert (document["counts"]["done"], document["workers"][1]["problem"]) == (3, "it does not see /in")


def test_ctrl_c_leaves_a_record_to_go_on_from(capsys, crew):
    give = crew.give

    def interrupted(worker, order):
        if order.source.name == "c.jpg":
            raise KeyboardInterrupt
        give(worker, order)

    crew.give = interrupted
    code, _, err = run(capsys)
    done = [name for name in ("a.png", "b.png") if Path("out", name).exists()]
    assert code == 130
    assert err.startswith("interrupted: ")
    assert err.endswith(" of 3 done; --resume goes on from there\n")
    crew.give = give
    document = json.loads(run(capsys, "--resume", "--json")[1])
    assert document["counts"] == {"planned": 0, "done": 3 - len(done), "skipped": len(done), "failed": 0}


def test_a_folder_that_cannot_be_made_fails_its_pictures(capsys):
    Path("out").mkdir()
    Path("out/deep").write_text("a file")
    code, _, err = run(capsys)
    assert code == 1
    assert err.startswith("failed: ")
    assert "out/deep" in err
    assert Path("out/b.png").exists()


def test_an_error_of_a_worker_is_that_pictures(capsys, crew):
    crew.give = lambda worker, order: crew.news.append(Event(worker, "made", Outcome(error="something odd")))
    code, _, err = run(capsys)
    assert code == 1
    assert sorted(err.splitlines()) == [
        f"failed: in/{name}: something odd" for name in ("a.png", "b.png", "deep/c.jpg")
    ]
