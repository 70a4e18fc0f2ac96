"""What `--fix` asks for: names of repairs with commas between, some with a strength behind "=".

asked_fixes("rain,noise")              {"rain": "", "noise": ""}
asked_fixes("blur=1.5,exposure=+0.7")  a Gaussian of 1.5 pixels, seven tenths of a stop brighter
"""

from __future__ import annotations

from foveal.errors import FovealError
from foveal.images.exposure import MOST_STOPS

__all__ = ["AUTO", "FIXES", "FORMULAS", "FixError", "asked_fixes", "asked_number", "asked_stroke", "spelled"]

AUTO = "auto"
# What the user asks for → the repair that does it: those with a bundle, and those by a formula.
FIXES = {"jpeg": "clean", "noise": "clean", "rain": "weather", "snow": "weather", "light": "light"}
FORMULAS = {"holes": "holes", "blur": "blur", "exposure": "exposure", "rolling-shutter": "shutter"}
WIDEST = 4.0  # pixels, of a blur that can be undone
LONGEST = 40.0
_STRENGTHS = {
    "blur": "blur, blur=SIGMA in pixels, or blur=motion:LENGTH:ANGLE in pixels and degrees",
    "exposure": "exposure=STOPS",
    "rolling-shutter": "rolling-shutter=SHARE of the time between frames, from -1 to 1",
}


class FixError(FovealError, ValueError):
    """A repair that nobody knows, or that cannot be done here."""


def asked_fixes(fix: str) -> dict[str, str]:
    """What the user asks to be repaired.

    Args:
        fix: "auto", or names of `FIXES` and `FORMULAS` with commas between; `blur`, `exposure` and `rolling-shutter`
            take a strength behind "=".

    Returns:
        Strength of each as text, "" for none; nothing for "auto".

    Raises:
        FixError: an unknown name, none, or a strength that cannot be.
    """
    if fix == AUTO:
        return {}
    found = {}
    for part in fix.split(","):
        name, equals, strength = (one.strip() for one in part.partition("="))
        if name not in FIXES and name not in FORMULAS:
            raise FixError(f"fix must be auto, or of {', '.join(FIXES | FORMULAS)} with commas between, got {fix!r}")
        if equals and (name not in _STRENGTHS or not strength):
            wanted = _STRENGTHS.get(name, f"{name} alone")
            raise FixError(f"write {wanted}, got {part.strip()!r}; leave out what stands behind the name")
        found[name] = strength
        _check(name, strength)
    return found


def _check(name: str, strength: str) -> None:
    if name == "exposure" and not strength:
        raise FixError(
            "how bright a picture was meant to be cannot be told from it alone; say by how many stops, such as "
            "exposure=+1 for twice the light or exposure=-0.5, or take light for a dark picture"
        )
    if not strength:
        return
    if name == "exposure":
        asked_number(name, strength, -MOST_STOPS, MOST_STOPS)
    elif name == "rolling-shutter":
        asked_number(name, strength, -1, 1)
    elif name == "blur" and strength.startswith("motion"):
        asked_stroke(strength)
    elif name == "blur":
        asked_number(name, strength, 0.3, WIDEST)


def asked_number(name: str, strength: str, low: float, high: float) -> float:
    """A strength as a number.

    Args:
        name: what it is of.
        strength: text.
        low: smallest value.
        high: largest value.

    Returns:
        The number.

    Raises:
        FixError: no number, or one outside the range.
    """
    try:
        value = float(strength)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise FixError(f"{name} must be a number from {low:g} to {high:g}, got {strength!r}; write {_STRENGTHS[name]}")
    return value


def asked_stroke(strength: str) -> tuple[float, float]:
    """Length and angle of a movement.

    Args:
        strength: "motion:LENGTH:ANGLE".

    Returns:
        Pixels, and degrees to the vertical.

    Raises:
        FixError: another form, or a length outside 1 to 40 pixels.
    """
    parts = strength.split(":")
    try:
        length, angle = (float(one) for one in parts[1:])
    except ValueError:
        length = angle = float("nan")
    if parts[0] != "motion" or not 1 <= length <= LONGEST or not -360 <= angle <= 360:
        raise FixError(
            f"a movement must be motion:LENGTH:ANGLE with 1 to {LONGEST:g} pixels and degrees to the vertical, got "
            f"{strength!r}; write blur=motion:9:30"
        )
    return length, angle


def spelled(asked: dict[str, str]) -> str:
    """One spelling of each wish.

    Args:
        asked: as `asked_fixes` returns it.

    Returns:
        What `asked_fixes` takes.
    """
    names = [name for name in FIXES | FORMULAS if name in asked]
    return ",".join(f"{name}={asked[name]}" if asked[name] else name for name in names) or AUTO
