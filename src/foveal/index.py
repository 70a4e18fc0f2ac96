"""An index of the package's records, read from the files' text: nothing is imported until somebody asks for it.

One walk serves everyone: `create_model` imports the one file that holds the model, the catalogue imports all of them,
and a package that is missing in one file breaks no other. For that, id, name, kind and the model names of a record are
literals.
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
SKIPPED = ("cli", "serve", "catalogue")  # these read records, they hold none


class RecordError(FovealError, ValueError):
    """A record whose id, name, kind or model names cannot be read from the text, or that contradicts another."""


@dataclass(frozen=True)
class Indexed:
    """A record, as its file's text tells it.

    Args:
        module: dotted name of the module that holds it.
        path: file of that module.
        id: the row of the catalogue, None for foveal's own work.
        name: the method's name.
        kind: the record's kind.
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
    """The records below a folder; imports nothing.

    Args:
        folder: the package's folder.
        package: the package's dotted name.

    Returns:
        One entry a file that holds a record, sorted by file.

    Raises:
        RecordError: a record that cannot be read from the text, or two that share an id, a name or a model name.
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
    """The records of foveal.

    Returns:
        One entry a record, sorted by file.
    """
    return tuple(scan(ROOT, "foveal"))


def models() -> dict[str, Indexed]:
    """Where each registered model stands.

    Returns:
        Model name → record, for records below `foveal.models`.
    """
    return {name: item for item in index() if item.module.startswith("foveal.models.") for name in item.models}


def evidence_of(module: str) -> str:
    """The module that holds the evidence of a method: the same path below `foveal.evidence`.

    Args:
        module: dotted name of the method's module; a study is its own evidence.

    Returns:
        Dotted name.
    """
    head, _, rest = module.partition(".")
    return module if rest.startswith("evidence.") else f"{head}.evidence.{rest}"
