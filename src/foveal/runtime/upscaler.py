"""The main job behind one call: a picture goes in, the same picture comes out larger, as the kind it was given.

upscale = Upscaler(scale=4, quality="balanced")
large = upscale(array)                          # path, PIL image, NumPy array or torch tensor
upscale.upscale_file("photo.jpg", "large.jpg")  # with everything else that the file holds; any size
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.between import checked_perception, looking
from foveal.runtime.budget import Budget, checked_budget
from foveal.runtime.bundle import Bundle, choose
from foveal.runtime.card import BundleError, Purpose
from foveal.runtime.cleaning import (
    AUTO,
    OFF,
    Cleaner,
    Cleaning,
    Look,
    checked_clean,
    chosen_cleaner,
    file_level,
    stated_level,
)
from foveal.runtime.engine_choice import EngineChoice
from foveal.runtime.enlarge import Progress, Step, counter
from foveal.runtime.file_work import Begun, work_on_file
from foveal.runtime.inputs import measure, take
from foveal.runtime.local_range import REACH
from foveal.runtime.machine import cores
from foveal.runtime.network import Network
from foveal.runtime.pixel_art import PIXEL_ART_REACH, enlarge_pixel_art
from foveal.runtime.plan import Plan, make_plan
from foveal.runtime.result import Result
from foveal.runtime.running import Running
from foveal.runtime.throughput import Throughput, learn_file_seconds
from foveal.runtime.tiles import make_grid
from foveal.runtime.wrapping import unwrapped, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from foveal.images import Picture
    from foveal.runtime.engines import PixelKind

__all__ = ["Progress", "Result", "Upscaler"]

CONTENTS = ("auto", "pixel")
_PIXEL_ART, _PIXEL_ART_SECONDS = "pixel art", 0.2  # what enlarges it, and seconds a megapixel of the source
_PICTURES: tuple[Purpose, ...] = ("super-resolution", "restoration")  # what returns a picture for a picture


class Upscaler:
    """Makes pictures larger, or better at the same size.

    Engines are opened with the first picture and kept, so one Upscaler for many pictures is the fast way. Not for
    several threads at once. An exception raised while a network runs carries a note with the bundle, engine and tile.

    Args:
        scale: output side over input side: 2, 3 or 4. With `model`, its scale counts.
        quality: "fast", "balanced" or "best": which shipped bundle. Where there is none for "best", the better of the
            others; with a `model` too, "best" is the mean of what the network makes of the picture and of its mirror
            images, which an equivariant one makes in one pass.
        model: name of a bundle or path of its folder, instead of `scale`, `quality` and `purpose`.
        purpose: "super-resolution", or "restoration" with scale 1.
        engine: "auto" (the fastest here), "native", "onnxruntime", "openvino" or "torch".
        threads: processor threads; by default all that this process may use.
        tile: side of a tile in input pixels, or "auto".
        clean: what is done about compression artefacts and noise: "auto" cleans a picture as much as it needs, and
            leaves clean ones as they are; "off"; or a strength of 0 to 100, where 50 stands for a JPEG of quality 50
            and for noise of 10 levels. With a `model` of another network nothing is cleaned.
        content: "pixel" for pixel art, which is made larger by rules, without a new colour; "auto" for all else.
        wrap: the picture is a texture that tiles, and so will the result.
        perception: how natural results look, in [0, 1], at the price of fidelity: 0 for the highest PSNR, 1 for the
            network trained for looks, between them the weights between the two. For quality "balanced"; pictures that
            are cleaned are made as without it.
        budget: share of the network's work that a picture may take, in (0, 1]: below 1 the next smaller network makes
            the places that need least. Animations and documents of several pages take the network alone.

    Attributes:
        budget: the share.
        bundle: bundle that runs; of damaged pictures, the one for clean pictures.
        card: its card.
        threads: processor threads.

    Raises:
        ValueError: a value that cannot be, or a bundle that does not make pictures (`BundleError`).
    """

    def __init__(
        self,
        scale: int = 4,
        quality: str = "balanced",
        *,
        model: str | Path | Bundle | None = None,
        purpose: Purpose = "super-resolution",
        engine: str = "auto",
        threads: int | None = None,
        tile: int | str = "auto",
        clean: str | int = AUTO,
        content: str = "auto",
        wrap: bool = False,
        perception: float = 0.0,
        budget: float = 1.0,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        note = ""
        if checked_perception(perception) and model is not None:
            raise ValueError(f"perception={perception:g} is for shipped networks, got a model too; leave one out")
        if model is None:
            self.bundle, note = choose(scale, quality, purpose=purpose)
            self.bundle = looking(self.bundle, perception)
        else:
            self.bundle = model if isinstance(model, Bundle) else Bundle.load(model)
        self.card = self.bundle.card
        if self.card.purpose not in _PICTURES:
            raise BundleError(
                f"{self.card.name}: its purpose is {self.card.purpose}, an Upscaler runs {' and '.join(_PICTURES)}; "
                "choose another bundle"
            )
        if content not in CONTENTS:
            raise ValueError(f"content must be one of {', '.join(CONTENTS)}, got {content!r}")
        self.clean, self.content, self.wrap = checked_clean(clean), content, wrap
        self.budget = checked_budget(budget)
        cleans = chosen_cleaner(self.bundle, self.clean, named=model is not None, purpose=purpose)
        self.threads = threads or cores()
        self._note = note
        self._choice = EngineChoice(self.bundle, engine, self.threads, tile)
        mirrored = quality == "best"
        self._network = Network(self.card, self._choice.open, mirrored=mirrored)
        self._budget: Budget | None = None
        if self.budget < 1:
            if perception:
                raise ValueError(f"budget={budget:g} and perception={perception:g} do not go together; leave one out")
            if content == "pixel":
                raise ValueError(f"budget={budget:g} shares work between networks, pixel art takes none; leave it out")
            damaged = None if self.clean == OFF else cleans
            self._budget = Budget(self.budget, self.bundle, damaged, engine, self.threads, tile)
        setting = OFF if content == "pixel" else self.clean
        self._cleaning = Cleaning(cleans, setting, lambda b: Cleaner(b, engine, self.threads, tile, mirrored=mirrored))

    @property
    def name(self) -> str:
        """What enlarges: the bundle, whether its mirror images take part, and the budget."""
        return _PIXEL_ART if self.content == "pixel" else self._way(Look()).name

    @property
    def cleaner(self) -> Bundle | None:
        """The bundle that damaged pictures take; None where nothing is cleaned."""
        return self._cleaning.bundle

    @property
    def shared_with(self) -> str:
        """What results depend on by the budget; "" without one."""
        return "" if self._budget is None else self._budget.settings

    @property
    def scale(self) -> int:
        """Output side over input side."""
        return self.card.scale

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about the choice of bundle and engine; they hold for every picture."""
        more = () if self._budget is None else self._budget.notes
        return tuple(dict.fromkeys(filter(None, (self._note, *self._choice.notes, *self._cleaning.notes, *more))))

    def engine(self, kind: PixelKind | None = None) -> str:
        """Name of the engine, chosen now if it was not before.

        Args:
            kind: "uint8" for 8-bit pictures or "float" for the others; by default what 8-bit pictures take.

        Returns:
            The name.
        """
        if self.content == "pixel":
            return "numpy"
        return self._choice.engine(kind or self._network.kind(np.dtype(np.uint8)))

    def prepare(self) -> None:
        """Open now what the pictures planned so far will need, so that the first is not kept waiting."""
        for kind in self._choice.measured:
            self._network.prepare(kind)

    def settled(self) -> tuple[Mapping[PixelKind, tuple[str, int]], ...]:
        """Engines and tiles of every network that a picture may take, chosen now if they were not before.

        Returns:
            What `adopt` takes on another machine.
        """
        return () if self.content == "pixel" else tuple(choice.settled() for choice in self._choices())

    def adopt(self, settled: Sequence[Mapping[PixelKind, tuple[str, int]]]) -> None:
        """Take another machine's engines and tiles, so that both make the same pixels.

        Args:
            settled: what `settled` returned for an Upscaler with the same arguments.

        Raises:
            EngineError: an engine that cannot be used here.
        """
        for choice, found in zip(self._choices(), settled, strict=False):
            choice.adopt(found)

    def _choices(self) -> Iterator[EngineChoice]:
        yield self._choice
        if self._cleaning.bundle is not None and not self._cleaning.cleaner.why_not():
            yield self._cleaning.cleaner.choice
        if self._budget is not None:
            yield from self._budget.choices()

    def _way(self, look: Look, *, still: bool = True) -> Running:
        """What enlarges a picture; frames of an animation must be treated alike, and are not shared."""
        if look.level is None:
            network, choice = self._network, self._choice
        else:
            cleaner = self._cleaning.cleaner
            network, choice = cleaner.network(look.level), cleaner.choice
        small = self._budget.way(look) if self._budget and still else None
        return Running(network, choice, small, self._budget)

    def __call__(self, image: Any, progress: Progress | None = None) -> Any:
        """Enlarge a picture.

        Args:
            image: a path; a PIL image; a NumPy array (H, W) or (H, W, C), uint8, uint16 or floating point in [0, 1],
                where the last of two or four channels is alpha; a torch tensor (C, H, W) or (B, C, H, W), uint8,
                uint16 or floating point in [0, 1]; or a `foveal.images.Picture`.
            progress: function called after every batch of tiles.

        Returns:
            The same kind, `scale` times as large: for a path a `foveal.images.Picture`, which keeps profile and
            metadata (`foveal.images.write` writes it); for a PIL image a PIL image, in RGB or RGBA if it had a palette
            or four inks; for an array an array of its dtype; for a tensor a tensor of its dtype on its device.

        Raises:
            TypeError: none of these kinds, or pixels of another dtype.
            ValueError: an array that is no picture, or the path of an animation.
            EngineError: no engine runs the bundle, or the one that ran it failed.
        """
        taken = take(image)
        made = []
        stated = file_level(Path(image)) if isinstance(image, str | os.PathLike) else stated_level(image)
        for pixels in taken.frames:
            height, width, channels = pixels.shape
            large = (height * self.scale, width * self.scale, channels)
            if taken.planar:
                out = np.empty((channels, *large[:2]), pixels.dtype).transpose(1, 2, 0)
            else:
                out = np.empty(large, pixels.dtype)
            step = counter(progress, large[0] * large[1])
            look = self._cleaning.look(pixels, taken.alpha, stated)
            for _ in self._bands(pixels, taken.alpha, step, self._way(look), out=out):
                pass
            made.append(out)
        return taken.give(made)

    def _bands(
        self,
        pixels: NDArray,
        alpha: bool,
        step: Step | None,
        running: Running,
        *,
        out: NDArray | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Iterator[NDArray]:
        """A picture in memory, (H, W, C), band by band to (s·H, s·W, C); `note` takes what the user should know."""
        if self.content != "pixel" and not self.wrap:
            yield from running.bands(pixels, alpha=alpha, step=step, out=out, note=note)
            return
        if self.content == "pixel":
            border = PIXEL_ART_REACH if self.wrap else 0
            bands = enlarge_pixel_art(wrapped(pixels, border), self.scale)
        else:
            border = running.network.card.margin + REACH
            bands = running.bands(wrapped(pixels, border), alpha=alpha, note=note)
        yield from unwrapped(bands, border, pixels.shape[:2], self.scale, out=out, step=step)

    def plan(self, image: Any, *, file_format: str = "", look: bool = False) -> Plan:
        """What enlarging a picture will take, measured on this machine if it was not yet (about a second).

        Args:
            image: anything that can be enlarged, the path of an animation, or (width, height) of an 8-bit RGB picture.
            file_format: format of the result's file ("png", "jpeg", …); by default that of the path, or none
                for a picture in memory.
            look: read the picture and say what it has been through; by default a path is asked no more than its header
                says, which is the quality of a JPEG.

        Returns:
            The plan.

        Raises:
            TypeError: none of these kinds, or pixels of another dtype.
            ValueError: an array that is no picture, or a pair that is no size.
            EngineError: no engine runs the bundle.
        """
        size = measure(image)
        seen = self._cleaning.foresee(image, size, closely=look)
        pixel_bytes = size.channels * size.dtype.itemsize
        running = self._way(seen, still=size.frames == 1 and size.file_format != "gif")
        network, choice = running.network, running.choice
        kind = network.kind(size.dtype)
        drawn = self.content == "pixel"
        throughput = Throughput(256, _PIXEL_ART_SECONDS, 0.0) if drawn else choice.throughput(kind)
        tile = throughput.tile if drawn else choice.tile(kind)
        grid = make_grid(
            size.height, size.width, tile, network.card, automatic=choice.automatic, pixel_bytes=pixel_bytes
        )
        engine = self.engine() if drawn else choice.engine(kind)
        plan = make_plan(
            self._cleaning.cleaner.bundle if seen.level is not None else self.bundle,
            "native" if drawn else engine,
            replace(throughput, seconds=throughput.seconds * len(network.ways)),
            grid,
            self.threads,
            pixel_bytes=pixel_bytes,
            frames=size.frames,
            file_format=file_format or size.file_format,
            notes=(*self.notes, *(self._cleaning.said(seen, all_of_it=True) if look else ())),
        )
        if self._budget and running.small:
            spent = throughput.seconds * len(network.ways) * grid.pixels / 1e6
            plan = self._budget.planned(plan, spent, network, choice, running.small, take(image) if look else None)
        name = self.name if drawn else running.name
        return replace(plan, bundle=name, engine=engine, clean=self._cleaning.told(seen))

    def upscale_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        overwrite: bool = False,
        limit_pixels: int | None = None,
        background: tuple[int, int, int] | None = None,
        page: int | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Enlarge a file, with everything else it holds; memory does not grow with the result.

        Args:
            source: picture or animation to read.
            target: file to write; its suffix says the format.
            overwrite: replace a target that exists.
            limit_pixels: refuse larger pictures; by default what `foveal.images.read` allows.
            background: colour, 0 to 255, to put below transparent pixels where the format has no transparency.
            page: page of a TIFF document, from 0, that becomes a picture of its own; None for all of them in one file.
            progress: function called after every batch of tiles.

        Returns:
            What was done.

        Raises:
            FileExistsError: the target exists and `overwrite` is False.
            ValueError: the source is no picture, or the target cannot hold it (`PictureError`).
            EngineError: no engine runs the bundle, or the one that ran it failed.
        """
        from foveal.images.formats import format_for

        source, target = Path(source), Path(target)
        notes: list[str] = []
        look, running = Look(), self._way(Look())
        kind, before = self._network.kind(np.dtype(np.uint8)), 0.0

        def begin(begun: Begun) -> Callable[[Picture], Iterator[NDArray]]:
            nonlocal look, running, kind, before
            if begun.still:
                look = self._cleaning.look(begun.frame.pixels, begun.frame.alpha, begun.stated)
            running = self._way(look, still=begun.still)
            kind, before = running.network.kind(begun.frame.pixels.dtype), running.seconds
            step = begun.steps(1)

            def make(picture: Picture) -> Iterator[NDArray]:
                return self._bands(picture.pixels, picture.alpha, step, running, note=notes.append)

            return make

        done = work_on_file(
            source, target, self.scale, begin, page=page, overwrite=overwrite, limit_pixels=limit_pixels,
            background=background, progress=progress,
        )  # fmt: skip
        if done.megapixels >= 1:
            spent = running.seconds - before
            learn_file_seconds(format_for(target).name, (done.seconds - spent) / done.megapixels)
        return Result(
            source=source,
            target=target,
            width=done.width,
            height=done.height,
            frames=done.frames,
            megapixels=done.megapixels,
            seconds=done.seconds,
            bundle=self.name if self.content == "pixel" else running.name,
            engine=self.engine() if self.content == "pixel" else running.choice.engine(kind),
            threads=self.threads,
            notes=tuple(dict.fromkeys([*self.notes, *self._cleaning.said(look), *notes, *done.left_out])),
            clean=self._cleaning.told(look),
        )
