"""The main job behind one call: a picture goes in, the same picture comes out larger, as the kind it was given.

upscale = Upscaler(scale=4, quality="balanced")
large = upscale(array)                          # path, PIL image, NumPy array or torch tensor
upscale.upscale_file("photo.jpg", "large.jpg")  # with everything else that the file holds; any size
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.background_writer import BackgroundWriter
from foveal.runtime.bundle import Bundle, choose
from foveal.runtime.card import BundleError, Purpose
from foveal.runtime.engine_choice import EngineChoice
from foveal.runtime.inputs import measure, take
from foveal.runtime.machine import cores
from foveal.runtime.pixels import Network, Step, enlarge
from foveal.runtime.plan import Plan, make_plan
from foveal.runtime.result import Result
from foveal.runtime.throughput import learn_file_seconds
from foveal.runtime.tiles import Grid, make_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.runtime.engines import PixelKind

__all__ = ["Progress", "Result", "Upscaler"]

# Called with megapixels of the result that are done, those in all, and the part just finished as (left, top, right,
# bottom) in pixels of the result.
Progress = Callable[[float, float, tuple[int, int, int, int]], None]

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

    Attributes:
        bundle: bundle that runs.
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
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        note = ""
        if model is None:
            self.bundle, note = choose(scale, quality, purpose=purpose)
        else:
            self.bundle = model if isinstance(model, Bundle) else Bundle.load(model)
        self.card = self.bundle.card
        if self.card.purpose not in _PICTURES:
            raise BundleError(
                f"{self.card.name}: its purpose is {self.card.purpose}, an Upscaler runs {' and '.join(_PICTURES)}; "
                "choose another bundle"
            )
        self.threads = threads or cores()
        self._note = note
        self._choice = EngineChoice(self.bundle, engine, self.threads, tile)
        self._network = Network(self.card, self._choice.open, mirrored=quality == "best")

    @property
    def name(self) -> str:
        """What enlarges: the bundle, and whether its mirror images take part."""
        return f"{self.card.name} mirrored" if len(self._network.ways) > 1 else self.card.name

    @property
    def scale(self) -> int:
        """Output side over input side."""
        return self.card.scale

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences the user should read about the choice of bundle and engine; they hold for every picture."""
        return tuple(filter(None, (self._note, *self._choice.notes)))

    def engine(self, kind: PixelKind | None = None) -> str:
        """Name of the engine, chosen now if it was not before.

        Args:
            kind: "uint8" for 8-bit pictures or "float" for the others; by default what 8-bit pictures take.

        Returns:
            The name.
        """
        return self._choice.engine(kind or self._network.kind(np.dtype(np.uint8)))

    def prepare(self) -> None:
        """Open now what the pictures planned so far will need, so that the first is not kept waiting."""
        for kind in self._choice.measured:
            self._network.prepare(kind)

    def _grid(self, height: int, width: int, tile: int, pixel_bytes: int, *, exactly: bool = False) -> Grid:
        automatic = self._choice.automatic and not exactly
        return make_grid(height, width, tile, self.card, automatic=automatic, pixel_bytes=pixel_bytes)

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
        for pixels in taken.frames:
            height, width, channels = pixels.shape
            large = (height * self.scale, width * self.scale, channels)
            if taken.planar:
                out = np.empty((channels, *large[:2]), pixels.dtype).transpose(1, 2, 0)
            else:
                out = np.empty(large, pixels.dtype)
            step = _counter(progress, large[0] * large[1])
            for _ in self._bands(pixels, taken.alpha, step, out=out):
                pass
            made.append(out)
        return taken.give(made)

    def _bands(
        self,
        pixels: NDArray,
        alpha: bool,
        step: Step | None,
        *,
        out: NDArray | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> Iterator[NDArray]:
        """A picture in memory, (H, W, C), band by band to (s·H, s·W, C); `note` takes what the user should know."""
        kind = self._network.kind(pixels.dtype)
        first = self._choice.tile(kind)
        pixel_bytes = pixels.shape[2] * pixels.itemsize
        height, width = pixels.shape[:2]
        grid = self._grid(height, width, first, pixel_bytes)

        def grid_for(tile: int) -> Grid:
            nonlocal grid
            # After running out of memory a tile must not grow by the half that automatic tiles may.
            grid = self._grid(height, width, tile, pixel_bytes, exactly=tile != first)
            return grid

        def smaller(tile: int) -> None:
            note(f"out of memory: went on with tiles of {tile}")

        try:
            yield from enlarge(pixels, self._network, grid_for, first, alpha=alpha, out=out, step=step, smaller=smaller)
        except Exception as error:
            rows, columns = grid.tile
            error.add_note(
                f"while {self.name} ran in {self._choice.name(kind)} with tiles of {columns}×{rows} on a picture of "
                f"{width}×{height}"
            )
            raise

    def plan(self, image: Any, *, file_format: str = "") -> Plan:
        """What enlarging a picture will take, measured on this machine if it was not yet (about a second).

        Args:
            image: anything that can be enlarged, the path of an animation, or (width, height) of an 8-bit RGB picture.
            file_format: format of the result's file ("png", "jpeg", …); by default that of the path, or none
                for a picture in memory.

        Returns:
            The plan.

        Raises:
            TypeError: none of these kinds, or pixels of another dtype.
            ValueError: an array that is no picture, or a pair that is no size.
            EngineError: no engine runs the bundle.
        """
        size = measure(image)
        kind = self._network.kind(size.dtype)
        throughput = self._choice.throughput(kind)
        pixel_bytes = size.channels * size.dtype.itemsize
        plan = make_plan(
            self.bundle,
            self.engine(kind),
            replace(throughput, seconds=throughput.seconds * len(self._network.ways)),
            self._grid(size.height, size.width, self._choice.tile(kind), pixel_bytes),
            self.threads,
            pixel_bytes=pixel_bytes,
            frames=size.frames,
            file_format=file_format or size.file_format,
            notes=self.notes,
        )
        return replace(plan, bundle=self.name)

    def upscale_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        overwrite: bool = False,
        limit_pixels: int | None = None,
        background: tuple[int, int, int] | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Enlarge a file, with everything else it holds; memory does not grow with the result.

        Args:
            source: picture or animation to read.
            target: file to write; its suffix says the format.
            overwrite: replace a target that exists.
            limit_pixels: refuse larger pictures; by default what `foveal.images.read` allows.
            background: colour, 0 to 255, to put below transparent pixels where the format has no transparency.
            progress: function called after every batch of tiles.

        Returns:
            What was done.

        Raises:
            FileExistsError: the target exists and `overwrite` is False.
            ValueError: the source is no picture, or the target cannot hold it (`PictureError`).
            EngineError: no engine runs the bundle, or the one that ran it failed.
        """
        from foveal import images
        from foveal.images.formats import format_for

        source, target = Path(source), Path(target)
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target}: exists already; say --overwrite (overwrite=True) to replace it")
        start = time.perf_counter()
        reading = images.read(source, limit_pixels=images.LIMIT_PIXELS if limit_pixels is None else limit_pixels)
        frames = reading.frames
        width, height = reading.width * self.scale, reading.height * self.scale
        pixels = reading.info.total_pixels * self.scale**2
        step = _counter(progress, pixels)
        picture = reading.frame(0)
        kind = self._network.kind(picture.pixels.dtype)
        before = self._network.seconds
        writing = images.writer_for(reading, target, self.scale, overwrite=overwrite, background=background)
        notes: list[str] = []
        with writing as writer, BackgroundWriter(writer) as behind:
            for index in range(frames):
                if index:
                    picture = reading.frame(index)
                for band in self._bands(picture.pixels, picture.alpha, step, note=notes.append):
                    behind.rows(band)
        seconds = time.perf_counter() - start
        megapixels = pixels / 1e6
        if megapixels >= 1:
            learn_file_seconds(format_for(target).name, (seconds - (self._network.seconds - before)) / megapixels)
        return Result(
            source=source,
            target=target,
            width=width,
            height=height,
            frames=frames,
            megapixels=megapixels,
            seconds=seconds,
            bundle=self.name,
            engine=self.engine(kind),
            threads=self.threads,
            notes=tuple(dict.fromkeys([*self.notes, *notes, *writing.left_out])),
        )


def _counter(progress: Progress | None, pixels: int) -> Step | None:
    """Steps of tiles as calls of `progress`."""
    if progress is None:
        return None
    done = 0

    def step(region: tuple[int, int, int, int]) -> None:
        nonlocal done
        left, top, right, bottom = region
        done += (right - left) * (bottom - top)
        progress(done / 1e6, pixels / 1e6, region)

    return step
