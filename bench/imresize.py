"""How often our downsampled pictures equal MATLAB's, on the benchmark sets under FOVEAL_DATA.

python bench/imresize.py
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from foveal.images.resize import imresize
from foveal.measure.benchmarks import find


def main() -> None:
    print("| set | scale | pictures | equal | within one level |\n|---|---|---|---|---|")
    for name, scales in (("Set5", (2, 3, 4)), ("Set14", (2, 3, 4)), ("BSD100", (4,)), ("Urban100_20", (4,))):
        for scale in scales:
            difference = []
            paths = sorted((find(name) / f"x{scale}").glob("*_HR.png"))
            for path in paths:
                high = np.asarray(Image.open(path))
                low = np.asarray(Image.open(str(path).replace("_HR", "_LR")))
                difference.append(np.abs(imresize(high, 1 / scale).astype(int) - low).ravel())
            values = np.concatenate(difference)
            print(f"| {name} | ×{scale} | {len(paths)} | {(values == 0).mean():.4%} | {(values <= 1).mean():.4%} |")


if __name__ == "__main__":
    main()
