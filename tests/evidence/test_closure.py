import textwrap

import pytest

from foveal.evidence import closure as closures
from foveal.evidence.closure import closure, closure_hash, definitions
from foveal.evidence.statements import read


@pytest.fixture
def tree(tmp_path):
    """Writes files of a package `toys` and forgets what was known of them."""

    def write(**files):
        for known in (read, closures._imports, closures._file, closures._used):
            known.cache_clear()
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
    return math.floor(x) + y  # a comment
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
    before = closure_hash(["toys.a"], root=tree(a=plain))
    changed = PLAIN.replace(old, new)
    assert changed != PLAIN
    if "TYPE_CHECKING" in new:  # the import of the name itself is code; what hides below it is not
        changed = "from typing import TYPE_CHECKING\n" + PLAIN.replace(
            "import math", "import math\nif TYPE_CHECKING:\n    import os"
        )
    assert closure_hash(["toys.a"], root=tree(a=changed)) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(x) + y", "(x) - y"),
        ("1.0", "2.0"),
        ("def f", "def g"),
        ("ValueError", "TypeError"),
        ("import math", "import numpy as math"),
    ],
)
def test_code_changes_its_hash(tree, old, new):
    before = closure_hash(["toys.a"], root=tree(a=PLAIN))
    assert closure_hash(["toys.a"], root=tree(a=PLAIN.replace(old, new))) != before


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


FILES = {
    "a": "from toys.b import f\nfrom toys import sub\nz = f(1)\ny = sub.g()",
    "b": """
        import toys.c as c
        from toys.d import add as plus
        def f(x):
            return plus(c.K, x)
        def unused(x):
            return c.M + x
        """,
    "c": "K = 1\nM = 2\nN = [K]\nN.append(3)",
    "d": "def add(x, y):\n    return x + y",
    "sub__sub____init__": "from .deep import g",
    "sub__sub__deep": """
        class Base:
            pass
        class Kind(Base):
            pass
        def g():
            from toys.late import h
            return Kind(h)
        """,
    "late": "@register('h')\ndef h():\n    return 1\n@register('i')\ndef i():\n    return 2\ndef j():\n    return 3",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("a", "f(1)", "f(2)", True),
        ("b", "plus(c.K, x)", "plus(x, c.K)", True),
        ("b", "c.M + x", "c.M - x", False),
        ("c", "K = 1", "K = 2", True),
        ("c", "M = 2", "M = 3", False),
        ("c", "append(3)", "append(4)", True),
        ("d", "x + y", "x - y", True),
        ("b", "import add as plus", "import unused as plus", True),
        ("sub__sub____init__", "import g", "import Kind as g", True),
        ("sub__sub__deep", "class Base:\n            pass", "class Base:\n            size = 1", True),
        ("late", "return 1", "return 11", True),
        ("late", "return 2", "return 22", True),
        ("late", "return 3", "return 33", False),
    ],
    ids=[
        "own statement",
        "function",
        "function beside it",
        "constant",
        "constant beside it",
        "what importing does",
        "function under another name",
        "which function the name means",
        "what a package hands on",
        "base of a class",
        "import inside a function",
        "registered when imported",
        "beside what is registered",
    ],
)
def test_what_is_used_counts_and_what_stands_beside_it_does_not(tree, file, old, new, counts):
    before = closure_hash(["toys.a"], root=tree(**FILES))
    assert old in FILES[file]
    changed = closure_hash(["toys.a"], root=tree(**{**FILES, file: FILES[file].replace(old, new)}))
    assert (changed != before) == counts


def test_a_module_that_is_handed_on_or_makes_its_names_counts_whole(tree):
    files = {"a": "import toys.b as b\nuse(b)", "b": "x = 1"}
    before = closure_hash(["toys.a"], root=tree(**files))
    assert closure_hash(["toys.a"], root=tree(**{**files, "b": "x = 2"})) != before
    files = {"a": "from toys.b import y", "b": "x = 1\ndef __getattr__(name):\n    return globals()['x']"}
    before = closure_hash(["toys.a"], root=tree(**{**files, "a": files["a"] + "\ny()"}))
    assert closure_hash(["toys.a"], root=tree(a=files["a"] + "\ny()", b=files["b"].replace("1", "2", 1))) != before


def test_the_words_of_evidence_do_not_count():
    found = closure(["foveal.models.restore.espcn", "foveal.evidence.models.restore.espcn"])
    assert {"foveal.evidence.short_run", "foveal.measure.cost", "foveal.models.restore.espcn"} <= set(found)
    assert not {"foveal.record", "foveal.errors"} & set(found)


def test_the_version_of_the_kernels_counts():
    found = definitions(["foveal.models.backbone.vmamba", "foveal.evidence.models.backbone.vmamba"])
    assert "foveal.runtime.kernels WANTED" in found
