"""Create the sample pictures from Debian's wallpaper packages: `python scripts/samples.py`.

Each original is a photograph, downsampled until its detail is dense, then cropped; the sample is the original
downsampled by 4. Both use `foveal.images.imresize`, the bicubic downsampling of the benchmarks. No network is trained
on these pictures, so foveal's gain on them is measured on unseen data.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from foveal.images import imresize
from foveal.train.restore.debian import Package, fetch

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
PACKAGES = (Package("lomiri-wallpapers-16.04", "CC-BY-4.0, CC-BY-SA-4.0, CC0-1.0"),)


@dataclass(frozen=True)
class Sample:
    """How an original is created.

    Args:
        name: name of the sample.
        source: file below usr/share/backgrounds.
        reduction: ratio of the photograph's side to the original's.
        box: left, top, right, bottom in the reduced photograph, in pixels; sides are multiples of 4.
    """

    name: str
    source: str
    reduction: int
    box: tuple[int, int, int, int]


CHOSEN = (
    Sample("dogs", "friends_by_Aitzol_Berasategi.jpg", 3, (90, 150, 634, 694)),
    Sample("bridge", "Bridge_by_Sander_Klootwijk.jpg", 4, (360, 132, 1088, 612)),
    Sample("clock", "greentock_by_Peter_Nerlich.jpg", 3, (0, 100, 704, 660)),
    Sample("dandelion", "seeding_by_Clements_Engelhardt.jpg", 5, (60, 20, 620, 500)),
)


def make(sample: Sample, photographs: Path) -> None:
    """Write samples/NAME.png and samples/original/NAME.png.

    Args:
        sample: sample to write.
        photographs: folder that contains its source.
    """
    with Image.open(photographs / sample.source) as photograph:
        reduced = imresize(np.asarray(photograph.convert("RGB")), 1 / sample.reduction)
    left, top, right, bottom = sample.box
    original = reduced[top:bottom, left:right]
    (SAMPLES / "original").mkdir(parents=True, exist_ok=True)
    Image.fromarray(original).save(SAMPLES / "original" / f"{sample.name}.png", optimize=True)
    Image.fromarray(imresize(original, 1 / 4)).save(SAMPLES / f"{sample.name}.png", optimize=True)


def main() -> None:
    """Download the packages (or use those in the given folder) and create every sample."""
    with tempfile.TemporaryDirectory() as folder:
        archives = fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder), PACKAGES)
        for archive in archives:
            subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        for sample in CHOSEN:
            make(sample, Path(folder) / "usr/share/backgrounds")


if __name__ == "__main__":
    main()
