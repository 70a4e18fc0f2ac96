"""Networks of a leaderboard, trained for equal minutes; what is done is kept in a folder.

    steps = processor minutes / processor seconds of a step; same patches, optimiser and schedule for all

A folder holds `board.json`, with the settings and every finished training, and `weights/`. An interrupted run goes on
behind the last finished training; its own is begun again.
"""

from __future__ import annotations

import inspect
import json
import math
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from foveal.errors import FovealError
from foveal.evidence.rehearsal import rehearsing
from foveal.evidence.rivals.rlfn import RLFN
from foveal.evidence.short_run import short_run
from foveal.evidence.tasks import photos
from foveal.measure.fusion import ms_ssim
from foveal.measure.quality import benchmark_pairs, from_torch, psnr
from foveal.models import create_model, list_models
from foveal.models.registry import builder
from foveal.train.restore.pairs import Pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import nn

__all__ = ["BASELINE", "Board", "BoardError", "Settings", "build_seeded", "entrants"]

BASELINE = "rlfn"
PATCH, BATCH, FRACTION = 24, 8, 0.5
LIMIT = 30  # pictures of each set


class BoardError(FovealError, ValueError):
    """A leaderboard that cannot be made or continued as asked."""


@dataclass(frozen=True)
class Settings:
    """What all networks of a board share.

    Args:
        scale: s.
        minutes: processor minutes of each training.
        seeds: number of trainings of each network.
        sets: benchmark pictures, name to folder.
        pictures: folder of training pictures.
    """

    scale: int
    minutes: float
    seeds: int
    sets: dict[str, str]
    pictures: str

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.seeds < 1:
            raise BoardError(f"minutes must be above 0 and seeds at least 1, got {self.minutes} and {self.seeds}")


def entrants(scale: int, only: Sequence[str] = ()) -> dict[str, Callable[..., nn.Module]]:
    """Registered networks that enlarge pictures by a scale, and RLFN first.

    Args:
        scale: s.
        only: names, or parts of names; all without any.

    Returns:
        Builders by name, called with `scale`.

    Raises:
        BoardError: a name that fits no network for the scale.
    """
    found: dict[str, Callable[..., nn.Module]] = {BASELINE: RLFN}
    for pattern in only or ("*",):
        fitting = {name: make for name in list_models(pattern) if (make := _enlarges(name, scale)) is not None}
        if not fitting and pattern != BASELINE:
            raise BoardError(f"no network for ×{scale} is called {pattern!r}; `foveal models` lists all")
        found |= fitting
    return found


def _enlarges(name: str, scale: int) -> Callable[..., nn.Module] | None:
    build = builder(name)
    if "scale" not in inspect.signature(build).parameters or name.startswith("luma_clean"):
        return None
    try:
        with torch.device("meta"):
            out = create_model(name, scale=scale)(torch.empty(1, 3, 24, 24))
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        return None
    return build if getattr(out, "shape", None) == (1, 3, 24 * scale, 24 * scale) else None


def build_seeded(scale: int, build: Callable[..., nn.Module], seed: int) -> nn.Module:
    """A network with the weights of a seed.

    Args:
        scale: s.
        build: builder.
        seed: seed.

    Returns:
        The network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(scale=scale)


@dataclass
class Board:
    """What has been done, kept in a folder.

    Args:
        folder: folder of `board.json` and `weights/`; made if it is missing.
        settings: what all networks share.
        networks: builders by name; RLFN is among them.
        say: function that is told what happens.
        runs: finished trainings, by name and seed.

    Raises:
        BoardError: the folder holds a board of other settings.
    """

    folder: Path
    settings: Settings
    networks: dict[str, Callable[..., nn.Module]]
    say: Callable[[str], None] = print
    runs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "weights").mkdir(parents=True, exist_ok=True)
        if not self._file.is_file():
            return
        known = json.loads(self._file.read_text(encoding="utf-8"))
        if known["settings"] != asdict(self.settings):
            raise BoardError(
                f"{self.folder} holds a board of {known['settings']}, asked for {asdict(self.settings)}; "
                "give the same settings to go on, or another folder"
            )
        self.runs = known["runs"]

    @property
    def _file(self) -> Path:
        return self.folder / "board.json"

    def left(self) -> list[tuple[str, int]]:
        """Trainings that are still to do, a seed of all networks after the other.

        Returns:
            Name and seed of each.
        """
        every = ((name, seed) for seed in range(self.settings.seeds) for name in self.networks)
        return [(name, seed) for name, seed in every if str(seed) not in self.runs.get(name, {})]

    def train(self) -> None:
        """Train what is left, and score each network when it is done."""
        todo = self.left()
        if not todo:
            return
        load = self._batches()
        costs = self._seconds_of_a_step(sorted({name for name, _ in todo}), load)
        for count, (name, seed) in enumerate(todo):
            steps = max(1, round(60 * self.settings.minutes / costs[name]))
            left = math.ceil((len(todo) - count) * self.settings.minutes / torch.get_num_threads())
            self.say(f"{name}, seed {seed}: {steps:,} steps; about {left} min left")
            model = build_seeded(self.settings.scale, self.networks[name], seed)
            short_run(model, partial(load, seed), photos.absolute_error, steps=steps)
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(state, self._weights(name, seed))
            found, similar = self.quality(from_torch(model))
            self.runs.setdefault(name, {})[str(seed)] = {"steps": steps, "psnr": found, "similarity": similar}
            self._write()

    def _weights(self, name: str, seed: int) -> Path:
        return self.folder / "weights" / f"{name}-{seed}.safetensors"

    def _write(self) -> None:
        part = self._file.with_name(".board.json.part")
        part.write_text(json.dumps({"settings": asdict(self.settings), "runs": self.runs}, indent=1) + "\n", "utf-8")
        part.replace(self._file)

    def _batches(self) -> Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]:
        pairs = Pairs.from_folder(Path(self.settings.pictures), self.settings.scale, patch=PATCH, fraction=FRACTION)

        def load(seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            low, high = pairs.batch(1 if rehearsing() else BATCH, np.random.default_rng((seed, step)))[:2]
            return photos.tensor(low), photos.tensor(high)

        return load

    def _seconds_of_a_step(
        self, names: Sequence[str], load: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
    ) -> dict[str, float]:
        """Processor seconds of a training step, the median of turns of all networks."""
        if rehearsing():
            return dict.fromkeys(names, 1.0)
        models = {name: build_seeded(self.settings.scale, self.networks[name], 0) for name in names}
        taken: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(4):
            for name, model in models.items():
                begun = time.process_time()
                short_run(model, partial(load, 0), photos.absolute_error, steps=2)
                if turn:
                    taken[name].append((time.process_time() - begun) / 2)
        return {name: median(seconds) for name, seconds in taken.items()}

    def trained(self, name: str, seed: int = 0) -> nn.Module:
        """A finished network.

        Args:
            name: name of the network.
            seed: seed of its training.

        Returns:
            The network in eval mode.
        """
        model = build_seeded(self.settings.scale, self.networks[name], seed)
        model.load_state_dict(load_file(self._weights(name, seed)))
        return model.eval()

    def pictures(self) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """The benchmark pictures.

        Returns:
            Low and high resolution of each.
        """
        s = self.settings
        found = (benchmark_pairs(Path(folder), s.scale, limit=LIMIT) for folder in s.sets.values())
        return [(low, high) for pairs in found for _, low, high in pairs]

    def quality(self, upscale: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> tuple[float, float]:
        """Score a function of pictures on the benchmark.

        Args:
            upscale: function of (h, w, 3) 8-bit pictures.

        Returns:
            Mean PSNR of luminance, dB, borders of `scale` pixels left out, and mean MS-SSIM.
        """
        shave, found = self.settings.scale, []
        for low, high in self.pictures():
            large = upscale(low)
            inside = (slice(shave, -shave), slice(shave, -shave))
            found.append((psnr(large, high, shave=shave), ms_ssim(large[inside], high[inside])))
        mean = np.mean(found, axis=0)
        return float(mean[0]), float(mean[1])
