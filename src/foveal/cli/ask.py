"""`foveal ask`: ask a vision-language model about pictures and films, with fewer visual tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli._options import Json, Threads, stop

if TYPE_CHECKING:
    from foveal.vlm.answer import Answer

__all__ = ["ask"]


def ask(
    asked: Annotated[
        list[str], typer.Argument(metavar="PICTURE… QUESTION", help="Pictures or films, and the question in quotes.")
    ],
    model: Annotated[
        Path, typer.Option("--model", metavar="PATH", help="Folder of a model of transformers; nothing is fetched.")
    ],
    method: Annotated[
        str, typer.Option(metavar="NAME", help="How tokens are chosen: fastv, feather, random, zipvl.")
    ] = "fastv",
    keep: Annotated[float, typer.Option(metavar="SHARE", help="Share of the visual tokens that stays.")] = 0.25,
    compare: Annotated[
        bool, typer.Option("--compare", help="Ask the untouched model and random dropping too, side by side.")
    ] = False,
    frames: Annotated[int, typer.Option(metavar="N", min=1, help="Frames of a film that are read.")] = 8,
    words: Annotated[int, typer.Option(metavar="N", min=1, help="Most tokens of the answer.")] = 64,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Ask a vision-language model about pictures or films while it reads only a share of their tokens.

    The seconds to the first word, with the pictures' features, and those of the other words are given apart, with the
    tokens that each layer read and the bytes of the cache.

    Args:
        asked: pictures or films, and the question last.
        model: folder of the model.
        method: name of the method.
        keep: share of the visual tokens that stays.
        compare: ask the untouched model and random dropping too.
        frames: number of frames of a film that are read.
        words: most tokens of the answer.
        threads: processor threads.
        as_json: print one JSON document.

    Raises:
        typer.Exit: no picture, a folder that holds no vision-language model, or a method or share that cannot be used.

    Example:
        $ foveal ask samples/dogs.png "What is this?" --model models/llava --keep 0.25 --words 4
        north seven green paper
        layers 0 to 1: 20 tokens, 16 visual; layer 2: 8 tokens, 4 visual
        first word 0.05 s, others 0.02 s, cache 7.3 kB
    """
    *pictures, question = asked
    if Path(question).is_file():
        stop("ask", f"{question} is a picture, and no question follows; add one in quotes: 'What is this?'")
    if not pictures:
        stop("ask", f"no picture, only the question {question!r}; name pictures before it")
    import torch

    from foveal.errors import FovealError
    from foveal.vlm.answer import Asker, read_pictures
    from foveal.vlm.method import make

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        make(method, keep)  # what can be wrong is found before a model is loaded
        shown = read_pictures(pictures, frames)
        asker = Asker(model)
        names = ["full", *dict.fromkeys((method, "random"))] if compare else [method]
        if compare:
            asker(shown, question, "full", words=1)  # so that no first call is timed
        answers = [asker(shown, question, name, None if name == "full" else keep, words=words) for name in names]
    except (FovealError, OSError) as error:
        stop("ask", error)
    if as_json:
        told = [answer.to_dict() for answer in answers]
        print(json.dumps({"model": str(model), "question": question, "answers": told}, indent=2))
    elif compare:
        _table(answers)
    else:
        (answer,) = answers
        print(answer.text)
        print(answer.route)
        print(f"first word {answer.prefill:.2f} s, others {answer.decode:.2f} s, cache {_size(answer.cache)}")


def _size(count: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _table(answers: list[Answer]) -> None:
    from foveal.cli._tables import console, table

    head = ("method", "tokens a layer", "first word", "others", "cache", "answer")
    lines = [
        (a.method, f"{a.read:.0f}", f"{a.prefill:.2f} s", f"{a.decode:.2f} s", _size(a.cache), " ".join(a.text.split()))
        for a in answers
    ]
    table(console(), head, lines)
