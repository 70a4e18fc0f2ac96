import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import typer
from asked import llava_folder

from foveal.cli.vlm_bench import vlm_bench
from foveal.evidence.tasks import generated_films
from foveal.vlm.answer import Asker
from foveal.vlm.method import VlmError
from foveal.vlm.video_mme import Item, as_authors, letter, prompt, read_items, tabulate, to_markdown, wilson
from foveal.vlm.video_mme_run import Cue, cues, evaluate, film, looked_at, template, write_report

OPTIONS = ("A. Apples.", "B. Candles.", "C. A red bus.", "D. Because of the rain.")
FIELDS = {"video_id": "001", "duration": "short", "domain": "Knowledge", "sub_category": "Law", "videoID": "x"}
FIELDS |= {"question_id": "001-1", "task_type": "Counting Problem", "question": "Which?", "options": OPTIONS}
ITEM = Item(**FIELDS, answer="C")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    generated_films.write(folder, 3)
    return folder


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("C", "C"), ("c", ""), (" (B) ", "B"), ("B. Candles.", "B"), ("Candles", "B"), ("**D**", "D"), ("A", "A"),
        ("Answer: C. Jade.", "C"), ("The best answer is: B", "B"), ("The answer is (D).", "D"), ("A red bus.", "C"),
        ("It is a red bus", "C"), ("Because of the rain", "D"), ("I think B, or else C", ""), ("A man sees B", "B"),
        ("Option A", "A"), ("A: apples", "A"), ("D - rain", "D"), ("nothing", ""), ("", ""),
        ("Clearly the answer is A.", "A"), ("Apples and candles", ""),
    ],
)  # fmt: skip
def test_letters(said, wanted):
    assert letter(said, OPTIONS) == wanted


def test_the_authors_rule_takes_the_first_capital():
    assert as_authors("Answer: C. Jade.") == "A"
    assert as_authors("The answer is Because D") == "B"
    assert as_authors("The best option is C") == "C"
    assert as_authors("none") == ""


def test_the_prompt_is_the_authors():
    first = (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option."
    )
    lines = [first, "Which?", *OPTIONS, "The best answer is:"]
    assert prompt(ITEM).splitlines() == lines
    assert prompt(ITEM, ["hi", "you"]).splitlines() == [
        "This video's subtitles are listed below:", "hi", "you", *lines,
    ]  # fmt: skip


def test_wilsons_interval_by_hand():
    low, high = wilson(1, 4, z=2.0)
    # p = 1/4, n = 4, z = 2: middle (1/4 + 1/2) / 2, half 2 √(3/64 + 1/16) / 2
    assert (low, high) == pytest.approx((0.375 - (7 / 64) ** 0.5, 0.375 + (7 / 64) ** 0.5))
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert sum(wilson(3, 6)) == pytest.approx(1)


def test_groups_count_each_setting_by_itself():
    other = Item(**FIELDS | {"question_id": "2", "duration": "long", "domain": "Multilingual"}, answer="A")
    said = [("001-1", False, "C"), ("2", False, "B"), ("001-1", True, "no idea"), ("2", True, "A")]
    answers = [{"question_id": q, "subtitles": s, "by": "m", "response": r} for q, s, r in said]
    rows = {(r.subtitles, r.kind, r.group): (r.asked, r.right, r.unread) for r in tabulate(answers, [ITEM, other])}
    assert rows[False, "all", "all"] == (2, 1, 0)
    assert rows[True, "all", "all"] == (2, 1, 1)
    assert rows[False, "duration", "short"] == (1, 1, 0)
    assert rows[False, "duration", "long"] == (1, 0, 0)
    assert rows[True, "domain", "Multilingual"] == (1, 1, 0)
    assert rows[True, "sub_category", "Law"] == (2, 1, 1)
    text = to_markdown(tabulate(answers, [ITEM, other]), kinds=("duration",))
    assert "| m | short | 1 | 100.0 % (20.7–100.0) | 0.0 % (0.0–79.3) |" in text
    assert "1 answers named no option" in text
    strict = tabulate(answers, [ITEM, other], rule=lambda said, _: as_authors(said))
    assert next(r for r in strict if r.kind == "all").right == 1


def test_files_flat_and_nested_give_the_same(tmp_path):
    flat = asdict(ITEM)
    nested = {name: flat[name] for name in ("video_id", "videoID", "duration", "domain", "sub_category")}
    asked = {name: flat[name] for name in ("question_id", "task_type", "question", "options", "answer")}
    for name, text in (
        ("a.jsonl", json.dumps(flat) + "\n"),
        ("b.json", json.dumps([flat])),
        ("c.json", json.dumps([nested | {"questions": [asked]}])),
    ):
        (tmp_path / name).write_text(text)
        assert read_items(tmp_path / name) == [ITEM]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no question; name the set's file"),
        ("{", r"cannot be read .*; name the set's Parquet file, JSON or JSON lines"),
        ('{"video_id": "1"}', "entry 1 of .* is no question of Video-MME .*wanted are the fields video_id, duration"),
        (json.dumps([asdict(ITEM)] * 2), "holds question 001-1 twice; leave one"),
        (json.dumps(asdict(ITEM) | {"answer": "E"}), "question 001-1 must have a duration of short, medium, long"),
        (json.dumps(asdict(ITEM) | {"options": ["A. x"]}), "must have a duration of .* got 'short', .'A. x'. and 'C'"),
    ],
)
def test_files_that_are_none(tmp_path, text, says):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(VlmError, match=says):
        read_items(tmp_path / "a.jsonl")


def test_parquet_asks_for_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(VlmError, match="is Parquet, which takes pyarrow; pip install pyarrow, or write its rows"):
        read_items(tmp_path / "test.parquet")


def test_subtitles_without_their_tags(tmp_path):
    (tmp_path / "subtitle").mkdir()
    path = tmp_path / "subtitle" / "x.srt"
    path.write_text(
        '1\n00:00:01,500 --> 00:01:02,000\n<font color="white" size=".72c">Hello\nyou</font>\n\n'
        "2\r\n01:00:00.250 --> 01:00:01,000\r\nbye\n\n\n3\n00:00:00,000 --> 00:00:01,000\n \n"
    )
    assert cues(tmp_path, ITEM) == [Cue(1.5, 62.0, "Hello you"), Cue(3600.25, 3601.0, "bye")]
    path.write_text("1\nsoon\nbye")
    with pytest.raises(VlmError, match=r"x.srt has a subtitle without times .*; wanted is 00:00:01,000 --> "):
        cues(tmp_path, ITEM)
    path.unlink()
    assert cues(tmp_path, ITEM) == []


def test_frames_are_spread_over_the_film(films):
    item = generated_films.items(3)[-1]
    seen = looked_at(film(films, item), 4)
    assert len(seen) == 4
    times = np.array([at for at, _ in seen])
    assert (np.diff(times) > 0).all()
    assert np.diff(times) == pytest.approx(np.diff(times).mean(), rel=0.1)
    assert all(pixels.shape == (32, 32, 3) for _, pixels in seen)
    with pytest.raises(VlmError, match="frames must be at least 1, got 0"):
        looked_at(film(films, item), 0)


def test_a_stopped_run_goes_on_and_films_are_read_once(films, tmp_path):
    items, asked = read_items(films / "test.jsonl"), []

    def ask(pictures, text):
        asked.append((len(pictures), text))
        return generated_films.looking(pictures, text)

    told = []
    rows = evaluate({"one": ask}, items, films, tmp_path, frames=2, tell=told.append)
    assert len(asked) == 2 * len(items)
    assert told[-1] == f"question {len(items)} of {len(items)}"
    assert not any("subtitles" in text for _, text in asked[::2])
    assert any("subtitles" in text for _, text in asked[1::2])
    path = tmp_path / "answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-4]) + '{"cut')
    asked.clear()
    assert evaluate({"one": ask}, items, films, tmp_path, frames=2) == rows
    assert len(asked) == 4
    assert path.read_text() == "".join(lines)
    with pytest.raises(VlmError, match="holds answers of other questions"):
        evaluate({"one": ask}, items, films, tmp_path, frames=3)
    page = write_report(rows, items, tmp_path)
    assert page.read_text().startswith("| model | group | questions | without subtitles | with subtitles |")
    told = json.loads((tmp_path / "one_with_subtitles.json").read_text())
    assert [len(one["questions"]) for one in told] == [3, 3, 3]
    assert told == template([json.loads(line) for line in lines[1:]], items, "one", subtitles=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = llava_folder(tmp_path_factory.mktemp("llava"))
    Asker(folder)  # so that no test is charged with the imports
    return folder


def test_a_model_and_its_methods_are_asked_by_the_command(films, model, tmp_path, capsys):
    few = films / "few.jsonl"
    few.write_text("".join((films / "test.jsonl").read_text().splitlines(keepends=True)[:1]))
    words = {"model": model, "methods": "fastv", "keep": "0.5", "out": tmp_path, "words": 1, "frames": 2}
    vlm_bench(few, **words, benchmark="video-mme")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "video_mme.md")
    lines = (tmp_path / "video_mme.md").read_text().splitlines()[2:5]
    assert [line.split("|")[1].strip() for line in lines] == ["full", "fastv 0.5", "random 0.5"]
    with pytest.raises(typer.Exit):
        vlm_bench(few, **words, benchmark="mme")
    assert "--benchmark takes video-mme, got 'mme'; leave it out" in " ".join(capsys.readouterr().err.split())


def test_errors(films, tmp_path, monkeypatch):
    with pytest.raises(VlmError, match=r"film x is not in .*, nor below its data or videos; put x.mp4 there"):
        film(tmp_path, ITEM)
    with pytest.raises(VlmError, match="someone to ask, a question and a setting are needed, got 1, 0 and 2"):
        evaluate({"one": str}, [], tmp_path, tmp_path)
    with pytest.raises(VlmError, match="right must be in 0 to asked, and asked at least 1, got 3 and 2"):
        wilson(3, 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VlmError, match=r"films are read by PyAV, which is not installed; pip install .*video"):
        looked_at(films / "data" / "film001.mp4", 1)
