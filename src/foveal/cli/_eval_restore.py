"""`foveal eval restore`: pictures damaged on purpose, restored, and compared with what they were."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["eval_restore"]


def eval_restore(
    folders: list[Path], *, fix: str, damages: list[str], limit: int | None, threads: int | None, as_json: bool
) -> None:
    """Measure and print.

    Args:
        folders: folders of pictures.
        fix: what to repair, as of `foveal restore`.
        damages: what is done to the pictures, see `foveal.train.restore.bank.asked`; a row for each.
        limit: largest number of pictures of each folder.
        threads: processor threads.
        as_json: print one JSON document.

    Raises:
        ValueError: no damage, an unknown one, or an unknown repair.
    """
    from foveal.cli._tables import console, table
    from foveal.measure.restoration import evaluate_restorer
    from foveal.runtime.restorer import Restorer

    if not damages:
        raise ValueError(
            "what the pictures are restored from is not said; add --damage NAME, such as --damage noise=25"
        )
    from foveal.train.restore.bank.asked import asked_damage

    asked = [asked_damage(text) for text in damages]
    restore = Restorer(fix, threads=threads)
    scores = [
        evaluate_restorer(restore, folder, damage, damaged_by=damage.text, limit=limit)
        for folder in folders
        for damage in asked
    ]
    if as_json:
        document = {"model": "restore", "fix": fix, "bundle": restore.name, "scores": [one.to_json() for one in scores]}
        print(json.dumps(document, indent=2))
        return
    lines = [
        (
            one.name, one.damage, str(one.pictures), f"{one.damaged_psnr:.2f}", f"{one.psnr:.2f}", f"{one.gain:+.2f}",
            f"{one.damaged_ssim:.4f}", f"{one.ssim:.4f}", str(one.worse), f"{one.seconds_per_megapixel:.2f}",
        )
        for one in scores
    ]  # fmt: skip
    heads = ("set", "damage", "pictures", "PSNR", "restored", "gain", "SSIM", "restored", "worse", "s/MP")
    table(console(), heads, lines)
