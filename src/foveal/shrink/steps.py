"""Recipes: steps by name, from a TOML file to frozen dataclasses, and the orders that cannot work.

[[step]]
name = "prune"
keep = 0.5

[[step]]
name = "distil"  # the untouched model is the teacher unless another one is named
steps = 500

[[step]]
name = "quantise"
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.shrink.step import ShrinkError, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

__all__ = ["STEPS", "check_order", "describe", "read_recipe", "step_class", "untouched"]

STEPS = {
    "distil": "foveal.shrink.distill.distillation:Distil",
    "tune": "foveal.shrink.tune:Tune",
    "fold": "foveal.shrink.fold.step:Fold",
    "prune": "foveal.shrink.prune.structure:Prune",
    "swap": "foveal.shrink.swap.swap:Swap",
    "lowrank": "foveal.shrink.lowrank.step:LowRank",
    "quantise": "foveal.shrink.quantize.int8:Quantise",
    "merge": "foveal.shrink.tokens.merge:Merge",
    "drop": "foveal.shrink.tokens.drop:Drop",
    "turbo": "foveal.shrink.tokens.turbo:Turbo",
    "foveate": "foveal.shrink.tokens.foveate:Foveate",
    "topvim": "foveal.shrink.tokens.top_vim:ToPViM",
    "sparsevit": "foveal.shrink.tokens.sparsevit:SparseViT",
}
_TRAINS = {"Distil", "Tune"}
_CUTS = {"Prune", "LowRank", "Fold", "Swap"}


def untouched(x: Tensor) -> Tensor:  # noqa: ARG001 - a teacher's signature
    """Teacher of a recipe's `Distil`: the model before the first step.

    Args:
        x: inputs.

    Returns:
        Never.

    Raises:
        ShrinkError: called outside a recipe.
    """
    raise ShrinkError("`untouched` stands for the model before the first step; run the step by foveal.shrink(…)")


def step_class(name: str) -> type[Any]:
    """The dataclass of a step.

    Args:
        name: one of `STEPS`.

    Returns:
        The class.

    Raises:
        ShrinkError: no such step.
    """
    if name not in STEPS:
        close = get_close_matches(name, STEPS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ShrinkError(f"no step is called {name!r}; {hint}steps are {', '.join(STEPS)}")
    module, _, word = STEPS[name].partition(":")
    return getattr(import_module(module), word)


def read_recipe(source: Path | str, teachers: Callable[[str], nn.Module] | None = None) -> list[Step]:
    """Read the steps of a recipe.

    Args:
        source: TOML file, or its text if it holds a line break.
        teachers: function from the name of a teacher in the recipe to the model; without it only "untouched" is known.

    Returns:
        Steps.

    Raises:
        ShrinkError: a file that cannot be read, an unknown step or field, a value that a step refuses, or an order
            that cannot work.
    """
    name = "recipe" if "\n" in str(source) else str(source)
    try:
        text = str(source) if "\n" in str(source) else Path(source).read_text(encoding="utf-8")
        given = tomllib.loads(text)
    except OSError as error:
        raise ShrinkError(f"{name}: cannot be read ({error.strerror}); give a TOML file of steps") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ShrinkError(f"{name}: not TOML ({error})") from error
    tables = given.get("step")
    if set(given) - {"step"} or not isinstance(tables, list) or not tables:
        extra = sorted(set(given) - {"step"})
        got = f"got {extra[0]!r}" if extra else "got none"
        raise ShrinkError(f"{name}: a recipe is one or more [[step]] tables, {got}; see docs/shrink.md")
    steps = [_step(f"{name}: step {i}", table, teachers) for i, table in enumerate(tables, 1)]
    check_order(steps)
    return steps


def _step(where: str, table: dict[str, Any], teachers: Callable[[str], nn.Module] | None) -> Step:
    values = dict(table)
    word = values.pop("name", None)
    if not isinstance(word, str):
        raise ShrinkError(f'{where} needs a name, such as name = "prune"')
    try:
        kind = step_class(word)
    except ShrinkError as error:
        raise ShrinkError(f"{where}: {error}") from None
    known = {field.name: field for field in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        close = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ShrinkError(f"{where}: {word} has no field {unknown[0]!r}; {hint}fields are {', '.join(known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    if "teacher" in known:
        teacher = values.get("teacher", "untouched")
        if teacher == "untouched":
            values["teacher"] = untouched
        elif teachers is None:
            raise ShrinkError(f'{where}: teacher = {teacher!r} is unknown; "untouched" is the model itself')
        else:
            values["teacher"] = teachers(teacher)
        if "loss" in values:
            raise ShrinkError(f"{where}: a loss is given from Python, Distil(loss=…); leave it out")
    if missing := [n for n, f in known.items() if n not in values and f.default is f.default_factory is MISSING]:
        raise ShrinkError(f"{where}: {word} needs {', '.join(missing)}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ShrinkError(f"{where}: {word}: {error}") from error


def describe(step: object) -> str:
    """A step as its report shows it: the fields that differ from their defaults.

    Args:
        step: a step.

    Returns:
        Such as "Prune(keep=0.5)".
    """
    if not is_dataclass(step):
        return repr(step)
    parts = []
    for field in fields(step):
        value = getattr(step, field.name)
        if value == field.default and field.default is not MISSING and field.name != "steps":
            continue
        shown = value if isinstance(value, str | int | float | tuple | None) else getattr(value, "__name__", None)
        if is_dataclass(value) and not isinstance(value, type):  # a step inside a step
            shown = describe(value)
        parts.append(f"{field.name}={shown if shown is not None else type(value).__name__}")
    return f"{type(step).__name__}({', '.join(parts)})"


def check_order(steps: Sequence[object]) -> None:
    """Refuse orders that cannot work.

    Args:
        steps: steps, in order.

    Raises:
        ShrinkError: an order that cannot work, or something that is no step.
    """
    names = [type(step).__name__ for step in steps]
    for step, name in zip(steps, names, strict=True):
        if not isinstance(step, Step):
            raise ShrinkError(f"a recipe holds steps such as Prune(keep=0.5), got {name}: {step!r}")
    for i, name in enumerate(names):
        before = names[:i]
        if "Quantise" in before:
            why = "it would train floats that the integers no longer follow" if name in _TRAINS else None
            why = why or ("there are integers already" if name == "Quantise" else "")
            why = why or "the integers of the file are made from the network as it is then"
            raise ShrinkError(f"{name} after Quantise cannot work: {why}; put Quantise last")
        if name == "Prune" and "LowRank" in before:
            raise ShrinkError(
                "Prune after LowRank cannot work: two thin layers in place of one hide the channels and heads that "
                "belong together; put Prune first"
            )
        if name == "LowRank" and name in before:
            raise ShrinkError("LowRank after LowRank cannot work: its factors are thin already; lower keep instead")
