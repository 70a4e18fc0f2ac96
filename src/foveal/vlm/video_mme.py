"""Video-MME: four-option questions about films, answered from a few frames, with and without what is said in them.

*Source*: C. Fu et al., "Video-MME: The First-Ever Comprehensive Evaluation Benchmark of Multi-modal LLMs in Video
Analysis", CVPR 2025 (arXiv:2405.21075), section 3 and the authors' page of the evaluation. 900 films, short, medium and
long, from 6 domains and 30 fields, three questions each, 744 films with subtitles.

    frames     N of a film, evenly spread
    subtitles  those shown at the times of these frames, if the setting is "with"
    prompt     [subtitles] instruction, question, four options, "The best answer is:"
    accuracy   right / asked, with Wilson's interval of 95 %, by duration, domain, field and task, in both settings

*Differs from the paper*: an answer that names no option counts as wrong; the authors' script leaves it out of the
count. An option is named by its letter standing by itself, or by its text; the authors' script takes the first of the
characters A, B, C and D, which reads "Answer: C. Jade.", from their own template, as A. `as_authors` is their rule, and
`foveal.vlm.video_mme_run`, which reads films and asks, writes answers as their script reads them, too. A frame stands
for the middle of its share of the film. Sound is not used.
*Provenance*: written from the paper, the page of the evaluation and the fields of the published set. `as_authors`
equals the authors' function on 20,000 random answers, and for 2,700 answers that can be read their script (the last one
in their repository, 4e7566d) prints the accuracies of all 44 groups of `tabulate`.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from foveal.cases import Procedure
from foveal.record import Method, Paper
from foveal.vlm.method import VlmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "DOMAINS", "DURATIONS", "TASKS", "Item", "Row", "as_authors", "letter", "prompt", "read_items", "tabulate",
    "to_markdown", "wilson",
]  # fmt: skip

DURATIONS = ("short", "medium", "long")  # up to 2 minutes, 4 to 15, 30 to 60
# fmt: off
DOMAINS = {
    "Knowledge": (
        "Humanity & History", "Literature & Art", "Biology & Medicine", "Finance & Commerce", "Astronomy", "Geography",
        "Law", "Life Tip", "Technology",
    ),
    "Film & Television": ("Animation", "Movie & TV Show", "Documentary", "News Report"),
    "Sports Competition": ("Esports", "Basketball", "Football", "Athletics", "Other Sports"),
    "Artistic Performance": ("Stage Play", "Magic Show", "Variety Show", "Acrobatics"),
    "Life Record": ("Handicraft", "Food", "Fashion", "Daily Life", "Travel", "Pet & Animal", "Exercise"),
    "Multilingual": ("Multilingual",),
}
TASKS = (
    "Temporal Perception", "Spatial Perception", "Attribute Perception", "Action Recognition", "Object Recognition",
    "OCR Problems", "Counting Problem", "Temporal Reasoning", "Spatial Reasoning", "Action Reasoning",
    "Object Reasoning", "Information Synopsis",
)
# fmt: on
LETTERS = "ABCD"
GROUPS = ("all", "duration", "domain", "sub_category", "task_type")
_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


@dataclass(frozen=True)
class Item:
    """A question of the set; the fields are those of the published files.

    Args:
        video_id: number of the film, "001".
        duration: "short", "medium" or "long".
        domain: one of `DOMAINS`.
        sub_category: field within the domain.
        videoID: name of the film's file without suffix.
        question_id: "001-1".
        task_type: one of `TASKS`.
        question: the question.
        options: four, each with its letter: "A. Apples.".
        answer: letter of the right one.
        url: address of the film.

    Raises:
        VlmError: another duration, other than four options with letters, or an answer that is none of them.
    """

    video_id: str
    duration: str
    domain: str
    sub_category: str
    videoID: str  # noqa: N815 - the published name
    question_id: str
    task_type: str
    question: str
    options: tuple[str, ...]
    answer: str
    url: str = ""

    def __post_init__(self) -> None:
        lettered = [option[:2] for option in self.options] == [f"{one}." for one in LETTERS]
        if self.duration not in DURATIONS or not lettered or self.answer not in tuple(LETTERS):
            raise VlmError(
                f"question {self.question_id} must have a duration of {', '.join(DURATIONS)}, options 'A. …' to 'D. …' "
                f"and one of these letters as answer, got {self.duration!r}, {list(self.options)} and {self.answer!r}"
            )


@dataclass(frozen=True)
class Row:
    """Answers of one model to one group of questions.

    Args:
        by: name of the model.
        subtitles: whether subtitles were shown.
        kind: one of `GROUPS`.
        group: name of the group.
        asked: number of questions.
        right: number of right answers.
        unread: number of answers that name no option.
    """

    by: str
    subtitles: bool
    kind: str
    group: str
    asked: int
    right: int
    unread: int

    @property
    def accuracy(self) -> float:
        """Right answers, percent."""
        return 100 * self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 %, percent."""
        low, high = wilson(self.right, self.asked)
        return 100 * low, 100 * high


def wilson(right: int, asked: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share, with p = right / asked: (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).

    Args:
        right: number of right answers.
        asked: number of questions, n.
        z: quantile of the normal distribution; 1.96 for 95 %, 2.576 for 99 %.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        VlmError: no question, or more right answers than questions.
    """
    if asked < 1 or not 0 <= right <= asked:
        raise VlmError(f"right must be in 0 to asked, and asked at least 1, got {right} and {asked}")
    share, part = right / asked, z**2 / asked
    middle, half = share + part / 2, z * (share * (1 - share) / asked + part / (4 * asked)) ** 0.5
    return max(0.0, (middle - half) / (1 + part)), min(1.0, (middle + half) / (1 + part))


def _tables(path: Path) -> list[Any]:
    """Rows of a file: the published parquet, a JSON list, or JSON lines."""
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise VlmError(
                f"{path} is Parquet, which takes pyarrow; pip install pyarrow, or write its rows as JSON lines"
            ) from None
        rows: list[Any] = parquet.read_table(path).to_pylist()
        return rows
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        listed: list[Any] = json.loads(text)
        return listed
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def read_items(path: Path) -> list[Item]:
    """Questions of a file in the schema of the published set, or nested by film as in the authors' template.

    Args:
        path: Parquet, a JSON list or JSON lines.

    Returns:
        The questions; those of a film stand together, in the order of the file.

    Raises:
        VlmError: a file that cannot be read, holds no question, or one twice, or an entry that is none.
    """
    try:
        rows = _tables(path)
    except (OSError, ValueError) as error:
        if isinstance(error, VlmError):
            raise
        raise VlmError(f"{path} cannot be read ({error}); name the set's Parquet file, JSON or JSON lines") from None
    found: dict[str, list[Item]] = {}
    for number, row in enumerate(rows, 1):
        try:
            common = {name: value for name, value in row.items() if name != "questions"}
            for asked in row.get("questions", [{}]):
                fields = {"videoID": common.get("video_id"), "url": ""} | common | asked
                fields["options"] = tuple(fields["options"])
                item = Item(**{name: fields[name] for name in Item.__annotations__})
                found.setdefault(item.videoID, []).append(item)
        except (KeyError, TypeError, AttributeError) as error:
            raise VlmError(
                f"entry {number} of {path} is no question of Video-MME ({error}); wanted are the fields "
                f"{', '.join(Item.__annotations__)}"
            ) from None
    items = [item for film_items in found.values() for item in film_items]
    names = [item.question_id for item in items]
    if not items or len(set(names)) < len(names):
        twice = next((name for name in names if names.count(name) > 1), "")
        what = f"holds question {twice} twice; leave one" if items else "holds no question; name the set's file"
        raise VlmError(f"{path} {what}")
    return items


def prompt(item: Item, said: Sequence[str] = ()) -> str:
    """What a model is asked, in the words of the authors' evaluation.

    Args:
        item: the question.
        said: subtitles; none for the setting without.

    Returns:
        Text.
    """
    head = ["This video's subtitles are listed below:", *said] if said else []
    return "\n".join((*head, _INSTRUCTION, item.question, *item.options, "The best answer is:"))


def as_authors(answer: str) -> str:
    """The letter of an answer by the rule of the authors' script: the first of the characters A, B, C and D.

    Args:
        answer: what a model said.

    Returns:
        Letter, "" if there is none.
    """
    # The last two are as their script has them: two pairs of texts without a comma between.
    for begin in (
        "The best answer is", "The correct answer is", "The answer is", "The answer",
        "The best option isThe correct option is", "Best answer:Best option:",
    ):  # fmt: skip
        answer = answer.replace(begin, "")
    found = re.search("[ABCD]", answer)
    return found[0] if found else ""


def letter(answer: str, options: Sequence[str] = ()) -> str:
    """The letter of an answer.

    Args:
        answer: what a model said.
        options: the options, "A. …"; an answer without a letter may be the text of one.

    Returns:
        Letter, that at the beginning if there is one; "" for an answer that names no option, or two.
    """
    text = answer.strip().strip("*`\"' ")
    texts = {option[0]: option[2:].strip(" .").lower() for option in options}
    if named := [one for one, option in texts.items() if option and text.strip(" .").lower() == option]:
        return named[0]
    if found := re.match(r"[(\[]?([A-D])(?:[)\].:,]|\s*$|\s+[-–])", text):
        return found[1]
    if found := re.search(r"(?i:\b(?:answer|option|choice)\b(?:\s+is)?)\s*:?\s*[*(\[]*([A-D])\b", text):
        return found[1]
    # "A" may be an article: it counts where nothing or a mark follows
    alone = set(re.findall(r"(?<![\w'])(?:([B-D])(?![\w'])|(A)(?=\s*(?:[).:,\]]|$)))", text))
    letters = {b or a for b, a in alone}
    if not letters:
        letters = {one for one, option in texts.items() if option and option in text.lower()}
    return letters.pop() if len(letters) == 1 else ""


def tabulate(
    answers: Sequence[Mapping[str, Any]], items: Sequence[Item], *, rule: Callable[[str, Sequence[str]], str] = letter
) -> list[Row]:
    """Count right answers by group.

    Args:
        answers: "question_id", "subtitles", "by" and "response" of each.
        items: the questions.
        rule: function from an answer and the options to a letter.

    Returns:
        Rows by model, setting and group, in the order in which they first appear.
    """
    of = {item.question_id: item for item in items}
    counts: dict[tuple[str, bool, str, str], list[int]] = {}
    for answer in answers:
        item = of[answer["question_id"]]
        read = rule(answer["response"], item.options)
        for kind in GROUPS:
            group = "all" if kind == "all" else str(getattr(item, kind))
            count = counts.setdefault((answer["by"], answer["subtitles"], kind, group), [0, 0, 0])
            for place, what in enumerate((True, read == item.answer, read == "")):
                count[place] += what
    return [Row(*key, *count) for key, count in counts.items()]


def to_markdown(rows: Sequence[Row], *, kinds: Sequence[str] = GROUPS) -> str:
    """The report as Markdown: a line a group and model, a column a setting.

    Args:
        rows: as `tabulate` gives them.
        kinds: kinds of groups to show.

    Returns:
        Text with a table.
    """
    settings = sorted({row.subtitles for row in rows})
    head = ["model", "group", "questions", *("with subtitles" if s else "without subtitles" for s in settings)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    cell = {(row.kind, row.group, row.by, row.subtitles): row for row in rows}
    for kind in kinds:
        for group, name in dict.fromkeys((row.group, row.by) for row in rows if row.kind == kind):
            found = [cell[kind, group, name, setting] for setting in settings]
            told = [f"{r.accuracy:.1f} % ({r.interval[0]:.1f}–{r.interval[1]:.1f})" for r in found]
            lines.append(f"| {' | '.join([name, group, str(found[0].asked), *told])} |")
    unread = sum(row.unread for row in rows if row.kind == "all")
    return "\n".join([
        *lines, "",
        "Right answers with Wilson's interval of 95 %; chance is 25 %. A film without subtitles is asked alike in both "
        f"settings. {unread} answers named no option and count as wrong.",
    ])  # fmt: skip


def _guessed(seed: int, *, count: int = 40) -> list[float]:
    draw = random.Random(seed)
    options = tuple(f"{one}. {one.lower()}" for one in LETTERS)
    items = [
        Item(
            f"{i:03}", DURATIONS[i % 3], "Law", "Law", f"{i}", f"{i}", TASKS[i % 12], "?", options, draw.choice(LETTERS)
        )
        for i in range(count)
    ]
    said = [
        {"question_id": i.question_id, "subtitles": False, "by": "guess", "response": draw.choice(LETTERS)}
        for i in items
    ]
    rows = tabulate(said, items)
    return [*wilson(sum(row.right for row in rows if row.kind == "all"), len(items)), *(row.accuracy for row in rows)]


METHOD = Method(
    id=5,
    name="Video-MME",
    kind="benchmark",
    summary="Four-option questions about films, from a few frames, scored by duration, domain and subtitles.",
    paper=Paper(
        "Video-MME: The First-Ever Comprehensive Evaluation Benchmark of Multi-modal LLMs in Video Analysis",
        "C. Fu et al.",
        2025,
        "arXiv:2405.21075",
    ),
    cases={
        "guesser": Procedure(
            _guessed, partial(_guessed, 0, count=0), refuses="right must be in 0 to asked, and asked at least 1"
        )
    },
)
