"""Write the skeleton of a method from its row of the catalogue: method, evidence and tests, ready to be filled in.

    python scripts/new_method.py ESPCN models/restore/espcn
    python scripts/new_method.py LinearSR models/restore/linear_sr     # foveal's own work: no row of that name

The method's file states the paper and the mechanism, the evidence file has one claim for each clause of the row's bar,
and the test file one failing test. Existing files are never overwritten. Until it is filled in, the skeleton fails its
tests: a claim that is not written raises, so it cannot be mistaken for one that holds.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

from foveal.catalogue.collect import closest
from foveal.catalogue.entries import Entry, entries, fold

ROOT = Path(__file__).resolve().parents[1]
KINDS = {  # kind in the catalogue → kind of the record, and its case
    "architecture": "model",
    "training": "objective",
    "operator": "operator",
    "inference": "procedure",
    "transform": "transform",
    "theory": "study",
    "benchmark": "study",
    "application": "application",
}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _filled(text: str, width: int = 118) -> str:
    return textwrap.fill(" ".join(text.split()), width)


def _record(name: str, entry: Entry | None, stem: str, kind: str) -> str:
    title = entry.title if entry else f"{name}, foveal's own"
    models = ""
    if kind == "model":
        models = f'    models={{"{stem}": {_camel(stem)}}},\n    cases={{"{stem}": {{}}}},\n'
    head = f'METHOD = Method(\n    id={entry.id if entry else None},\n    name={_quoted(name)},\n    kind="{kind}",\n'
    paper = f'    paper=Paper(\n        {_quoted(title)},\n        "",\n        2000,\n        "",\n    ),\n'
    return f'{head}    summary="",\n{paper}{models})\n'


def _camel(stem: str) -> str:
    return "".join(part.capitalize() for part in stem.split("_"))


def method(name: str, entry: Entry | None, stem: str, kind: str) -> str:
    """Text of the method's file.

    Args:
        name: the method's name.
        entry: its row, None for foveal's own work.
        stem: name of the file, without suffix.
        kind: kind of the record.

    Returns:
        The text.
    """
    title = entry.title if entry else "foveal's own"
    mechanism = _filled(entry.mechanism) if entry else "Mechanism."
    code = f"; the authors' code is at {entry.code}" if entry and entry.code else ""
    exported = _camel(stem) if kind == "model" else stem
    body = (
        f'class {exported}(nn.Module):\n    """(B, in_channels, H, W) to …."""\n\n'
        "    def forward(self, x: Tensor) -> Tensor:\n        raise NotImplementedError\n"
        if kind == "model"
        else f'def {exported}() -> None:\n    """Do it."""\n    raise NotImplementedError\n'
    )
    return "\n".join(
        [
            f'"""{name}: one sentence saying what it does.',
            "",
            _filled(f"*Source*: {title}; section, equation{code}."),
            "",
            mechanism,
            "",
            "    formula with shapes",
            "",
            "*Differs from the paper*: nothing.",
            "*Provenance*: written from the paper.",
            '"""',
            "",
            "from __future__ import annotations",
            "",
            *(["from torch import Tensor, nn", ""] if kind == "model" else []),
            "from foveal.record import Method, Paper",
            "",
            f'__all__ = ["{exported}"]',
            "",
            "",
            body,
            "",
            _record(name, entry, stem, kind),
        ]
    )


def evidence(name: str, entry: Entry | None) -> str:
    """Text of the evidence file, or the claims of a study.

    Args:
        name: the method's name.
        entry: its row, None for foveal's own work.

    Returns:
        The text, with one claim for each clause of the bar.
    """
    claims = []
    for number, clause in enumerate(entry.clauses if entry else ("",), start=1):
        says = _quoted(f"{clause}." if clause else "")
        answers = f"clause={number}" if entry else 'beyond=""'
        claims += ["    equal(", f"        {says},", "        ours=_unwritten,", "        theirs=_unwritten,"]
        claims += [f"        {answers},", "    ),"]
    promised = (f"{item.what}: {item.value} ({item.check})" for item in (entry.claims if entry else ()))
    promises = "".join(textwrap.indent(_filled(text, 116), "# ") + "\n" for text in promised)
    return (
        f'"""Evidence for {name}: what is compared with what."""\n\nfrom __future__ import annotations\n\n'
        "from foveal.record import equal\n\n\ndef _unwritten() -> float:\n    raise NotImplementedError\n\n\n"
        f"{promises}CLAIMS = (\n" + "\n".join(claims) + "\n)\n"
    )


def tests(module: str, stem: str) -> str:
    """Text of the test file.

    Args:
        module: dotted name of the method's module.
        stem: name of the file, without suffix.

    Returns:
        The text.
    """
    package, _, leaf = module.rpartition(".")
    return (
        f"import pytest\n\nfrom {package} import {leaf}\n\n\ndef test_{stem}():\n    assert {leaf}.METHOD\n"
        '    pytest.fail("what the common suite cannot know")\n'
    )


def write(name: str, place: str, root: Path = ROOT) -> list[Path]:
    """Write the skeleton.

    Args:
        name: the row's name, or a new one.
        place: path of the method below `foveal`, without suffix, such as "models/restore/espcn"; for a study
            "evidence/studies/NAME".
        root: root of the repository.

    Returns:
        The files written.

    Raises:
        ValueError: if the place is not a path of that form, or a file exists.
    """
    if not re.fullmatch(r"[a-z_]+(/[a-z0-9_]+)+", place):
        raise ValueError(f"the place reads models/restore/espcn, got {place!r}")
    entry = next((entry for entry in entries().values() if fold(entry.name) == fold(name)), None)
    kind = KINDS[entry.kind] if entry else "model" if place.startswith("models/") else "procedure"
    stem, module = Path(place).name, "foveal." + place.replace("/", ".")
    name = entry.name if entry else name
    source = root / "src" / "foveal"
    if place.startswith("evidence/studies/"):
        study = f"{evidence(name, entry)}\n{_record(name, entry, stem, kind)}"
        texts = {source / f"{place}.py": study.replace("import equal", "import Method, Paper, equal")}
    else:
        texts = {
            source / f"{place}.py": method(name, entry, stem, kind),
            source / "evidence" / f"{place}.py": evidence(name, entry),
        }
    texts[root / "tests" / Path(place).parent / f"test_{stem}.py"] = tests(module, stem)
    for path in texts:
        if path.exists():
            raise ValueError(f"{path} exists; take another place, or remove it first")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (path.parent, *path.parent.parents):
            if folder == source or not folder.is_relative_to(source):
                break
            if not (folder / "__init__.py").exists():
                (folder / "__init__.py").write_text(f'"""{folder.name}."""\n', encoding="utf-8")
        path.write_text("\n".join(line.rstrip() for line in text.split("\n")), encoding="utf-8")
    return list(texts)


def main(arguments: list[str]) -> int:
    """Write the skeleton and print what to do next.

    Args:
        arguments: command-line arguments.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Write the skeleton of a method: method, evidence and tests.")
    parser.add_argument("name", help="name of a row of the catalogue, or a new name")
    parser.add_argument("place", help="path below foveal, such as models/restore/espcn")
    given = parser.parse_args(arguments)
    try:
        written = write(given.name, given.place)
    except ValueError as error:
        print(f"new_method: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path.relative_to(ROOT))
    if not any(fold(entry.name) == fold(given.name) for entry in entries().values()):
        near = ", ".join(closest(given.name, [entry.name for entry in entries().values()]))
        print(f"no row is called {given.name!r} (closest: {near}), so it is work of foveal's own, id None")
    print("next: fill in what says …, then foveal claims NAME, and its lines in tests/catalogue/public_names.txt")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
