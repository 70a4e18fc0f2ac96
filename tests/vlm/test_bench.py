import json

import pytest
from asked import llava_folder
from documents import ROOT

from foveal.vlm.answer import Asker
from foveal.vlm.bench import Question, Row, bench, is_right, read_questions, to_markdown, write_bench
from foveal.vlm.method import VlmError

DOGS, CLOCK = (str(ROOT / "samples" / f"{name}.png") for name in ("dogs", "clock"))


@pytest.fixture(scope="module")
def asker(tmp_path_factory):
    return Asker(llava_folder(tmp_path_factory.mktemp("llava")))


def test_every_method_is_asked_and_a_stopped_run_goes_on(asker, tmp_path):
    questions = [Question((DOGS,), "what is this?"), Question((CLOCK,), "what?", "never said")]
    told = []
    rows = bench(asker, questions, ["fastv"], [0.5, 0.25], tmp_path, words=2, tell=told.append)
    assert [(row.method, row.keep) for row in rows] == [
        ("full", 1.0), ("fastv", 0.5), ("fastv", 0.25), ("random", 0.5), ("random", 0.25),
    ]  # fmt: skip
    assert [line.split(",")[0] for line in told] == ["question 1 of 2", "question 2 of 2"]
    full = rows[0]
    assert (full.right, full.same, full.ratio) == (0.0, 100.0, 1.0)
    assert rows[2].read < rows[1].read < full.read
    assert rows[2].cache < full.cache
    assert all(row.prefill[0] <= row.prefill[1] <= row.prefill[2] for row in rows)

    kept = tmp_path / "answers.jsonl"
    lines = kept.read_text().splitlines()
    assert len(lines) == 1 + 10
    kept.write_text("\n".join(lines[:8]) + '\n{"text": "cut sho')
    told.clear()
    again = bench(asker, questions, ["fastv"], [0.5, 0.25], tmp_path, words=2, tell=told.append)
    assert kept.read_text().splitlines()[:8] == lines[:8]
    assert len(told) == 1
    assert [row.same for row in again] == [row.same for row in rows]
    text = kept.read_text()
    with pytest.raises(VlmError, match="holds answers of other questions, methods or shares; name another folder"):
        bench(asker, questions[:1], ["random"], [1.0], tmp_path, words=1)
    assert kept.read_text() == text


def test_the_report(tmp_path):
    rows = [
        Row("full", 1.0, 20, (0.9, 1.0, 1.1), 1.0, 0.5, 2000, None, 100.0),
        Row("<b>", 0.5, 12, (0.4, 0.5, 0.6), 0.5, 0.5, 1200, None, 75.0),
    ]
    page = write_bench(rows, tmp_path, model="tiny", count=4, threads=2).read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    told = json.loads((tmp_path / "vlm.json").read_text())
    assert [row["same"] for row in told["rows"]] == [100.0, 75.0]
    text = to_markdown(rows, model="tiny", count=4, threads=2)
    assert "| <b> | 0.5 | 12 | 0.5 | 0.4–0.6 | 0.50 | 0.5 | 1.2 | 75.0 |" in text
    assert "answers that are the untouched model's" in text


def test_an_answer_is_right_by_its_first_words():
    assert is_right("Stop.", "stop")
    assert is_right("A red bus, I think", "a Red bus")
    assert not is_right("no stop", "stop")
    assert not is_right("stopping", "stop")
    assert not is_right("anything", "")


def test_questions_are_read_from_beside_their_file(tmp_path):
    (tmp_path / "a.png").touch()
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"pictures": ["a.png"], "question": "what?"}\n\n{"pictures": ["a.png"], "question": "?", "answer": "b"}'
    )
    assert read_questions(path) == [
        Question((str(tmp_path / "a.png"),), "what?"),
        Question((str(tmp_path / "a.png"),), "?", "b"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "q.jsonl holds no question; write one JSON object a line"),
        ("[]", "line 1 of .* is no question; wanted is"),
        ('{"pictures": [], "question": "what?"}', "line 1 of .* is no question; wanted is"),
        ('{"pictures": ["a.png"], "question": " "}', "line 1 of .* is no question; wanted is"),
        (
            '\n{"pictures": ["b.png"], "question": "?"}',
            "line 2 of .* names .*b.png, which is not there; paths are from",
        ),
    ],
)
def test_questions_that_are_none(tmp_path, text, says):
    (tmp_path / "a.png").touch()
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(VlmError, match=says):
        read_questions(tmp_path / "q.jsonl")


def test_errors(asker, tmp_path):
    with pytest.raises(VlmError, match=r"cannot be read .*; name a file of JSON lines"):
        read_questions(tmp_path / "none")
    with pytest.raises(VlmError, match="at least one question and one share are needed, got 0 and 1"):
        bench(asker, [], ["fastv"], [0.5], tmp_path)
    with pytest.raises(VlmError, match="no method is called 'fast'"):
        bench(asker, [Question((DOGS,), "what?")], ["fast"], [0.5], tmp_path)
