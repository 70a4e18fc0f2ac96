"""Methods side by side on a file of questions: seconds of prefill and decoding, bytes of cache, answers.

A file of questions holds one JSON object a line: "pictures", paths beside the file; "question"; and "answer", if it is
known. All methods answer a question in turn before the next one is asked, so that a busy moment of the machine meets
all of them. What was answered is kept in the folder of the report, and a run that was stopped goes on.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from statistics import mean, median, quantiles
from typing import TYPE_CHECKING, Any

from foveal.measure.frontier import Point, frontier, scatter
from foveal.runtime.machine import cpu_model
from foveal.vlm.method import VlmError, make

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from foveal.vlm.answer import Answer, Asker

__all__ = ["Question", "Row", "bench", "is_right", "kept_answers", "read_questions", "to_markdown", "write_bench"]

HEAD = (
    "method",
    "keep",
    "tokens a layer",
    "prefill, s",
    "quartiles",
    "of full",
    "decode, s",
    "cache, kB",
    "answers, %",
)


@dataclass(frozen=True)
class Question:
    """A question about pictures.

    Args:
        pictures: paths.
        question: the question.
        answer: the right answer; "" if it is not known.
    """

    pictures: tuple[str, ...]
    question: str
    answer: str = ""


@dataclass(frozen=True)
class Row:
    """What a method took and gave.

    Args:
        method: its name, "full" for the untouched model.
        keep: share of the visual tokens behind the last cut.
        read: tokens that a layer read, mean.
        prefill: seconds to the first word: lower quartile, median, upper quartile.
        ratio: median of prefill over that of the untouched model on the same question.
        decode: seconds of the other words, median.
        cache: bytes of keys and values, mean.
        right: share of right answers in percent; None if no answer is known.
        same: share of answers that are those of the untouched model, percent.
    """

    method: str
    keep: float
    read: float
    prefill: tuple[float, float, float]
    ratio: float
    decode: float
    cache: float
    right: float | None
    same: float

    @property
    def quality(self) -> float:
        """Share of right answers, or of those of the untouched model where none is known, percent."""
        return self.same if self.right is None else self.right


def read_questions(path: Path) -> list[Question]:
    """Questions of a file.

    Args:
        path: file of JSON lines.

    Returns:
        The questions, with paths of pictures from where the command runs.

    Raises:
        VlmError: no file, no question, a line that is none, or a picture that is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VlmError(f"{path} cannot be read ({error}); name a file of JSON lines") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            pictures, asked, answer = given["pictures"], given["question"], given.get("answer", "")
            good = isinstance(pictures, list) and pictures and all(isinstance(p, str) for p in pictures)
        except (ValueError, KeyError, TypeError, AttributeError):
            good = False
        if not good or not isinstance(asked, str) or not isinstance(answer, str) or not asked.strip():
            raise VlmError(
                f"line {number} of {path} is no question; wanted is "
                '{"pictures": ["a.jpg"], "question": "…"}, with "answer" if it is known'
            )
        places = tuple(str(path.parent / picture) for picture in pictures)
        if missing := [place for place in places if not Path(place).is_file()]:
            raise VlmError(f"line {number} of {path} names {missing[0]}, which is not there; paths are from that file")
        found.append(Question(places, asked, answer))
    if not found:
        raise VlmError(f"{path} holds no question; write one JSON object a line")
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def is_right(said: str, wanted: str) -> bool:
    """Whether an answer begins with the words of the right one; case and punctuation do not count.

    Args:
        said: the answer.
        wanted: the right one.

    Returns:
        Whether it does.
    """
    words = _words(wanted)
    return bool(words) and _words(said)[: len(words)] == words


def kept_answers(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Answers of an earlier run with the same settings, without a last line that a stop cut short.

    Args:
        path: file of answers; one that holds the settings alone is begun if there is none.
        settings: what must be the same, for JSON.

    Returns:
        The answers, in the order in which they were given.

    Raises:
        VlmError: a file of a run with other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = json.dumps(settings) + "\n"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    if whole and whole[0] != begun:
        raise VlmError(f"{path} holds answers of other questions, methods or shares; name another folder with -o")
    path.write_text("".join(whole or [begun]), encoding="utf-8")
    return [json.loads(line) for line in whole[1:]]


def _row(method: str, keep: float, answers: list[dict[str, Any]], full: list[dict[str, Any]], wanted: list[str]) -> Row:
    times = [answer["prefill"] for answer in answers]
    lower, middle, upper = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    known = [(answer["text"], right) for answer, right in zip(answers, wanted, strict=True) if right]
    pairs = list(zip(answers, full, strict=True))
    return Row(
        method=method,
        keep=keep,
        read=mean(answer["read"] for answer in answers),
        prefill=(lower, middle, upper),
        ratio=median(a["prefill"] / b["prefill"] for a, b in pairs),
        decode=median(answer["decode"] for answer in answers),
        cache=mean(answer["cache"] for answer in answers),
        right=100 * mean(is_right(said, right) for said, right in known) if known else None,
        same=100 * mean(a["text"] == b["text"] for a, b in pairs),
    )


def bench(
    asker: Asker,
    questions: Sequence[Question],
    methods: Sequence[str],
    keeps: Sequence[float],
    folder: Path,
    *,
    words: int = 16,
    tell: Callable[[str], None] | None = None,
) -> list[Row]:
    """Ask every question of the untouched model and by every method with every share.

    Args:
        asker: the model.
        questions: at least one.
        methods: names of methods; "random", the floor, is always among them.
        keeps: shares of the visual tokens, each in (0, 1].
        folder: folder of what was answered; a run with the same arguments goes on there.
        words: most tokens of an answer.
        tell: function that is told how far it is.

    Returns:
        The untouched model's row and one for each method and share.

    Raises:
        VlmError: no question, no share, a method or share that cannot be, or a folder of another run.
    """
    if not questions or not keeps:
        raise VlmError(f"at least one question and one share are needed, got {len(questions)} and {len(keeps)}")
    names = list(dict.fromkeys((*methods, "random")))
    for name in names:
        for keep in keeps:
            make(name, keep)
    asked = [("full", 1.0), *((name, keep) for name in names for keep in keeps)]
    settings = {
        "model": str(asker.folder),
        "questions": [asdict(q) | {"pictures": list(q.pictures)} for q in questions],
        "asked": [list(pair) for pair in asked],
        "words": words,
    }
    done = kept_answers(folder / "answers.jsonl", settings)
    asker(questions[0].pictures, questions[0].question, "full", words=1)  # so that no first call is timed
    begun, before = time.perf_counter(), len(done)
    with (folder / "answers.jsonl").open("a", encoding="utf-8") as file:
        for number in range(len(done), len(questions) * len(asked)):
            question, (name, keep) = questions[number // len(asked)], asked[number % len(asked)]
            share = None if name == "full" else keep
            answer: Answer = asker(question.pictures, question.question, name, share, words=words)
            told = answer.to_dict()
            done.append({key: told[key] for key in ("text", "read", "prefill", "decode", "cache")})
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
            if tell is not None and (number + 1) % len(asked) == 0:
                each = (time.perf_counter() - begun) / (len(done) - before)
                left = each * (len(questions) * len(asked) - len(done))
                tell(f"question {number // len(asked) + 1} of {len(questions)}, {left:.0f} s left")
    wanted = [question.answer for question in questions]
    full = done[:: len(asked)]
    return [_row(*pair, done[i :: len(asked)], full, wanted) for i, pair in enumerate(asked)]


def _cells(row: Row) -> tuple[str, ...]:
    lower, middle, upper = row.prefill
    return (
        row.method,
        f"{row.keep:g}",
        f"{row.read:.0f}",
        f"{middle:.3g}",
        f"{lower:.3g}–{upper:.3g}",
        f"{row.ratio:.2f}",
        f"{row.decode:.3g}",
        f"{row.cache / 1000:.1f}",
        f"{row.quality:.1f}",
    )


def _about(rows: Sequence[Row], model: str, count: int, threads: int) -> str:
    what = "right answers" if rows[0].right is not None else "answers that are the untouched model's"
    return (
        f"{model}, {count} questions, {cpu_model()}, {threads} threads, {datetime.now(UTC).date().isoformat()}. "
        "Prefill: seconds to the first word with the pictures' features, median; of full: the same over the untouched "
        "model's on the same question, median. Cache: mean bytes of keys and values in the end. Answers: "
        f"{what}. Random dropping is the floor: a method that is not above it at its share is not worth its name here."
    )


def to_markdown(rows: Sequence[Row], *, model: str, count: int, threads: int) -> str:
    """The report as Markdown.

    Args:
        rows: as `bench` gives them.
        model: name of the model.
        count: number of questions.
        threads: processor threads.

    Returns:
        Text with a table.
    """
    lines = [f"| {' | '.join(_cells(row))} |" for row in rows]
    head = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    return "\n".join([*head, *lines, "", _about(rows, model, count, threads)])


def write_bench(rows: Sequence[Row], folder: Path, *, model: str, count: int, threads: int) -> Path:
    """Write `vlm.html`, with a plot of answers against prefill, `vlm.md` and `vlm.json`.

    Args:
        rows: as `bench` gives them.
        folder: where to.
        model: name of the model.
        count: number of questions.
        threads: processor threads.

    Returns:
        Path of the page.
    """
    (folder / "vlm.md").write_text(to_markdown(rows, model=model, count=count, threads=threads) + "\n", "utf-8")
    told = {"model": model, "questions": count, "processor": cpu_model(), "threads": threads}
    told |= {"date": datetime.now(UTC).date().isoformat(), "rows": [asdict(row) for row in rows]}
    (folder / "vlm.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    names = [row.method if row.method == "full" else f"{row.method} {row.keep:g}" for row in rows]
    points = [
        Point(name, row.prefill[1], row.quality, row.prefill[0], row.prefill[2])
        for name, row in zip(names, rows, strict=True)
    ]
    kept = frontier(points)
    points = [Point(p.name, p.cost, p.quality, p.lower, p.upper, on) for p, on in zip(points, kept, strict=True)]
    head = "".join(f"<th>{escape(word)}</th>" for word in HEAD)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) + "</tr>" for row in rows)
    page = folder / "vlm.html"
    page.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Visual tokens</title>\n'
        "<style>body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
        "td,th{padding:.3em .6em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child"
        "{text-align:left}</style></head>\n"
        f"<body><h1>Visual tokens</h1>\n{scatter(points, cost='seconds to the first word', quality='answers, %')}\n"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n"
        f"<p>{escape(_about(rows, model, count, threads))} Filled points are on the frontier.</p></body></html>\n",
        encoding="utf-8",
    )
    return page
