"""`foveal vlm-bench`: what each method saves on your questions, and what it costs in answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli._options import Threads, stop

__all__ = ["vlm_bench"]


def vlm_bench(
    questions: Annotated[Path, typer.Argument(metavar="QUESTIONS", help="JSON lines: pictures, question, answer.")],
    model: Annotated[
        Path, typer.Option("--model", metavar="PATH", help="Folder of a model of transformers; nothing is fetched.")
    ],
    methods: Annotated[
        str, typer.Option("--methods", metavar="NAMES", help="Methods, with commas between; random is always there.")
    ] = "fastv,feather",
    keep: Annotated[str, typer.Option(metavar="SHARES", help="Shares of the visual tokens.")] = "0.5,0.25",
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Folder of the report; a stopped run goes on there.")
    ] = Path("vlm-bench"),
    words: Annotated[int, typer.Option(metavar="N", min=1, help="Most tokens of an answer.")] = 16,
    benchmark: Annotated[
        str, typer.Option(metavar="NAME", help="video-mme: QUESTIONS is that set's file, its films stand beside it.")
    ] = "",
    frames: Annotated[int, typer.Option(metavar="N", min=1, help="Frames of a film that are shown.")] = 8,
    threads: Threads = None,
) -> None:
    """Compare methods that drop visual tokens, on one model and your questions.

    Each line of QUESTIONS is a JSON object: "pictures", paths from that file; "question"; and "answer", if it is known.
    Every question is asked of the untouched model, of each method with each share, and of random dropping, in turn. The
    report has a page with a plot, Markdown and JSON.

    With --benchmark video-mme, QUESTIONS is the file of that set (Parquet, JSON or JSON lines), films and subtitles
    stand beside it in data and subtitle, and the report says what was right by duration, domain, field and task,
    without and with subtitles.

    Args:
        questions: file of questions.
        model: folder of the model.
        methods: names of methods, with commas between.
        keep: shares of the visual tokens, with commas between.
        out: folder of the report.
        words: most tokens of an answer.
        benchmark: "video-mme" for that set, "" for questions of your own.
        frames: frames of a film that are shown.
        threads: processor threads.

    Raises:
        typer.Exit: no such file, a line that is no question, a folder that holds no model, or a method or share that
            cannot be used.

    Example:
        $ foveal vlm-bench questions.jsonl --model models/llava --keep 0.5 --words 4
        question 1 of 2, 0 s left
        question 2 of 2, 0 s left
        vlm-bench/vlm.html
    """
    import torch

    from foveal.errors import FovealError
    from foveal.vlm.answer import Asker
    from foveal.vlm.bench import bench, read_questions, write_bench
    from foveal.vlm.method import VlmError, make

    if threads is not None:
        torch.set_num_threads(threads)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    try:
        try:
            shares = [float(share) for share in keep.split(",")]
        except ValueError:
            raise VlmError(f"--keep takes shares with commas between, such as 0.5,0.25, got {keep!r}") from None
        for name in names:  # what can be wrong is found before a model is loaded
            for share in shares:
                make(name, share)
        if benchmark:
            if benchmark != "video-mme":
                raise VlmError(
                    f"--benchmark takes video-mme, got {benchmark!r}; leave it out for questions of your own"
                )
            from foveal.vlm.video_mme_run import bench_films

            print(bench_films(model, questions, names, shares, out, frames=frames, words=words, tell=print))
            return
        asked = read_questions(questions)
        rows = bench(Asker(model), asked, names, shares, out, words=words, tell=print)
        page = write_bench(rows, out, model=model.name, count=len(asked), threads=torch.get_num_threads())
    except (FovealError, OSError) as error:
        stop("vlm-bench", error)
    print(page)
