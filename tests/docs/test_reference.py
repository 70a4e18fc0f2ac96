"""The API reference names what there is, and all that a user is meant to import."""

import importlib
import inspect
import re

import pytest
from documents import ROOT

import foveal

pytestmark = pytest.mark.dear("the first test imports what all pages name")

PAGES = sorted((ROOT / "docs").glob("api_*.md"))
BLOCK = re.compile(r"^::: ([\w.]+)\n(?:    options: \{members: (?:\[([^\]]*)\]|(false))\}\n)?", re.MULTILINE)
PUBLIC = ("foveal", "foveal.images", "foveal.runtime", "foveal.models", "foveal.ops")


def listed(text: str) -> dict[str, list[str] | None]:
    """Module → the members that a page shows of it, None for all."""
    found: dict[str, list[str] | None] = {}
    for module, members, nothing in BLOCK.findall(text):
        found[module] = [] if nothing else members.split(", ") if members else None
    return found


def lacking(names: dict[str, list[str] | None], package: str) -> list[str]:
    """Classes and functions of a package's `__all__` that are not shown."""
    missing = []
    for name in importlib.import_module(package).__all__:
        value = getattr(importlib.import_module(package), name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        members = names.get(value.__module__, [])
        if members is not None and name not in members:
            missing.append(f"{value.__module__}.{name}")
    return missing


@pytest.fixture(scope="module")
def everything():
    found: dict[str, list[str] | None] = {}
    for page in PAGES:
        found |= listed(page.read_text(encoding="utf-8"))
    return found


def test_what_the_pages_name_exists(everything):
    assert len(everything) > 30
    for module, members in everything.items():
        loaded = importlib.import_module(module)
        assert loaded.__doc__, module
        assert [name for name in members or [] if not hasattr(loaded, name)] == [], module


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_in_the_reference(package, everything):
    assert lacking(everything, package) == []


def test_a_name_that_is_not_shown_is_noticed():
    blocks = "::: foveal.runtime.upscaler", "    options: {members: [Other]}", "", "::: foveal.images", "    options: "
    text = "\n".join(blocks) + "{members: false}\n"
    assert listed(text) == {"foveal.runtime.upscaler": ["Other"], "foveal.images": []}
    assert "foveal.runtime.upscaler.Upscaler" in lacking(listed(text), "foveal")
    assert foveal.Upscaler.__module__ == "foveal.runtime.upscaler"
