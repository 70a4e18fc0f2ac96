"""What each library preserves: every format × property × candidate, as a Markdown table.

Each candidate does the job of `foveal upscale` with its own means: read a file, upscale the pixels by 2 (by repetition,
so that the right answer is known), write the file back with everything it can store. The result is judged from the
written file alone. foveal's own reader and writer are in the last column.

    python bench/pictures.py [--memory] [--json FILE]

`--memory` adds peak memory and time of writing 12 megapixels, each in a separate process (about a minute); the whole
picture is 36 MB.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "images")]

from picture_samples import XMP, camera, display_p3, smooth  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ("png", "jpeg", "webp", "tiff", "avif", "gif", "bmp")
SUFFIX = {"jpeg": "jpg", "tiff": "tif"}
PROPERTIES = {
    "colour": FORMATS,
    "profile": ("png", "jpeg", "webp", "tiff", "avif"),
    "EXIF, upright once": ("png", "jpeg", "webp", "tiff", "avif"),
    "XMP": ("jpeg", "webp", "tiff", "avif"),
    "resolution": ("png", "jpeg", "tiff", "bmp"),
    "alpha": ("png", "webp", "tiff", "avif", "bmp"),
    "16 bits": ("png", "tiff", "avif"),
    "grey": ("png", "jpeg", "tiff", "bmp"),
    "palette": ("png", "tiff", "gif", "bmp"),
    "CMYK looks right": ("jpeg", "tiff"),
    "animation timing": ("png", "webp", "avif", "gif"),
    "truncated is an error": FORMATS,
}
LIBRARIES = ("Pillow", "pyvips", "tifffile", "OpenCV", "imageio", "foveal")
PACKAGES = {"Pillow": "pillow", "OpenCV": "opencv-contrib-python-headless"}
TIMES = (50, 70, 120)


def double(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


# The candidates: read `source`, upscale by 2, write `target`.


def by_pillow(source: Path, target: Path) -> None:
    from PIL import Image, ImageOps, ImageSequence

    with Image.open(source) as image:
        options: dict[str, Any] = {key: image.info[key] for key in ("icc_profile", "xmp", "dpi") if key in image.info}
        frames, times = [], []
        for frame in ImageSequence.Iterator(image):
            upright = ImageOps.exif_transpose(frame)
            if upright.mode in ("P", "1", "CMYK"):
                upright = upright.convert("RGBA" if "transparency" in frame.info else {"1": "L"}.get(frame.mode, "RGB"))
                options.pop("icc_profile" if frame.mode == "CMYK" else "", None)
            frames.append(upright.resize((2 * upright.width, 2 * upright.height), Image.Resampling.NEAREST))
            times.append(frame.info.get("duration", 0))
        options["exif"] = ImageOps.exif_transpose(image).getexif()
        if len(frames) > 1:
            options |= {"save_all": True, "append_images": frames[1:], "duration": times,
                        "loop": image.info.get("loop", 0), "disposal": 2}  # fmt: skip
    quality = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True, "exact": True}}
    frames[0].save(target, **options, **quality.get(target.suffix, {"quality": 95}))


def by_pyvips(source: Path, target: Path) -> None:
    import pyvips

    several = source.suffix in (".gif", ".webp")
    image = pyvips.Image.new_from_file(str(source), fail_on="error", **({"n": -1} if several else {})).autorot()
    if image.interpretation == "cmyk":
        image = image.icc_transform("srgb", embedded=True)
    high = image.get_page_height()
    image = image.zoom(2, 2).copy()
    if several:
        image.set_type(pyvips.GValue.gint_type, "page-height", 2 * high)
    options = {".jpg": {"Q": 95, "subsample_mode": "off"}, ".webp": {"lossless": True}, ".tif": {"compression": "lzw"},
               ".avif": {"Q": 90, "subsample_mode": "off"}}  # fmt: skip
    image.write_to_file(str(target), **options.get(target.suffix, {}))


def by_tifffile(source: Path, target: Path) -> None:
    import tifffile

    with tifffile.TiffFile(source) as file:
        page = file.pages[0]
        tags = [(t.code, t.dtype, t.count, t.value, True) for t in page.tags if t.code in (271, 272, 700, 34675)]
        resolution = page.tags["XResolution"].value if "XResolution" in page.tags else None
        pixels = page.asarray()
        photometric = page.photometric if page.photometric in (0, 1, 2, 5) else None
    kwargs = {"resolution": (resolution, resolution), "resolutionunit": 2} if resolution else {}
    extra = ["unassalpha"] if pixels.ndim == 3 and pixels.shape[2] == 4 and photometric == 2 else None
    tifffile.imwrite(target, double(pixels), photometric=photometric, extratags=tags, extrasamples=extra, **kwargs)


def by_opencv(source: Path, target: Path) -> None:
    import cv2

    several, animation = cv2.imreadanimation(str(source)) if source.stem == "moving" else (False, None)
    if several and len(animation.frames) > 1:
        animation.frames = [double(frame) for frame in animation.frames]
        cv2.imwriteanimation(str(target), animation)
        return
    pixels, kinds, metadata = cv2.imreadWithMetadata(str(source), flags=cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise OSError("not read")
    cv2.imwriteWithMetadata(str(target), double(pixels), kinds, metadata)


def by_imageio(source: Path, target: Path) -> None:
    import imageio.v3 as iio

    several = source.stem == "moving"
    pixels = iio.imread(source, index=None if several else 0)
    metadata = iio.immeta(source)
    options = {key: metadata[key] for key in ("icc_profile", "exif", "dpi", "duration", "loop") if key in metadata}
    if target.suffix == ".tif":
        options = {}
    if target.suffix == ".webp":
        options["lossless"] = True
    iio.imwrite(target, np.stack([double(one) for one in pixels]) if several else double(pixels), **options)


def by_foveal(source: Path, target: Path) -> None:
    from foveal import images

    reading = images.read(source)
    with images.Writer(target, 2 * reading.width, 2 * reading.height, reading.channels, reading.metadata,
                       frames=reading.frames) as writer:  # fmt: skip
        for index in range(reading.frames):
            writer.rows(double(reading.frame(index).pixels))


CANDIDATES: dict[str, Callable[[Path, Path], None]] = {
    "Pillow": by_pillow, "pyvips": by_pyvips, "tifffile": by_tifffile, "OpenCV": by_opencv, "imageio": by_imageio,
    "foveal": by_foveal,
}  # fmt: skip


# The samples, created without the candidate under test where possible.


def make(property_: str, format_: str, folder: Path) -> Path:
    import pyvips
    from PIL import Image

    name = "moving" if property_ == "animation timing" else "still"
    path = folder / f"{name}.{SUFFIX.get(format_, format_)}"
    channels = {"alpha": 4, "grey": 1}.get(property_, 3)
    pixels = smooth(40, 60, channels)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    options: dict[str, Any] = {"quality": 98, "subsampling": 0} if format_ == "jpeg" else {"quality": 98}
    options = {"lossless": True, "exact": True} if format_ == "webp" else options
    exif = Image.Exif()
    exif.load(camera(6, 60, 40))
    if property_ == "16 bits":
        deep = pyvips.Image.new_from_array(smooth(40, 60, 3, np.uint16)).copy(interpretation="rgb16")
        deep.write_to_file(str(path), **({"bitdepth": 12, "lossless": True} if format_ == "avif" else {}))
        return path
    if property_ == "alpha" and format_ == "bmp":
        from foveal import images

        images.write(path, images.Picture(pixels, alpha=True))
        return path
    if property_ == "animation timing":
        frames = [Image.fromarray(np.roll(smooth(20, 30, 3), 5 * i, 1)) for i in range(3)]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=list(TIMES), loop=3, **options)
        return path
    if property_ == "palette":
        image = image.quantize(32)
    elif property_ == "CMYK looks right":
        inks = np.zeros((40, 60, 4), np.uint8)
        inks[:, 20:40], inks[:, 40:] = (0, 255, 255, 0), (0, 0, 0, 255)
        image = Image.fromarray(inks, "CMYK")
    if property_ == "XMP" and format_ == "tiff":
        import tifffile

        tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(700, 1, len(XMP), XMP, True)])
        return path
    extra = {"profile": {"icc_profile": display_p3()}, "EXIF, upright once": {"exif": exif}, "XMP": {"xmp": XMP},
             "resolution": {"dpi": (300, 300)}}  # fmt: skip
    image.save(path, **options, **extra.get(property_, {}))
    if property_ == "truncated is an error":
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    return path


def arrived(property_: str, format_: str, source: Path, target: Path) -> bool:
    """Judge the written file. Pixels are read by libvips (BMP: Pillow), the rest by Pillow or libvips."""
    import pyvips
    from PIL import Image

    with Image.open(target) as image:
        if property_ == "animation timing":
            times = []
            for index in range(getattr(image, "n_frames", 1)):
                image.seek(index)
                image.load()
                times.append(round(image.info.get("duration", 0)))
            loops = image.info.get("loop")
            with Image.open(source) as before:
                return tuple(times) == TIMES and (loops == before.info.get("loop") or format_ == "avif")
        if property_ == "profile":
            return image.info.get("icc_profile") == display_p3()
        if property_ == "XMP":
            return b"rdf:RDF" in (image.info.get("xmp") or b"")
        if property_ == "resolution":
            return "dpi" in image.info and abs(image.info["dpi"][0] - 300) < 0.1
        if property_ == "EXIF, upright once":
            exif = image.getexif()
            lens = exif.get_ifd(0x8769).get(0xA434, "")
            place = exif.get_ifd(0x8825).get(1)
            told = (exif.get(0x0110), exif.get(0x0112, 1)) == ("Model X", 1)
            with Image.open(source) as before:
                had = before.getexif().get_ifd(0x8769).get(0xA434)
            return told and image.size == (80, 120) and ((lens == "Lens 50" and place == "N") or not had)
        if format_ == "bmp":
            image.load()
            got = np.asarray(image)
            got = got[..., None] if got.ndim == 2 else got
        else:
            got = pyvips.Image.new_from_file(str(target)).numpy()
            got = got[..., None] if got.ndim == 2 else got
    loose = {"jpeg": 6, "avif": 8, "gif": 40}.get(format_, 0)
    if property_ == "16 bits":
        want = double(smooth(40, 60, 3, np.uint16))
        return got.dtype == np.uint16 and near(got, want, 8 * 257 if format_ == "avif" else 0)
    if property_ == "CMYK looks right":
        if pyvips.Image.new_from_file(str(target)).interpretation == "cmyk":
            got = pyvips.Image.new_from_file(str(target)).icc_transform("srgb", embedded=True).numpy()
        white, red, black = got[40, [20, 60, 100], :3].astype(int)
        return white.min() > 245 and red[0] > 180 and red[1:].max() < 80 and black.max() < 60
    channels = {"alpha": 4, "grey": 1}.get(property_, 3)
    want = double(smooth(40, 60, channels))
    if property_ == "palette":
        with Image.open(source) as before:
            want = double(np.asarray(before.convert("RGB")))
        got = got[..., :3]
    if format_ == "gif":
        got = got[..., :3]
    if property_ == "alpha" and got.shape == want.shape:  # invisible colours may change
        got, want = got * (want[..., 3:] > 0), want * (want[..., 3:] > 0)
    return near(got, want, loose)


def near(got: np.ndarray, want: np.ndarray, tolerance: int) -> bool:
    return got.shape == want.shape and int(np.abs(got.astype(int) - want).max()) <= tolerance


def cell(library: str, property_: str, format_: str) -> str:
    if library == "tifffile" and format_ != "tiff":
        return "–"
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = make(property_, format_, Path(name))
        target = Path(name) / f"out{source.suffix}"
        try:
            CANDIDATES[library](source, target)
            fine = arrived(property_, format_, source, target) and property_ != "truncated is an error"
        except Exception as error:
            if property_ == "truncated is an error":
                return "yes"
            return f"no ({type(error).__name__})"
        return "yes" if fine else "no"


# Memory and time of writing, in one process each.

WRITING = """
import sys, time
import numpy as np
def peak():  # unlike getrusage it does not count the process that started this one
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
library, path, suffix = sys.argv[1:4]
W, H, N = 4000, 3000, 250
steps = np.random.default_rng(0).integers(-2, 3, (N, W, 3), np.int8)
rows = np.cumsum(steps, axis=1, dtype=np.int8).view(np.uint8)
def whole(): return np.concatenate([rows] * (H // N))
if library == "Pillow":
    from PIL import Image as module
elif library == "pyvips":
    import pyvips as module
elif library == "tifffile":
    import tifffile as module
elif library == "OpenCV":
    import cv2 as module
elif library == "imageio":
    import imageio.v3 as module
else:
    from foveal.images import Writer
    from foveal.images._vips import vips
    vips()
before, begin = peak(), time.perf_counter()
if library == "Pillow":
    module.MAX_IMAGE_PIXELS = None
    options = {"jpg": {"quality": 95, "subsampling": 0}, "tif": {"compression": "tiff_lzw"},
               "png": {"compress_level": 2}}
    module.fromarray(whole()).save(path, **options[suffix])
elif library == "pyvips":
    image = module.Image.new_from_memory(whole(), W, H, 3, "uchar").copy(interpretation="srgb")
    options = {"jpg": {"Q": 95, "subsample_mode": "off"}, "tif": {"compression": "lzw", "predictor": "horizontal"},
               "png": {"compression": 2, "filter": "up"}}
    image.write_to_file(path, **options[suffix])
elif library == "tifffile":
    strips = (rows for _ in range(H // N))
    module.imwrite(path, strips, shape=(H, W, 3), dtype=np.uint8, rowsperstrip=N, photometric="rgb")
elif library == "OpenCV":
    options = {"jpg": [module.IMWRITE_JPEG_QUALITY, 95], "png": [module.IMWRITE_PNG_COMPRESSION, 2], "tif": []}
    module.imwrite(path, whole(), options[suffix])
elif library == "imageio":
    module.imwrite(path, whole())
else:
    with Writer(path, W, H, 3) as writer:
        for _ in range(H // N):
            writer.rows(rows)
seconds = time.perf_counter() - begin
print((peak() - before) // 1024, round(seconds, 1))
"""


def writing(library: str, suffix: str) -> str:
    if library == "tifffile" and suffix != "tif":
        return "–"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", WRITING, library, f"{folder}/a.{suffix}", suffix]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT / "src")}
        )
    if done.returncode:
        return f"no ({done.stderr.strip().splitlines()[-1].split(':')[0]})"
    megabytes, seconds = done.stdout.split()
    return f"{megabytes} MB, {seconds} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure memory and time of writing too")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    args = parser.parse_args()
    versions = {name: version(PACKAGES.get(name, name.lower())) for name in LIBRARIES if name != "foveal"}
    print(", ".join(f"{name} {number}" for name, number in versions.items()), f"· Python {platform.python_version()}\n")
    print("| property | format | " + " | ".join(LIBRARIES) + " |")
    print("|---|---|" + "---|" * len(LIBRARIES))
    results: dict[str, dict[str, dict[str, str]]] = {}
    for property_, formats in PROPERTIES.items():
        for format_ in formats:
            line = {library: cell(library, property_, format_) for library in LIBRARIES}
            results.setdefault(property_, {})[format_] = line
            print(f"| {property_} | {format_} | " + " | ".join(line.values()) + " |", flush=True)
    if args.memory:
        for suffix in ("png", "jpg", "tif"):
            line = {library: writing(library, suffix) for library in LIBRARIES}
            results.setdefault("writing 12 megapixels", {})[suffix] = line
            print(f"| writing 12 megapixels | {suffix} | " + " | ".join(line.values()) + " |", flush=True)
    totals = {library: sum(line[library] == "yes" for formats in results.values() for line in formats.values())
              for library in LIBRARIES}  # fmt: skip
    print("| **kept, of all** | | " + " | ".join(str(total) for total in totals.values()) + " |")
    if args.json:
        args.json.write_text(json.dumps({"versions": versions, "results": results, "totals": totals}, indent=2))


if __name__ == "__main__":
    main()
