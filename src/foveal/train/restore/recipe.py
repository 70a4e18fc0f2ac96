"""Training recipes: a TOML file parsed into a frozen, validated dataclass."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.errors import FovealError
from foveal.train.loop import PRECISIONS
from foveal.train.restore.bank import NAMES

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Recipe", "RecipeError"]

OPTIMIZERS = ("adam", "muon")
LOSSES = ("l1", "l2", "l2_luma", "luma", "luma_root", "ms-ssim", "lasi")
PERCEPTUAL = "perceptual"  # that of a feature network
CLEAN = "clean"  # that of networks that are told how damaged their input is
SCALES = (1, 2, 3, 4)
MS_SSIM_SIDE = 11


class RecipeError(FovealError, ValueError):
    """An invalid recipe; the text names the file and the key."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the result of a training.

    Args:
        model: registered name of the network.
        scale: 2, 3 or 4; 1 restores pictures at the same size, which needs `noise` or `damage`.
        arguments: further keyword arguments of the network.
        data: folder of training pictures.
        patch: side of a low-resolution patch, in pixels.
        batch: number of patches per step.
        fraction: most informative share of each picture's patches to draw from (SamplingAug), in (0, 1].
        steps: number of steps.
        noise: standard deviation of the Gaussian noise added to the network's input, in levels of 255.
        damage: degradations of the bank (`foveal.train.restore.bank`), of which each picture of scale 1 has one, such
            as "rain"; "noise+jpeg" for two, one after the other. The loss is then the root of each patch's squared
            error.
        optimizer: "muon" (kernels by Muon, the rest by Adam) or "adam".
        lr: Adam's peak learning rate.
        muon_lr: Muon's peak learning rate.
        warmup: number of steps over which the learning rate rises to its peak; a cosine then brings it to 0.
        loss: "l1" or "l2" on RGB in [0, 1]; "luma": squared error of luminance, which PSNR measures; "luma_root": its
            root for each patch; "l2_luma": "luma" plus a tenth of the squared error of RGB; for looks instead of PSNR
            "ms-ssim": structural similarity at several scales; "lasi": how pixels are predicted from those before them;
            "perceptual": squared error of what a classifier sees, plus "l1"; "clean": damages each input and teaches a
            network that is told how much (`foveal.train.restore.cleaning`).
        features: the classifier of "perceptual": name of a timm network, which timm downloads once, or a safetensors
            file with the weights of a `foveal.train.restore.perceptual.FeatureNet`.
        teachers: bundles, by name or folder, whose answers are learnt beside the originals; a bundle named twice counts
            twice; none by default.
        teacher_share: share of the teachers' answers in the target, in [0, 1]; the rest is the original's.
        refit: number of batches over which the last layer of a LumaSR is refitted at the end, by least squares of
            luminance; 0 skips this.
        ema: decay of the running average of the weights, in [0, 1); 0 turns it off.
        seed: seed of weights and batches.
        precision: "fp32", "bf16" (autocast), or "auto": whichever is faster on this machine, timed over a few steps.
        start: checkpoint or safetensors file whose matching weights initialise the network; "" for none.
        validation: folder of validation pictures whose PSNR is logged; "" for none.
        every: number of steps between two checkpoints.

    Raises:
        RecipeError: a value out of range.
    """

    model: str
    scale: int
    data: str
    steps: int
    arguments: dict[str, Any] = field(default_factory=dict)
    patch: int = 48
    batch: int = 8
    fraction: float = 0.5
    noise: float = 0.0
    damage: list[str] = field(default_factory=list)
    optimizer: str = "muon"
    lr: float = 2e-3
    muon_lr: float = 1e-2
    warmup: int = 100
    loss: str = "l1"
    features: str = "vgg16"
    teachers: list[str] = field(default_factory=list)
    teacher_share: float = 0.6
    refit: int = 0
    ema: float = 0.999
    seed: int = 0
    precision: str = "auto"
    start: str = ""
    validation: str = ""
    every: int = 500

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", OPTIMIZERS),
            ("loss", (*LOSSES, PERCEPTUAL, CLEAN)),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("steps", "patch", "batch", "every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.scale not in SCALES:
            raise RecipeError(f"scale must be {', '.join(map(str, SCALES[:-1]))} or {SCALES[-1]}, got {self.scale}")
        if self.noise < 0:
            raise RecipeError(f"noise must be at least 0, got {self.noise}")
        if self.scale == 1 and not self.noise and not self.damage:
            raise RecipeError(
                "scale 1 needs noise above 0 (15 for ordinary photographs) or damage: else nothing is to be restored"
            )
        if self.damage and (self.scale != 1 or self.noise or self.teachers):
            raise RecipeError("damage is for scale 1, without noise and teachers; leave out one or the other")
        if self.loss == "ms-ssim" and self.patch * self.scale < MS_SSIM_SIDE:
            raise RecipeError(
                f'loss "ms-ssim" compares windows of {MS_SSIM_SIDE} pixels, got patches of {self.patch * self.scale}; '
                "take a larger patch"
            )
        known = {one for name in self.damage for one in str(name).split("+")}
        if wrong := sorted(known - set(NAMES)):
            raise RecipeError(f"damage must be of {', '.join(NAMES)}, got {wrong[0]!r}")
        if not 0 < self.fraction <= 1:
            raise RecipeError(f"fraction must be in (0, 1], got {self.fraction}")
        if wrong := [t for t in self.teachers if not isinstance(t, str)]:
            raise RecipeError(f"teachers must be names or folders of bundles, got {wrong[0]!r}")
        if not 0 <= self.teacher_share <= 1:
            raise RecipeError(f"teacher_share must be in [0, 1], got {self.teacher_share}")
        if self.refit < 0:
            raise RecipeError(f"refit must be at least 0, got {self.refit}")
        if not 0 <= self.ema < 1:
            raise RecipeError(f"ema must be in [0, 1), got {self.ema}")

    @classmethod
    def read(cls, path: Path, **changes: Any) -> Recipe:
        """Read a recipe file.

        Args:
            path: TOML file whose keys are the fields of this class.
            **changes: fields that override the file; None keeps the file's value.

        Returns:
            The recipe.

        Raises:
            RecipeError: no such file, invalid TOML, an unknown or missing key, or a value of the wrong type or out of
                range.
        """
        try:
            table = tomllib.loads(Path(path).read_text())
        except FileNotFoundError:
            raise RecipeError(f"{path}: no such recipe") from None
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path}: not a TOML file: {error}") from None
        table |= {k: v for k, v in changes.items() if v is not None}
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(table) - set(known)):
            raise RecipeError(f"{path}: unknown key {unknown[0]!r}; keys are {', '.join(known)}")
        kinds: dict[str, Any] = {
            "str": str,
            "int": int,
            "float": (int, float),
            "dict[str, Any]": dict,
            "list[str]": list,
        }
        for name, value in table.items():
            if not isinstance(value, kinds[str(known[name].type)]) or isinstance(value, bool):
                raise RecipeError(f"{path}: {name} must be of type {known[name].type}, got {value!r}")
        needed = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [n for n in needed if n not in table]:
            raise RecipeError(f"{path}: {missing[0]} is missing")
        try:
            return cls(**table)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    def build(self) -> nn.Module:
        """The recipe's network, initialised under the recipe's seed.

        Returns:
            The network, in eval mode; torch's global random state is left unchanged.

        Raises:
            RecipeError: no such network, or arguments that it does not accept.
        """
        import torch

        from foveal.models import create_model

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            try:
                return create_model(self.model, scale=self.scale, **self.arguments)
            except (TypeError, ValueError) as error:
                raise RecipeError(str(error)) from error
