"""Evidence for Video-MME: 900 generated films, asked of those who know, who guess, and who look."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.evidence.rehearsal import cached, rehearsing
from foveal.evidence.tasks import generated_films
from foveal.evidence.tasks.generated_films import Guesser, Knower, looking
from foveal.record import bound, equal
from foveal.vlm.video_mme import DOMAINS, DURATIONS, GROUPS, Item, Row, read_items
from foveal.vlm.video_mme_run import cues, evaluate, write_report

FRAMES, GUESSERS, EXPERT = 8, 3, "Knowledge"
SPREAD = 100 * 2.576 * (0.25 * 0.75 / (3 * generated_films.FILMS)) ** 0.5  # half of the interval of 99 %, points
REPORTS = ("video_mme.md", "video_mme.json", "looking_with_subtitles.json")


def _counts() -> Tensor:
    items = generated_films.items()
    films = {item.video_id: item for item in items}
    spoken = sum(any("word is said" in i.question for i in items[n : n + 3]) for n in range(0, len(items), 3))
    by_duration = Counter(item.duration for item in films.values())
    fields = {(item.domain, item.sub_category) for item in items}
    return torch.tensor(
        [len(items), len(films), spoken, len({d for d, _ in fields}), len(fields), *(by_duration[d] for d in DURATIONS)]
    )


def _asks(items: list[Item]) -> dict[str, Any]:
    expert = Knower([item for item in items if item.domain == EXPERT])
    guessers = {f"guess {seed}": Guesser(seed) for seed in range(GUESSERS)}
    return {"oracle": Knower(items), "expert": expert, "looking": looking, **guessers}


@cached(maxsize=1)
def _answered() -> tuple[list[Item], list[Row], list[dict[str, Any]]]:
    """Questions, rows and answers of all answerers to all films."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generated_films.write(folder, 12 if rehearsing() else generated_films.FILMS)
        items = read_items(folder / "test.jsonl")
        rows = evaluate(_asks(items), items, folder, folder / "out", frames=FRAMES)
        lines = (folder / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return items, rows, [json.loads(line) for line in lines]


def _accuracy(by: str, kind: str = "all", group: str = "all", *, subtitles: bool) -> float:
    key = (by, kind, group, subtitles)
    return next(r.accuracy for r in _answered()[1] if (r.by, r.kind, r.group, r.subtitles) == key)


def _least_of_the_oracle() -> float:
    """Its lowest accuracy in any group of any kind, percent."""
    return min(row.accuracy for row in _answered()[1] if row.by == "oracle")


def _off_chance() -> float:
    """How far the guesser that is farthest from a quarter is from it, in points."""
    found = [row.accuracy for row in _answered()[1] if row.by.startswith("guess") and row.kind == "all"]
    return max(abs(value - 25) for value in found)


def _said_gain() -> float:
    """What subtitles give one who looks, on the questions of what is said."""
    with_, without = (_accuracy("looking", "task_type", "Information Synopsis", subtitles=s) for s in (True, False))
    return with_ - without


def _missed() -> float:
    """What is missing in long films of the accuracy in short ones, points; one who looks, with subtitles."""
    short, _, long = (_accuracy("looking", "duration", name, subtitles=True) for name in DURATIONS)
    return short - long


def _expert_abroad() -> float:
    """How much better the expert is in its domain than in its best other one, points."""
    others = [_accuracy("expert", "domain", name, subtitles=False) for name in DOMAINS if name != EXPERT]
    return _accuracy("expert", "domain", EXPERT, subtitles=False) - max(others)


@cached(maxsize=2)
def _small(stop: int | None = None) -> tuple[list[Item], list[Row], list[dict[str, Any]], bytes]:
    """Six films asked, in one go or stopped behind some answers; questions, rows, answers and the reports' bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items, out = generated_films.write(folder, 6), folder / "out"
        ask = partial(evaluate, _asks(items), items, folder, out, frames=3)
        rows, path = ask(), out / "answers.jsonl"
        if stop is not None:
            kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[: stop + 1]
            path.write_text("".join(kept) + '{"cut', encoding="utf-8")
            rows = ask()
        write_report(rows, items, out)
        answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        return items, rows, answers, b"".join((out / report).read_bytes() for report in REPORTS)


def _bytes(stop: int | None = None) -> Tensor:
    return torch.tensor(list(_small(stop)[3]), dtype=torch.uint8)


def _table(*, plainly: bool) -> Tensor:
    """Questions and right answers in every group of every kind: by `tabulate`, or recounted one group at a time."""
    items, rows, answers, _ = _small()
    if not plainly:
        return torch.tensor([[row.asked, row.right] for row in rows])
    of, found = {item.question_id: item for item in items}, []
    for row in rows:
        mine = [a for a in answers if (a["by"], a["subtitles"]) == (row.by, row.subtitles)]
        mine = [a for a in mine if row.kind == "all" or getattr(of[a["question_id"]], row.kind) == row.group]
        right = 0
        for answer in mine:
            item = of[answer["question_id"]]
            text = item.options["ABCD".index(item.answer)][3:-1]
            right += answer["response"] in (item.answer, text, f"The answer is {item.answer}.")
        found.append([len(mine), right])
    return torch.tensor(found)


def _groups() -> Tensor:
    """Kinds of groups in which each of the settings has all the questions."""
    items, rows, *_ = _small()
    each = [
        sum(r.asked for r in rows if (r.by, r.kind, r.subtitles) == ("looking", kind, shown))
        for kind in GROUPS
        for shown in (False, True)
    ]
    return torch.tensor(each) - len(items)


def _heard() -> Tensor:
    """Words of the subtitles of a film of four parts that are shown beside one frame, in its middle."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = generated_films.write(folder, 3)
        asked: list[str] = []

        def listen(_: Any, prompt: str) -> str:
            asked.append(prompt)
            return "A"

        item = next(item for item in items if item.duration == "long")
        evaluate({"listen": listen}, [item], folder, folder / "out", frames=1, subtitles=(True,))
        parts = [cue.text in asked[0] for cue in cues(folder, item)]
    return torch.tensor(parts)


NEEDS = ("minutes",)
CLAIMS = (
    equal(
        "The generated set has the counts of the published one: questions, films, films with subtitles, domains, "
        "fields, and films of each duration.",
        paper="2,700, 900, 744, 6, 30, 300 each",
        ours=_counts,
        theirs=lambda: torch.tensor([2700, 900, 744, 6, 30, 300, 300, 300]),
        tolerance=0.0,
        clause=1,
    ),
    bound(
        "An oracle is right in every group, in both settings.",
        paper="",
        value=_least_of_the_oracle,
        at_least=100.0,
        unit="%",
        needs=NEEDS,
        clause=1,
    ),
    bound(
        "Three uniform guessers are within the binomial interval of 99 % around a quarter, in both settings.",
        paper="25 % by chance",
        value=_off_chance,
        at_most=SPREAD,
        unit="points",
        needs=NEEDS,
        clause=1,
    ),
    bound(
        "One who reads frames and prompt only names the square's colour in all films: pictures get through.",
        paper="",
        value=lambda: _accuracy("looking", "task_type", "Attribute Perception", subtitles=False),
        at_least=100.0,
        unit="%",
        needs=NEEDS,
        clause=1,
    ),
    equal(
        "Groups hold what a recount of the answers by hand finds.",
        ours=partial(_table, plainly=False),
        theirs=partial(_table, plainly=True),
        tolerance=0.0,
        clause=2,
    ),
    equal(
        "Every kind of group holds every question once in each setting.",
        ours=_groups,
        theirs=lambda: torch.zeros(2 * len(GROUPS), dtype=torch.int64),
        tolerance=0.0,
        clause=2,
    ),
    bound(
        "By domain: one who knows the answers of a single domain is at least 60 points better there than in any other.",
        paper="",
        value=_expert_abroad,
        at_least=60.0,
        unit="points",
        needs=NEEDS,
        clause=2,
    ),
    bound(
        "By duration: one who looks at 8 frames misses what is seen for a moment, and loses at least 15 points from "
        "short films to long ones.",
        paper="accuracy falls with duration",
        value=_missed,
        at_least=15.0,
        unit="points",
        needs=NEEDS,
        clause=2,
    ),
    bound(
        "By subtitles: the same gains at least 70 points from them where the question is what is said.",
        paper="subtitles help",
        value=_said_gain,
        at_least=70.0,
        unit="points",
        needs=NEEDS,
        clause=2,
    ),
    equal(
        "A run that was stopped behind 17 answers and went on writes the same reports, byte for byte.",
        ours=partial(_bytes, 17),
        theirs=_bytes,
        tolerance=0.0,
        clause=2,
    ),
    equal(
        "Of a film's four subtitles the one that is shown at the time of the frame is given.",
        paper="subtitles of the sampled frames",
        ours=_heard,
        theirs=lambda: torch.tensor([False, False, True, False]),
        tolerance=0.0,
        beyond="subtitles of the sampled frames only",
    ),
)
