"""Enlarges every picture of a folder and says how long each took: `python examples/upscale_folder.py samples large`."""

import sys
from pathlib import Path

from foveal import Upscaler
from foveal.images import PictureError

source, target = Path(sys.argv[1]), Path(sys.argv[2])
target.mkdir(parents=True, exist_ok=True)
upscale = Upscaler(scale=2, quality="fast")
for path in sorted(source.glob("*.png")):
    try:
        done = upscale.upscale_file(path, target / path.name, overwrite=True)
    except PictureError as error:  # one bad file does not stop the rest
        print(f"left out: {error}")
        continue
    print(f"{path.name}: {done.width}×{done.height}, {done.megapixels / done.seconds:.1f} MP/s on {done.engine}")
