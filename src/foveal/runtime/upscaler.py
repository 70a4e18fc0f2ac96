"""The main job behind one call: a picture goes in, the same picture comes out larger, as the kind it was given.

upscale = Upscaler(scale=4, quality="balanced")
large = upscale(array)                          # path, PIL image, NumPy array or torch tensor
upscale.upscale_file("photo.jpg", "large.jpg")  # with everything else that the file holds; any size
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveal.runtime.bundle import Bundle, choose
from foveal.runtime.engines import ENGINES, create, default_threads, file_kind
from foveal.runtime.pixels import Network, enlarge, largest_value
from foveal.runtime.plan import (
    Pace,
    Plan,
    calibrate,
    learn_file_seconds,
    learn_load,
    make_plan,
    pick_engine,
    remembered,
)
from foveal.runtime.tiles import Grid, make_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from foveal.images import PagesWriter, Picture, Writer

__all__ = ["Progress", "Result", "Upscaler"]

# Called with megapixels of the result that are done, those in all, and the part just finished as (left, top, right,
# bottom) in pixels of the result.
Progress = Callable[[float, float, tuple[int, int, int, int]], None]

_DEFAULT_TILE = 256  # as long as nothing was measured here


@dataclass(frozen=True)
class Result:
    """What was done to one file.

    Args:
        source: that was read.
        target: that was written.
        width: of the result, in pixels.
        height: of the result.
        frames: 1, or those of an animation.
        megapixels: of the result, all frames.
        seconds: reading and writing included.
        bundle: name of the bundle.
        engine: name of the engine.
        threads: processor threads.
        notes: sentences the user should read.
    """

    source: Path
    target: Path
    width: int
    height: int
    frames: int
    megapixels: float
    seconds: float
    bundle: str
    engine: str
    threads: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data.

        Returns:
            Its fields.
        """
        return {**asdict(self), "source": str(self.source), "target": str(self.target), "notes": list(self.notes)}


class Upscaler:
    """Makes pictures larger.

    Engines are opened with the first picture and kept, so one Upscaler for many pictures is the fast way. Not for
    several threads at once.

    Args:
        scale: output side over input side: 2, 3 or 4. With `model`, its scale counts.
        quality: "fast", "balanced" or "best": which shipped bundle. Where there is none for "best", the better of the
            others; with a `model` too, "best" is the mean of what the network makes of the picture and of its mirror
            images, which an equivariant one makes in one pass.
        model: name of a bundle or path of its folder, instead of `scale` and `quality`.
        engine: "auto" (the fastest here), "native", "onnxruntime", "openvino" or "torch".
        threads: processor threads; by default all that this process may use.
        tile: side of a tile in input pixels, or "auto".

    Raises:
        ValueError: a value that cannot be.
    """

    def __init__(
        self,
        scale: int = 4,
        quality: str = "balanced",
        *,
        model: str | Path | Bundle | None = None,
        engine: str = "auto",
        threads: int | None = None,
        tile: int | str = "auto",
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if tile != "auto" and (not isinstance(tile, int) or tile < 1):
            raise ValueError(f'tile must be "auto" or a number of pixels of at least 1, got {tile!r}')
        if engine != "auto" and engine not in ENGINES:
            raise ValueError(f"engine must be auto or one of {', '.join(ENGINES)}, got {engine!r}")
        note = ""
        if model is None:
            self.bundle, note = choose(scale, quality)
        else:
            self.bundle = model if isinstance(model, Bundle) else Bundle.load(model)
        self.card = self.bundle.card
        self.threads = threads or default_threads()
        self.tile = tile
        self.notes: tuple[str, ...] = (note,) if note else ()
        self._wanted = engine
        self._engines: dict[str, str] = {}
        self._paces: dict[str, Pace] = {}
        self._tiles: dict[str, int] = {}
        self._network = Network(self.card, self._open, mirrored=quality == "best")

    @property
    def name(self) -> str:
        """What enlarges: the bundle, and whether its mirror images take part."""
        return f"{self.card.name} mirrored" if len(self._network.ways) > 1 else self.card.name

    @property
    def scale(self) -> int:
        """Output side over input side."""
        return self.card.scale

    def engine(self, kind: str = "") -> str:
        """Name of the engine, chosen now if it was not before.

        Args:
            kind: "uint8" for 8-bit pictures or "float" for the others; by default what 8-bit pictures take.

        Returns:
            The name.
        """
        kind = kind or self._network.kind(np.dtype(np.uint8))
        if kind not in self._engines:
            name, note = pick_engine(self._wanted, self.bundle, self.threads, kind)
            self._engines[kind] = name
            if note and note not in self.notes:
                self.notes += (note,)
        return self._engines[kind]

    def _open(self, kind: str) -> Any:
        name = self.engine(kind)
        path = self.bundle.file(file_kind(name, kind, self.card.files))
        start = time.perf_counter()
        opened = create(name, path, self.threads, exact=kind == "float")
        learn_load(self.bundle, name, self.threads, kind, time.perf_counter() - start)
        return opened

    def prepare(self) -> None:
        """Open now what the pictures planned so far will need, so that the first is not kept waiting."""
        for kind in self._paces:
            self._network.prepare(kind)

    def _pace(self, kind: str, *, measure: bool) -> Pace | None:
        if kind not in self._paces:
            find = calibrate if measure else remembered
            pace = find(self.bundle, self.engine(kind), self.threads, kind)
            if pace is None:
                return None
            self._paces[kind] = replace(pace, seconds=pace.seconds * len(self._network.ways))
            if self.tile == "auto":
                self._tiles[kind] = pace.tile
        return self._paces[kind]

    def _tile(self, kind: str) -> int:
        if isinstance(self.tile, int):
            return self.tile
        if kind not in self._tiles:  # looked up once: a small picture takes less time than the look
            pace = self._pace(kind, measure=False)
            self._tiles[kind] = pace.tile if pace else _DEFAULT_TILE
        return self._tiles[kind]

    def _grid(self, height: int, width: int, tile: int, pixel_bytes: int, *, exactly: bool = False) -> Grid:
        automatic = self.tile == "auto" and not exactly
        return make_grid(height, width, tile, self.card, automatic=automatic, pixel_bytes=pixel_bytes)

    # What is enlarged

    def __call__(self, image: Any, progress: Progress | None = None) -> Any:
        """Enlarge a picture.

        Args:
            image: a path; a PIL image; a NumPy array (H, W) or (H, W, C), uint8, uint16 or floating point in [0, 1],
                where the last of two or four channels is alpha; a torch tensor (C, H, W) or (B, C, H, W), uint8,
                uint16 or floating point in [0, 1]; or a `foveal.images.Picture`.
            progress: called after every batch of tiles.

        Returns:
            The same kind, `scale` times as large: for a path a `foveal.images.Picture`, which keeps profile and
            metadata (`foveal.images.write` writes it); for a PIL image a PIL image, in RGB or RGBA if it had a palette
            or four inks; for an array an array of its dtype; for a tensor a tensor of its dtype on its device.

        Raises:
            TypeError: none of these kinds.
            ValueError: an array that is no picture, or the path of an animation.
        """
        if isinstance(image, np.ndarray):
            return self._of_array(image, progress)
        if isinstance(image, str | os.PathLike):
            return self._of_path(Path(image), progress)
        # Whoever has a tensor or a PIL image has loaded its library, so nothing is imported to find out.
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(image, torch.Tensor):
            return self._of_tensor(image, torch, progress)
        pillow = sys.modules.get("PIL.Image")
        if pillow is not None and isinstance(image, pillow.Image):
            return self._of_pillow(image, pillow, progress)
        if hasattr(image, "pixels") and hasattr(image, "metadata"):
            return replace(image, pixels=self._pixels(image.pixels, image.alpha, progress))
        raise TypeError(
            f"image must be a path, a PIL image, a NumPy array or a torch tensor, got {type(image).__module__}."
            f"{type(image).__qualname__}"
        )

    def _of_array(self, image: NDArray, progress: Progress | None) -> NDArray:
        if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] > 4):
            raise ValueError(
                f"an array must be (H, W) or (H, W, C) with C from 1 to 4 and not empty, got shape {image.shape}"
            )
        pixels = image[..., None] if image.ndim == 2 else image
        _check_values(image)
        out = self._pixels(pixels, pixels.shape[2] in (2, 4), progress)
        return out[..., 0] if image.ndim == 2 else out

    def _of_path(self, path: Path, progress: Progress | None) -> Picture:
        from foveal import images

        reading = images.read(path)
        if reading.frames > 1:
            raise ValueError(f"{path}: holds {reading.frames} frames; upscale_file(source, target) does all of them")
        picture = reading.frame(0)
        return replace(picture, pixels=self._pixels(picture.pixels, picture.alpha, progress))

    def _of_tensor(self, image: Any, torch: Any, progress: Progress | None) -> Any:
        if image.ndim not in (3, 4) or 0 in image.shape or image.shape[-3] > 4:
            raise ValueError(
                f"a tensor must be (C, H, W) or (B, C, H, W) with C from 1 to 4 and not empty, got {tuple(image.shape)}"
            )
        batch = image.detach().cpu()
        if batch.dtype == torch.bfloat16:  # NumPy has no such type
            batch = batch.float()
        done = []
        for one in batch if image.ndim == 4 else [batch]:
            pixels = one.numpy().transpose(1, 2, 0)
            _check_values(pixels)
            channels, height, width = one.shape
            planes = np.empty((channels, height * self.scale, width * self.scale), pixels.dtype)
            self._pixels(pixels, channels in (2, 4), progress, planes.transpose(1, 2, 0))
            done.append(torch.from_numpy(planes))
        out = torch.stack(done) if image.ndim == 4 else done[0]
        return out.to(device=image.device, dtype=image.dtype)

    def _of_pillow(self, image: Any, pillow: Any, progress: Progress | None) -> Any:
        kept = {k: v for k, v in image.info.items() if k in ("icc_profile", "exif", "xmp", "dpi", "gamma", "srgb")}
        if image.mode in ("CMYK", "LAB"):
            kept.pop("icc_profile", None)  # it describes inks, not the RGB that comes out
            from foveal.images.pillow import plain

            image = plain(image)
        # A photograph's MPO holds previews and gain maps behind it, which are no frames.
        if getattr(image, "n_frames", 1) > 1 and image.tell() == 0 and image.format != "MPO":
            warnings.warn(
                f"this PIL image holds {image.n_frames} frames, and the first alone is enlarged; "
                "upscale_file(source, target) does all of them",
                stacklevel=3,
            )
        clear = "transparency" in image.info
        sixteen = image.mode.startswith("I;16")
        if not sixteen:
            alike = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
            mode = alike.get(image.mode, "RGB")
            if image.mode in ("F", "I"):
                raise ValueError(
                    f"PIL mode {image.mode} does not say what white is; give an array: uint16, or floats in [0, 1]"
                )
            if clear:
                mode = {"L": "LA", "RGB": "RGBA"}.get(mode, mode)
            if mode != image.mode:
                # La and RGBa only know the way through their own straight counterpart.
                image = image.convert(mode)
        pixels = np.asarray(image)
        if sixteen:
            pixels = pixels.astype(np.uint16)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        out = self._pixels(pixels, pixels.shape[2] in (2, 4), progress)
        large = pillow.fromarray(out[..., 0] if out.shape[2] == 1 else out)
        large.info.update(kept)
        return large

    def _pixels(self, pixels: NDArray, alpha: bool, progress: Progress | None, out: NDArray | None = None) -> NDArray:
        """A picture in memory, (H, W, C) to (s·H, s·W, C)."""
        height, width, channels = pixels.shape
        if out is None:
            out = np.empty((height * self.scale, width * self.scale, channels), pixels.dtype)
        for _ in self._bands(pixels, alpha, _counter(progress, height * width * self.scale**2), out):
            pass
        return out

    def _bands(self, pixels: NDArray, alpha: bool, step: Any, out: NDArray | None = None) -> Any:
        kind = self._network.kind(pixels.dtype)
        first = self._tile(kind)
        pixel_bytes = pixels.shape[2] * pixels.itemsize
        height, width = pixels.shape[:2]

        def grid_for(tile: int) -> Grid:
            # After running out of memory a tile must not grow by the half that automatic tiles may.
            return self._grid(height, width, tile, pixel_bytes, exactly=tile != first)

        def smaller(tile: int) -> None:
            note = f"out of memory: went on with tiles of {tile}"
            if note not in self.notes:
                self.notes += (note,)

        return enlarge(pixels, self._network, grid_for, first, alpha=alpha, out=out, step=step, smaller=smaller)

    # What is told before, and files

    def plan(self, image: Any, *, file_format: str = "") -> Plan:
        """What enlarging a picture will take, measured on this machine if it was not yet (about a second).

        Args:
            image: anything that can be enlarged, or (width, height) of an 8-bit RGB picture.
            file_format: that the result will be written in ("png", "jpeg", …); by default that of the path, or none
                for a picture in memory.

        Returns:
            The plan.
        """
        height, width, channels, item, frames = 0, 0, 3, 1, 1
        if isinstance(image, tuple):
            width, height = image
        elif isinstance(image, str | os.PathLike):
            from foveal import images

            info = images.probe(Path(image))
            width, height, channels, frames = info.width, info.height, info.channels, info.frames
            item = info.bits // 8
            file_format = file_format or info.format
        elif isinstance(image, np.ndarray):
            height, width = image.shape[:2]
            channels, item = (image.shape[2] if image.ndim == 3 else 1), image.itemsize
        elif hasattr(image, "pixels"):
            (height, width, channels), item = image.pixels.shape, image.pixels.itemsize
        elif hasattr(image, "getbands"):
            (width, height), channels = image.size, len(image.getbands())
        elif hasattr(image, "element_size"):
            channels, height, width = image.shape[-3:]
            item, frames = image.element_size(), (image.shape[0] if image.ndim == 4 else 1)
        else:
            raise TypeError(f"no plan for a {type(image).__qualname__}; give a picture, a path or (width, height)")
        return self._plan((height, width), channels, item, frames, file_format)

    def _plan(self, size: tuple[int, int], channels: int, item: int, frames: int, file_format: str) -> Plan:
        height, width = size
        kind = self._network.kind(np.dtype(np.uint8 if item == 1 else np.uint16))
        pace = self._pace(kind, measure=True)
        if pace is None:
            raise RuntimeError("a calibration must give a pace")
        grid = self._grid(height, width, self._tile(kind), channels * item)
        plan = make_plan(
            self.bundle,
            self.engine(kind),
            pace,
            grid,
            self.threads,
            pixel_bytes=channels * item,
            frames=frames,
            file_format=file_format,
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
            target: to write; its suffix says the format.
            overwrite: replace a target that exists.
            limit_pixels: refuse larger pictures; by default what `foveal.images.read` allows.
            background: colour, 0 to 255, to put below transparent pixels where the format has no transparency.
            progress: called after every batch of tiles.

        Returns:
            What was done.

        Raises:
            FileExistsError: the target exists and `overwrite` is False.
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
        with writing as writer, _Behind(writer) as behind:
            for index in range(frames):
                if index:
                    picture = reading.frame(index)
                for band in self._bands(picture.pixels, picture.alpha, step):
                    behind.rows(band)
        seconds = time.perf_counter() - start
        megapixels = pixels / 1e6
        if megapixels >= 1:
            learn_file_seconds(format_for(target).name, (seconds - (self._network.seconds - before)) / megapixels)
        return Result(
            source,
            target,
            width,
            height,
            frames,
            megapixels,
            seconds,
            self.name,
            self.engine(kind),
            self.threads,
            self.notes + writing.left_out,
        )


def _check_values(image: NDArray) -> None:
    """Floats must be in [0, 1], or what was meant as 0 to 255 would come out white; a little beyond is forgiven."""
    largest_value(image.dtype)
    if image.dtype.kind == "f":
        low, high = float(image.min()), float(image.max())
        if not (low >= -0.5 and high <= 1.5):
            raise ValueError(
                f"floating-point pixels must be in [0, 1], got {low:g} to {high:g}; divide by 255 (or give uint8)"
            )


def _counter(progress: Progress | None, pixels: int) -> Any:
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


class _Behind:
    """Writes bands in a thread of its own, so that compressing one and computing the next go together.

    Args:
        writer: takes the bands. Nobody else may use it until this is left.
    """

    def __init__(self, writer: Writer | PagesWriter) -> None:
        self._writer = writer
        self._bands: queue.Queue[NDArray | None] = queue.Queue(maxsize=1)
        self._error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._work, name="foveal-writer", daemon=True)

    def __enter__(self) -> _Behind:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error what still waits is thrown away; the writer removes what was written.
        self._stop = kind is not None
        while True:
            try:
                self._bands.put(None)
                self._thread.join()
                break
            except KeyboardInterrupt as error:
                # The writer may only be closed once its thread is done with it.
                self._stop = True
                self._error = error
        if kind is None and self._error is not None:
            raise self._error

    def rows(self, band: NDArray) -> None:
        """Give a band to the writer; waits while another is still waiting.

        Args:
            band: rows, (n, W, C).
        """
        if self._error is not None:
            raise self._error
        self._bands.put(band)

    def _work(self) -> None:
        while (band := self._bands.get()) is not None:
            if self._error is None and not self._stop:
                try:
                    self._writer.rows(band)
                except BaseException as error:  # handed to the thread that waits
                    self._error = error
