"""Films with the schema of Video-MME, generated in milliseconds each, and answerers that look at them.

A film shows a square on grey, 32×32 pixels, which wanders to one side; one frame of it has a coloured border. Durations
are those of the set: short ones have 8 frames, one in 1.4 to 15 s, medium ones 16, long ones 48, so that of 8 frames
evenly spread the bordered one is always seen in a short film, and once in six times in a long one. Four fifths of
them have subtitles. Three questions each: the square's colour; the border's; the word that is said or, where there are
no subtitles, the way that the square takes. Options are shuffled.
"""

from __future__ import annotations

import json
import random
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.vlm.video_mme import DOMAINS, DURATIONS, Item

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FILMS", "Guesser", "Knower", "items", "looking", "write"]

FILMS = 900
FRAMES = {"short": 8, "medium": 16, "long": 48}
SECONDS = {"short": (11, 120), "medium": (240, 900), "long": (1800, 3600)}
COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (220, 210, 40)}
WAYS = ("to the left", "to the right", "upwards", "downwards")
WORDS = ("harbour", "lantern", "orchard", "glacier", "violin", "saddle", "pepper", "marble")
SIDE, SPOKEN = 32, 744  # pixels; films with subtitles among 900, all long ones


def _film(number: int, count: int, seed: int) -> dict[str, Any]:
    """What a film is about."""
    draw = random.Random(f"{seed} {number}")
    fields = [(domain, field) for domain, found in DOMAINS.items() for field in found]
    duration = DURATIONS[number * 3 // count]
    domain, field = fields[19 * number % len(fields)]  # a few films meet all domains
    spoken = duration == "long" or 37 * number % 600 < SPOKEN - 300
    return {
        "id": f"{number + 1:03}", "duration": duration, "domain": domain, "field": field, "spoken": spoken,
        "square": draw.choice(list(COLOURS)), "border": draw.choice(list(COLOURS)), "way": draw.choice(WAYS),
        "word": draw.choice(WORDS), "when": draw.randrange(FRAMES[duration]),
        "seconds": draw.randint(*SECONDS[duration]), "draw": draw,
    }  # fmt: skip


def _asked(film: Mapping[str, Any]) -> list[Item]:
    draw = film["draw"]
    found: list[Item] = []
    last: tuple[str, str, tuple[str, ...], str] = ("Which word is said", "word", WORDS, "Information Synopsis")
    if not film["spoken"]:
        last = ("Which way does the square move", "way", WAYS, "Action Recognition")
    for question, what, among, task in (
        ("Which colour has the square", "square", tuple(COLOURS), "Attribute Perception"),
        ("Which colour has the border that is seen for a moment", "border", tuple(COLOURS), "Temporal Perception"),
        last,
    ):
        texts = [film[what], *draw.sample([text for text in among if text != film[what]], 3)]
        draw.shuffle(texts)
        found.append(
            Item(
                video_id=film["id"],
                duration=film["duration"],
                domain=film["domain"],
                sub_category=film["field"],
                videoID=f"film{film['id']}",
                question_id=f"{film['id']}-{len(found) + 1}",
                task_type=task,
                question=f"{question} in film {film['id']}?",
                options=tuple(f"{letter}. {text.capitalize()}." for letter, text in zip("ABCD", texts, strict=True)),
                answer="ABCD"[texts.index(film[what])],
            )
        )
    return found


def items(count: int = FILMS, *, seed: int = 0) -> list[Item]:
    """The questions.

    Args:
        count: number of films.
        seed: seed.

    Returns:
        Three a film.
    """
    return [item for number in range(count) for item in _asked(_film(number, count, seed))]


def _frames(film: Mapping[str, Any]) -> list[NDArray[np.uint8]]:
    made = []
    dx, dy = {"to the left": (-1, 0), "to the right": (1, 0), "upwards": (0, -1), "downwards": (0, 1)}[film["way"]]
    count = FRAMES[film["duration"]]
    for number in range(count):
        pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
        if number == film["when"]:
            pixels[:] = COLOURS[film["border"]]
            pixels[3:-3, 3:-3] = 128
        step = round(4 * (2 * number / (count - 1) - 1))
        top, left = SIDE // 2 - 5 + dy * step, SIDE // 2 - 5 + dx * step
        pixels[top : top + 10, left : left + 10] = COLOURS[film["square"]]
        made.append(pixels)
    return made


def _clock(seconds: float) -> str:
    whole, part = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{part:03}"


def write(folder: Path, count: int = FILMS, *, seed: int = 0) -> list[Item]:
    """Write films, subtitles and `test.jsonl`.

    Args:
        folder: where to.
        count: number of films.
        seed: seed.

    Returns:
        The questions.
    """
    import av

    for name in ("data", "subtitle"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        film = _film(number, count, seed)
        lines += [json.dumps(item.__dict__) for item in _asked(film)]
        rate = Fraction(FRAMES[film["duration"]], film["seconds"])
        with av.open(str(folder / "data" / f"film{film['id']}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width = stream.height = SIDE
            stream.pix_fmt, stream.options = "yuv420p", {"qscale": "2", "global_quality": "236", "flags": "+qscale"}
            for pixels in _frames(film):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        if film["spoken"]:
            each = film["seconds"] / 4
            said = [
                f'{i + 1}\n{_clock(i * each)} --> {_clock((i + 1) * each)}\n<font size=".72c">part {i + 1}, the '
                f"{film['word']}</font>\n"
                for i in range(4)
            ]
            (folder / "subtitle" / f"film{film['id']}.srt").write_text("\n".join(said), encoding="utf-8")
    (folder / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return items(count, seed=seed)


class Knower:
    """Answers by the question's text alone, from a list of the right answers.

    Args:
        known: questions whose answers it knows.
    """

    def __init__(self, known: Sequence[Item]) -> None:
        self.known = {item.question: item.answer for item in known}

    def __call__(self, pictures: Sequence[Any], asked: str) -> str:  # noqa: ARG002 - it does not look
        """The letter; A if it does not know."""
        return f"The answer is {self.known.get(asked.splitlines()[-6], 'A')}."


class Guesser:
    """Answers any of the letters, alike for the same question and setting.

    Args:
        seed: seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, pictures: Sequence[Any], asked: str) -> str:  # noqa: ARG002 - it does not look
        """A letter."""
        return random.Random(f"{self.seed} {asked}").choice("ABCD")


def _colour(pixels: NDArray[Any]) -> str:
    """Name of the colour of most of the pixels that are not grey; "" if all are."""
    vivid = pixels.reshape(-1, 3).astype(int)
    vivid = vivid[vivid.max(1) - vivid.min(1) > 70]
    if not len(vivid):
        return ""
    near = ((vivid[:, None] - np.array(list(COLOURS.values()))) ** 2).sum(2).argmin(1)
    return list(COLOURS)[np.bincount(near, minlength=len(COLOURS)).argmax()]


def looking(pictures: Sequence[NDArray[Any]], asked: str) -> str:
    """Answers by what is in the pictures and in the prompt, and knows nothing else.

    Args:
        pictures: frames, in order.
        asked: the prompt.

    Returns:
        The text of an option; that of the first if it does not see it.
    """
    *before, question = asked.splitlines()[:-5]
    options = [line[3:].rstrip(".") for line in asked.splitlines()[-5:-1]]
    found = ""
    if "square move" in question:
        centres = []
        for pixels in (pictures[0], pictures[-1]):
            inner = pixels[3:-3, 3:-3].astype(int)
            vivid = inner.max(2) - inner.min(2) > 70
            centres.append([float(where.mean()) for where in np.nonzero(vivid)])
        down, right = centres[1][0] - centres[0][0], centres[1][1] - centres[0][1]
        found = WAYS[(right > 0) if abs(right) > abs(down) else 2 + (down > 0)]
    elif "square" in question:
        found = _colour(pictures[0][4:-4, 4:-4])
    elif "border" in question:
        rims = [np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])) for pixels in pictures]
        found = next((colour for rim in rims if (colour := _colour(rim))), "")
    else:
        said = set(re.findall(r"\w+", " ".join(before).lower()))
        found = next((option for option in options if option.lower() in said), "")
    return next((option for option in options if option.lower() == found.lower()), options[0])
