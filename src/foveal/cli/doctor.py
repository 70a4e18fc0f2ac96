"""`foveal doctor`: which engines, kernels and formats work on this machine, and why the others do not."""

from __future__ import annotations

import importlib.util
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from foveal._install import install_hint
from foveal.cli._options import Json  # noqa: TC001  typer reads the annotation

__all__ = ["doctor"]

# Instruction sets that speed up convolutions, from the oldest to the newest.
_FEATURES = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16")


def doctor(json: Json = False) -> None:
    """Check engines, kernels, picture formats, processor and cache on this machine, with the reason for each failure.

    Every engine is opened and every format is written and read once, so "works" means that it was tried. The exit code
    is 1 if pictures cannot be upscaled on this machine.

    Args:
        json: print one JSON document.

    Raises:
        typer.Exit: with code 1 if pictures cannot be upscaled.

    Example:
        $ foveal doctor
        foveal 0.1.0, Python 3.11.7, Linux-6.18-x86_64-with-glibc2.36
        processor  Intel(R) Xeon(R) Processor @ 2.50GHz; sse4_2 avx avx2 fma f16c avx512f avx512_vnni
        threads    2
        cache      /home/me/.cache/foveal
        packages   numpy 2.4.6, pillow 13.0.0, pyvips 3.2.0, libvips 8.18.7, typer 0.29.2, rich 15.0.0
        bundles    fast_x2, balanced_x2, fast_x3, …, repair_light, repair_weather, repair_clean
        engines
          native       works 0.3.2
          onnxruntime  works 1.31.1
          openvino     does not work: openvino not installed; pip install '.[openvino]'
          torch        does not work: torch not installed; pip install '.[torch]'
          ncnn         does not work: ncnn not installed; pip install '.[ncnn]'
        kernels
          avx512_vnni  works in use
          avx512       works
          avx2         works
          plain        works
          triton       does not work: torch is not installed; pip install '.[torch]'
        formats
          png          works
          jpeg         works
          webp         works
          tiff         works
          avif         works
          gif          works
          bmp          works
          heic         does not work: needs pillow_heif, which is not installed; pip install '.[heic]'
          jxl          does not work: needs imagecodecs and pillow_jxl, which are not installed; pip install '.[jxl]'
          dng          does not work: needs rawpy, which is not installed; pip install '.[raw]'
    """
    report = _examine()
    if json:
        import json as json_module

        print(json_module.dumps(report, indent=2))
    else:
        _tell(report)
    if not any(e["works"] for e in report["engines"].values()) or not any(
        f["works"] for f in report["formats"].values()
    ):
        raise typer.Exit(1)


def _examine() -> dict[str, Any]:
    import foveal
    from foveal.runtime.bundle import available
    from foveal.runtime.engines import ENGINES
    from foveal.runtime.machine import cache_folder, cores, cpu_model

    folder = cache_folder()
    problems: list[str] = []
    try:
        bundles = [bundle.card.name for bundle in available()]
    except ValueError as error:
        bundles, problems = [], [str(error)]
    if not bundles:
        problems.append("no bundle is installed; install foveal again")
    return {
        "foveal": foveal.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": cpu_model(),
        "features": _features(),
        "threads": cores(),
        "cache": {"folder": str(folder), "writable": _writable(folder)},
        "packages": {name: _version(name) for name in ("numpy", "pillow", "pyvips", "libvips", "typer", "rich")},
        "engines": {name: _engine(name, bundles) for name in ENGINES},
        "kernels": _kernels(),
        "formats": _formats(),
        "bundles": bundles,
        "problems": problems,
    }


def _tell(report: dict[str, Any]) -> None:
    lines = [
        f"foveal {report['foveal']}, Python {report['python']}, {report['system']}",
        f"processor  {report['processor']}; {' '.join(report['features']) or 'features unknown'}",
        f"threads    {report['threads']}",
        f"cache      {report['cache']['folder']}" + ("" if report["cache"]["writable"] else " (cannot be written)"),
        "packages   " + ", ".join(f"{name} {number or 'missing'}" for name, number in report["packages"].items()),
        f"bundles    {', '.join(report['bundles']) or 'none'}",
        "engines",
        *(f"  {name:<12} {_state(entry)}" for name, entry in report["engines"].items()),
        "kernels",
        *(f"  {name:<12} {_state(entry)}" for name, entry in report["kernels"].items()),
        "formats",
        *(f"  {name:<12} {_state(entry)}" for name, entry in report["formats"].items()),
        *(f"problem: {problem}" for problem in report["problems"]),
    ]
    print("\n".join(lines))


def _state(entry: dict[str, Any]) -> str:
    version_text = f" {entry['version']}" if entry.get("version") else ""
    return f"works{version_text}" if entry["works"] else f"does not work: {entry['why']}"


def _features() -> list[str]:
    from foveal.runtime.machine import cpu_flags

    have = cpu_flags()
    return [feature for feature in _FEATURES if feature in have] + (["neon"] if "asimd" in have else [])


def _version(name: str) -> str:
    if name == "libvips":
        try:
            import pyvips
        except Exception:  # a broken libvips fails in many ways
            return ""
        return ".".join(str(pyvips.version(i)) for i in range(3))
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _kernels() -> dict[str, Any]:
    """The compiled backends of the operators: each instruction set, and Triton."""
    from foveal.runtime import kernels

    found: dict[str, Any] = {}
    if (reason := kernels.why_not()) is not None:
        found["native"] = {"works": False, "why": reason}
    else:
        import foveal_kernels

        usable = foveal_kernels.instruction_sets()
        for name in foveal_kernels.built():
            reason = foveal_kernels.why_not(name)
            used = {"version": "in use" if name == usable[0] else ""} if reason is None else {"why": reason}
            found[name] = {"works": reason is None, **used}
    if importlib.util.find_spec("torch") is None:
        reason = f"torch is not installed; {install_hint('torch')}"
    else:
        from foveal.ops.selective_scan import explain

        reason = explain().get("triton", "no Triton path")
    found["triton"] = {"works": reason == "can run", **({} if reason == "can run" else {"why": reason})}
    return found


def _engine(name: str, bundles: list[str]) -> dict[str, Any]:
    from foveal.runtime.engines import engine_kind, library_version, why_not

    if reason := why_not(name):
        return {"works": False, "why": reason}
    if engine_kind(name).reads != ".onnx":  # it runs imported models, and none of foveal's bundles is one
        return {"works": True, "version": library_version(name)}
    if not bundles:
        return {"works": False, "why": "no bundle to try it with"}
    try:
        import numpy as np

        from foveal.runtime.upscaler import Upscaler

        Upscaler(model=bundles[0], engine=name, threads=1)(np.full((8, 8, 3), 128, np.uint8))
    except Exception as error:
        return {"works": False, "why": f"{type(error).__name__}: {error}"}
    return {"works": True, "version": library_version(name)}


def _formats() -> dict[str, dict[str, Any]]:
    from foveal.images.formats import READABLE

    with tempfile.TemporaryDirectory() as folder:
        return {name: _format(name, Path(folder) / f"try{one.suffixes[0]}") for name, one in READABLE.items()}


def _format(name: str, path: Path) -> dict[str, Any]:
    from foveal.images.needs import why_not

    if reason := why_not(name):
        return {"works": False, "why": reason}
    try:
        import numpy as np

        from foveal import images

        pixels = np.full((8, 8, 3), 128, np.uint8)
        if name == "heic":  # what foveal does not write, its library does
            import pillow_heif

            pillow_heif.from_bytes("RGB", (8, 8), pixels.tobytes()).save(path)
        elif name == "jxl":
            import imagecodecs

            path.write_bytes(imagecodecs.jpegxl_encode(pixels))
        elif name == "dng":  # which no library writes; that it opens is what can be tried
            import rawpy

            return {"works": True, "version": f"reading, LibRaw {'.'.join(map(str, rawpy.libraw_version))}"}
        else:
            images.write(path, images.Picture(pixels, alpha=False))
        width = images.read(path).width
    except Exception as error:
        return {"works": False, "why": str(error) or type(error).__name__}
    if width != 8:
        return {"works": False, "why": f"a picture 8 wide came back {width} wide"}
    return {"works": True, "version": "reading"} if name not in images.FORMATS else {"works": True}
