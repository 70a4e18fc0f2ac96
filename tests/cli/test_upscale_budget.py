import numpy as np
import pytest
from PIL import Image

from foveal.cli._route_map import shown
from foveal.cli.main import main
from foveal.runtime import throughput

QUICK = ("-s", "2", "--engine", "onnxruntime", "--threads", "1", "--clean", "off", "--tile", "48")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder with a picture that is noise on the left and flat on the right."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(throughput, "_TRIED", (32,))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pixels = np.full((64, 96, 3), 120, np.uint8)
    pixels[:, :40] = np.random.default_rng(0).integers(0, 256, (64, 40, 3))
    Image.fromarray(pixels).save("a.png")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["upscale", *arguments, *QUICK])
    said = capsys.readouterr()
    return end.value.code, said.out, said.err


def test_the_line_says_where_the_work_went_and_the_map_shows_it(capsys, tmp_path):
    code, out, err = run(capsys, "a.png", "-o", "b.png", "--budget", "0.5", "--map", "maps/a.png")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert "with balanced_x2 at 0.5, onnxruntime, 1 thread: about" in first
    assert "; budget 0.5: balanced_x2 for " in second
    assert second.endswith(" of the work")
    with Image.open("maps/a.png") as drawn:
        colours = np.asarray(drawn)
    assert colours.shape == (64, 96, 3)
    assert colours[:, :30, 0].mean() > colours[:, 60:, 0].mean() + 30


def test_the_plan_says_it_too(capsys):
    code, out, _ = run(capsys, "a.png", "--budget", "0.5", "--dry-run")
    assert code == 0
    assert "balanced_x2 at 0.5 with onnxruntime" in out
    assert "budget 0.5: balanced_x2 for " in out


def test_resume_knows_the_budget(capsys):
    for budget, skipped in (("0.5", False), ("0.5", True), ("0.75", False), ("1", False)):
        out = run(capsys, "a.png", "-o", "out/", "--budget", budget, "--resume")[1]
        assert ("nothing to do" in out) == skipped


def test_one_is_what_it_was(capsys):
    run(capsys, "a.png", "-o", "b.png")
    run(capsys, "a.png", "-o", "c.png", "--budget", "1")
    assert np.array_equal(np.asarray(Image.open("b.png")), np.asarray(Image.open("c.png")))


def test_frames_have_no_map(capsys):
    frame = Image.open("a.png").convert("P")
    frame.save("a.gif", save_all=True, append_images=[frame.rotate(180)], duration=50)
    code, out, err = run(capsys, "a.gif", "-o", "b.gif", "--budget", "0.5", "--map", "m.png")
    assert code == 0
    assert "budget 0.5 takes no part: balanced_x2 makes all frames alike" in out
    assert "no map m.png: one network makes a.gif, all frames alike" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--budget", "1.5"], "budget must be in (0, 1], got 1.5; 0.5 is half of the network's work, 1 all of it"),
        (["--budget", "0"], "budget must be in (0, 1], got 0.0"),
        (
            ["--budget", "0.5", "--quality", "fast"],
            "fast_x2 is the smallest; take quality balanced, or leave",
        ),
        (["--budget", "0.5", "-n", "fast_x2"], "budget=0.5 asks for a smaller network, and fast_x2 is the smallest"),
        (["--map", "m.png"], "--map m.png shows where the work of --budget went; give a budget below 1"),
        (["--budget", "0.5", "--map", "m.jpg"], "--map writes a PNG, got m.jpg; end its name in .png"),
        (["--budget", "0.5", "--map", "a.png"], "--map a.png: exists already; --overwrite replaces it"),
        (
            ["--budget", "0.5", "--map", "m.png", "--wrap"],
            "--map m.png takes one picture, without --ray and --wrap",
        ),
        (["--budget", "0.5", "clip.mp4"], "clip.mp4 is a film, and --budget would share each of its frames otherwise"),
    ],
)
def test_what_cannot_begin_ends_with_2(arguments, text, capsys, tmp_path):
    (tmp_path / "work" / "clip.mp4").write_bytes(b"film")
    code, _, err = run(capsys, "a.png", "-o", "out/", *arguments)
    assert code == 2
    assert text in err


def test_a_map_shows_any_picture_in_eight_bits():
    assert shown(np.full((4, 5, 4), 40000, np.uint16)).tolist() == np.full((4, 5, 3), 156).tolist()
    assert shown(np.zeros((4, 5, 2), np.uint8)).shape == (4, 5)
    assert shown(np.zeros((5000, 30, 3), np.uint8)).shape == (1667, 10, 3)
