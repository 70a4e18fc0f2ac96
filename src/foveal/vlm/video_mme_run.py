"""Video-MME asked: frames and subtitles of films, every question in each setting, and the files of the report.

    items = read_items(Path("video_mme/test.jsonl"))
    rows = evaluate({"full": by(Asker("models/llava"))}, items, Path("video_mme"), Path("out"), frames=8)
    write_report(rows, items, Path("out"))

Films are `NAME.mp4` in the folder, or in its `data` or `videos`; subtitles are `subtitle/NAME.srt`. What is asked and
how it is scored says `foveal.vlm.video_mme`.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from foveal.vlm.bench import kept_answers
from foveal.vlm.method import VlmError
from foveal.vlm.video_mme import Item, Row, prompt, read_items, tabulate, to_markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from foveal.vlm.answer import Asker

    Ask = Callable[[Sequence[Any], str], str]

__all__ = ["Cue", "bench_films", "by", "cues", "evaluate", "film", "looked_at", "template", "write_report"]

SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".mov", ".avi")


@dataclass(frozen=True)
class Cue:
    """A subtitle.

    Args:
        begins: second at which it appears.
        ends: second at which it is gone.
        text: what it says.
    """

    begins: float
    ends: float
    text: str


def film(folder: Path, item: Item) -> Path:
    """The film of a question.

    Args:
        folder: folder that holds the films, by themselves or below `data` or `videos`.
        item: the question.

    Returns:
        Path of the film.

    Raises:
        VlmError: there is none.
    """
    places = (folder / below / f"{item.videoID}{suffix}" for below in ("", "data", "videos") for suffix in SUFFIXES)
    if found := next((place for place in places if place.is_file()), None):
        return found
    raise VlmError(
        f"film {item.videoID} is not in {folder}, nor below its data or videos; put {item.videoID}.mp4 there, "
        "or leave its questions out of the file"
    )


def cues(folder: Path, item: Item) -> list[Cue]:
    """Subtitles of a film, without the tags in them.

    Args:
        folder: folder that holds `subtitle/NAME.srt`.
        item: a question about the film.

    Returns:
        Subtitles; none if there is no file.

    Raises:
        VlmError: a file whose times cannot be read.
    """
    path = folder / "subtitle" / f"{item.videoID}.srt"
    if not path.is_file():
        return []
    found = []
    for block in re.split(r"\r?\n\s*\r?\n", path.read_text(encoding="utf-8-sig")):
        if not block.strip():
            continue
        times = re.search(r"(\d+):(\d\d):(\d\d)[,.](\d+)\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d+)[^\n]*", block)
        if times is None:
            raise VlmError(f"{path} has a subtitle without times ({block[:40]!r}); wanted is 00:00:01,000 --> …")
        begins, ends = (
            int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{part}")
            for hours, minutes, seconds, part in (times.groups()[:4], times.groups()[4:])
        )
        text = " ".join(re.sub(r"<[^>]*>", "", block[times.end() :]).split())
        if text:
            found.append(Cue(begins, ends, text))
    return found


def looked_at(path: Path, count: int) -> list[tuple[float, Any]]:
    """Frames spread evenly over a film.

    Args:
        path: the film.
        count: number of frames, N.

    Returns:
        One to N pairs of a time in seconds and pixels, (H, W, 3), uint8 or uint16.

    Raises:
        VlmError: fewer than one frame, or PyAV is not installed.
    """
    if count < 1:
        raise VlmError(f"frames must be at least 1, got {count}; 8 is usual for small models")
    try:
        from foveal.runtime.film.source import header, rgb, spread

        found = header(path)
    except ModuleNotFoundError:
        from foveal._install import install_hint

        raise VlmError(f"films are read by PyAV, which is not installed; {install_hint('video')}") from None
    return [(float(shot.pts * found.time_base), rgb(shot, found)) for shot in spread(path, found, count)]


def by(asker: Asker, method: str = "full", keep: float | None = None, *, words: int = 16) -> Ask:
    """A loaded model as `evaluate` asks it.

    Args:
        asker: the model.
        method: name of a method that drops visual tokens, "full" for none.
        keep: share of the visual tokens that it leaves.
        words: most tokens of an answer.

    Returns:
        Function from pictures and a prompt to what the model says.
    """
    return lambda pictures, asked: asker(pictures, asked, method, keep, words=words).text


def evaluate(
    asks: Mapping[str, Ask],
    items: Sequence[Item],
    films: Path,
    folder: Path,
    *,
    frames: int = 8,
    subtitles: Sequence[bool] = (False, True),
    tell: Callable[[str], None] | None = None,
) -> list[Row]:
    """Ask every question in each setting; a run that was stopped goes on.

    Args:
        asks: name → function from pictures and a prompt to an answer; all answer a question before the next one.
        items: questions; the frames of a film are read once for those that stand together.
        films: folder of the films and their subtitles.
        folder: folder of what was answered.
        frames: frames of a film, N.
        subtitles: settings, without subtitles and with those of the frames' times.
        tell: function that is told how far it is.

    Returns:
        Rows, as `tabulate` gives them.

    Raises:
        VlmError: no question, nobody to ask, no setting, a film that is not there, or a folder of another run.
    """
    if not (asks and items and subtitles):
        raise VlmError(
            f"someone to ask, a question and a setting are needed, got {len(asks)}, {len(items)} and {len(subtitles)}"
        )
    paths = {item.videoID: film(films, item) for item in items}
    asked = json.dumps([asdict(item) for item in items])
    settings = {"asked": list(asks), "questions": sha256(asked.encode()).hexdigest(), "frames": frames}
    done = kept_answers(folder / "answers.jsonl", settings | {"subtitles": list(subtitles)})
    todo = [(item, shown, name) for item in items for shown in subtitles for name in asks]
    last, seen, said = "", [], []
    with (folder / "answers.jsonl").open("a", encoding="utf-8") as file:
        for number in range(len(done), len(todo)):
            item, shown, name = todo[number]
            if item.videoID != last:
                last, seen, spoken = item.videoID, looked_at(paths[item.videoID], frames), cues(films, item)
                said = [cue.text for cue in spoken if any(cue.begins <= at < cue.ends for at, _ in seen)]
            answer = asks[name]([pixels for _, pixels in seen], prompt(item, said if shown else ()))
            done.append({"question_id": item.question_id, "subtitles": shown, "by": name, "response": answer})
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
            if tell is not None and (number + 1) % (len(asks) * len(subtitles)) == 0:
                tell(f"question {(number + 1) // (len(asks) * len(subtitles))} of {len(items)}")
    return tabulate(done, items)


def template(answers: Sequence[Mapping[str, Any]], items: Sequence[Item], name: str, *, subtitles: bool) -> list[Any]:
    """Answers as the authors' script reads them, nested by film.

    Args:
        answers: lines of `answers.jsonl` behind the first.
        items: the questions.
        name: whose answers.
        subtitles: in which setting.

    Returns:
        What their `output_test_template.json` holds, for `json.dump`.
    """
    said = {a["question_id"]: a["response"] for a in answers if a["by"] == name and a["subtitles"] == subtitles}
    films: dict[str, dict[str, Any]] = {}
    for item in items:
        common = {field: getattr(item, field) for field in ("video_id", "duration", "domain", "sub_category")}
        asked = {field: getattr(item, field) for field in ("question_id", "task_type", "question", "answer")}
        made = films.setdefault(item.video_id, common | {"missing": False, "questions": []})
        made["questions"].append(asked | {"options": list(item.options), "response": said[item.question_id]})
    return list(films.values())


def write_report(rows: Sequence[Row], items: Sequence[Item], folder: Path) -> Path:
    """Write `video_mme.md`, `video_mme.json`, and a file of answers for the authors' script for each model and setting.

    Args:
        rows: as `evaluate` gives them.
        items: the questions.
        folder: folder that `evaluate` wrote to.

    Returns:
        Path of the Markdown.
    """
    told = [asdict(row) | {"accuracy": row.accuracy, "interval": row.interval} for row in rows]
    (folder / "video_mme.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    answers = [json.loads(line) for line in lines]
    for name, shown in dict.fromkeys((row.by, row.subtitles) for row in rows):
        made = template(answers, items, name, subtitles=shown)
        stem = re.sub(r"[^\w.]+", "_", name)
        path = folder / f"{stem}_{'with' if shown else 'without'}_subtitles.json"
        path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    page = folder / "video_mme.md"
    page.write_text(to_markdown(rows) + "\n", encoding="utf-8")
    return page


def bench_films(
    model: Path,
    questions: Path,
    methods: Sequence[str],
    keeps: Sequence[float],
    folder: Path,
    *,
    frames: int = 8,
    words: int = 16,
    tell: Callable[[str], None] | None = None,
) -> Path:
    """`foveal vlm-bench --benchmark video-mme`: the untouched model and every method with every share.

    Args:
        model: folder of the model.
        questions: file of the set; films and subtitles stand beside it.
        methods: names of methods; "random", the floor, is always among them.
        keeps: shares of the visual tokens, each in (0, 1].
        folder: folder of the report; a stopped run goes on there.
        frames: frames of a film.
        words: most tokens of an answer.
        tell: function that is told how far it is.

    Returns:
        Path of the report in Markdown.
    """
    from foveal.vlm.answer import Asker

    items = read_items(questions)
    for item in items:  # before the model is loaded
        film(questions.parent, item)
    asker = Asker(model)
    asks = {"full": by(asker, words=words)}
    for name in dict.fromkeys((*methods, "random")):
        asks |= {f"{name} {keep:g}": by(asker, name, keep, words=words) for keep in keeps}
    rows = evaluate(asks, items, questions.parent, folder, frames=frames, tell=tell)
    return write_report(rows, items, folder)
