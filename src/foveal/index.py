"""Index of the package's records, read from the text of the files without importing them.

All callers share one walk: `create_model` imports the one file that defines the model, the catalogue imports all of
them, and a package that one file lacks affects no other file. This requires the id, name, kind and model names of a
record to be literals.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from foveal.errors import FovealError

__all__ = ["Indexed", "RecordError", "evidence_of", "index", "models", "scan"]

ROOT = Path(__file__).resolve().parent
_RECORD = re.compile(r"^METHOD\s*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
SKIPPED = ("cli", "serve", "catalogue")  # these read records and define none


class RecordError(FovealError, ValueError):
    """A record whose id, name, kind or model names cannot be read from the text, or that conflicts with another."""


@dataclass(frozen=True)
class Indexed:
    """A record as read from the text of its file.

    Args:
        module: dotted name of the module that defines it.
        path: path of that module.
        id: number of its row in the catalogue; None for foveal's own work.
        name: name of the method.
        kind: kind of the record.
        models: registered model names.
    """

    module: str
    path: Path
    id: int | None
    name: str
    kind: str
    models: tuple[str, ...]


def _literal(path: Path, call: ast.Call, word: str) -> object:
    for keyword in call.keywords:
        if keyword.arg == word:
            try:
                return ast.literal_eval(keyword.value)
            except ValueError:
                raise RecordError(
                    f"{path}: {word} of METHOD must be a literal, so that it can be read as text"
                ) from None
    raise RecordError(f"{path}: METHOD says no {word}; write it as Method({word}=…)")


def _models(path: Path, call: ast.Call) -> tuple[str, ...]:
    for keyword in call.keywords:
        if keyword.arg == "models":
            keys = keyword.value.keys if isinstance(keyword.value, ast.Dict) else [None]
            names = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            if len(names) != len(keys):
                raise RecordError(f"{path}: models of METHOD must be written out as {{'name': builder, …}}")
            return tuple(names)
    return ()


def _read(path: Path, module: str) -> Indexed | None:
    text = path.read_text(encoding="utf-8")
    start = _RECORD.search(text)
    if start is None:
        return None
    (statement, *_) = ast.parse(text[start.start() :]).body
    call = getattr(statement, "value", None)
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Method"):
        raise RecordError(f"{path}: METHOD must be a call of Method(…) with keyword arguments")
    number, name, kind = (_literal(path, call, word) for word in ("id", "name", "kind"))
    return Indexed(module, path, number, str(name), str(kind), _models(path, call))  # type: ignore[arg-type]


def scan(folder: Path, package: str) -> list[Indexed]:
    """Find the records below a folder without importing anything.

    Args:
        folder: folder of the package.
        package: dotted name of the package.

    Returns:
        One entry per file with a record, sorted by file.

    Raises:
        RecordError: a record cannot be read from the text, or two records share an id, a name or a model name.
    """
    found = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[0] in SKIPPED:
            continue
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if held := _read(path, ".".join((package, *parts))):
            found.append(held)
    seen: dict[tuple[str, object], Indexed] = {}
    for item in found:
        keys: list[tuple[str, object]] = [("name", item.name), *(("model", name) for name in item.models)]
        keys += [("id", item.id)] if item.id is not None else []
        for key in keys:
            if other := seen.get(key):
                raise RecordError(
                    f"{key[0]} {key[1]!r} is taken twice: by {other.name} in {other.path} and by {item.name} in "
                    f"{item.path}; change one of them"
                )
            seen[key] = item
    return found


@cache
def index() -> tuple[Indexed, ...]:
    """All records of foveal.

    Returns:
        One entry per record, sorted by file.
    """
    return tuple(scan(ROOT, "foveal"))


def models() -> dict[str, Indexed]:
    """The record of each registered model.

    Returns:
        Record by model name, for records below `foveal.models`.
    """
    return {name: item for item in index() if item.module.startswith("foveal.models.") for name in item.models}


def evidence_of(module: str) -> str:
    """The module with the evidence of a method: the same path below `foveal.evidence`.

    Args:
        module: dotted name of the method's module; a study contains its own evidence.

    Returns:
        Dotted name of the evidence module.
    """
    head, _, rest = module.partition(".")
    return module if rest.startswith("evidence.") else f"{head}.evidence.{rest}"
