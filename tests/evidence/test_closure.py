import textwrap

import pytest

from foveal.evidence.closure import closure, closure_hash, code_hash


@pytest.fixture
def tree(tmp_path):
    """Writes files of a package `toys` and forgets what was known of them."""

    def write(**files):
        code_hash.cache_clear()
        from foveal.evidence import closure as module

        module._imports.cache_clear()
        for name, text in files.items():
            path = tmp_path / (name.replace("__sub__", "/") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")
        return tmp_path

    return write


PLAIN = '''
"""A file."""
import math

__all__ = ["f"]

def f(x: int, y: float = 1.0) -> float:
    """Adds."""
    if x < 0:
        raise ValueError("x is negative")
    return x + y  # a comment
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A file."""', '"""Another text."""'),
        ('"""Adds."""', '"""Adds two numbers.\n\n    Args:\n        x: one.\n    """'),
        ("  # a comment", ""),
        ("x: int", "x: 'float'"),
        ('"x is negative"', 'f"x must be at least 0, got {x}"'),
        ('["f"]', '["f", "math"]'),
        ("import math", "from typing import TYPE_CHECKING\nimport math\nif TYPE_CHECKING:\n    import os"),
    ],
    ids=[
        "docstring",
        "docstring of a function",
        "comment",
        "annotation",
        "text of an error",
        "names",
        "imports for type checkers",
    ],
)
def test_words_about_code_do_not_change_its_hash(tree, old, new):
    plain = PLAIN if "TYPE_CHECKING" not in new else "from typing import TYPE_CHECKING\n" + PLAIN
    before = code_hash(tree(a=plain) / "a.py")
    changed = PLAIN.replace(old, new)
    assert changed != PLAIN
    if "TYPE_CHECKING" in new:  # the import of the name itself is code; what hides below it is not
        changed = "from typing import TYPE_CHECKING\n" + PLAIN.replace(
            "import math", "import math\nif TYPE_CHECKING:\n    import os"
        )
    assert code_hash(tree(a=changed) / "a.py") == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + y", "x - y"),
        ("1.0", "2.0"),
        ("def f", "def g"),
        ("ValueError", "TypeError"),
        ("import math", "import cmath"),
    ],
)
def test_code_changes_its_hash(tree, old, new):
    before = code_hash(tree(a=PLAIN) / "a.py")
    assert code_hash(tree(a=PLAIN.replace(old, new)) / "a.py") != before


def test_a_closure_follows_imports_wherever_they_stand(tree):
    root = tree(
        a="from toys.b import f\nimport math",
        b="def f():\n    from toys.sub import deep\n    return deep",
        sub__sub____init__="from .deep import g",
        sub__sub__deep="import toys.c",
        c="",
        d="",
        e="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import toys.d",
    )
    assert list(closure(["toys.a"], root=root)) == ["toys.a", "toys.b", "toys.c", "toys.sub", "toys.sub.deep"]
    assert list(closure(["toys.e"], root=root)) == ["toys.e"]


def test_a_change_far_below_changes_the_hash_and_one_beside_does_not(tree):
    root = tree(a="import toys.b", b="import toys.c", c="x = 1", d="x = 1")
    before = closure_hash(["toys.a"], root=root)
    assert closure_hash(["toys.a"], root=tree(d="x = 2")) == before
    assert closure_hash(["toys.a"], root=tree(c="x = 2")) != before


def test_the_words_of_evidence_do_not_count():
    found = closure(["foveal.models.restore.espcn", "foveal.evidence.models.restore.espcn"])
    assert {"foveal.evidence.short_run", "foveal.measure.cost", "foveal.models.restore.espcn"} <= set(found)
    assert not {"foveal.record", "foveal.errors"} & set(found)
