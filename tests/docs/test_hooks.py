"""The site's hook, in a site of its own."""

import logging
import shutil
from pathlib import Path

import pytest

from foveal.catalogue import collect
from foveal.index import Indexed

HOOK = Path(__file__).parents[2] / "docs" / "hooks" / "catalogue.py"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds a strict site that holds the hook beside one page; its folder comes back."""
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    docs = tmp_path / "docs"
    (docs / "hooks").mkdir(parents=True)
    shutil.copy(HOOK, docs / "hooks")
    (docs / "index.md").write_text("# Toy\n\n[catalogue](catalogue.md#espcn)\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: toy\ntheme: mkdocs\nstrict: true\nplugins: []\nhooks: [docs/hooks/catalogue.py]\n"
        "exclude_docs: hooks/\nnav: [index.md, catalogue.md]\nvalidation: {anchors: warn}\n"
    )

    def run() -> Path:
        mkdocs_build(load_config(str(tmp_path / "mkdocs.yml")))
        return tmp_path / "site"

    yield run
    logging.getLogger("mkdocs").handlers.clear()


@pytest.mark.dear("imports every record")
def test_the_page_is_made_while_the_site_is_built(build):
    site = build()
    text = (site / "catalogue" / "index.html").read_text(encoding="utf-8")
    assert text.count("<tr>") > 349
    assert 'id="espcn"' in text
    assert not (site / "hooks").exists()


@pytest.mark.dear("imports every record")
def test_a_record_that_cannot_be_read_fails_a_strict_build(build, monkeypatch):
    from mkdocs.exceptions import Abort

    missing = collect.Missing(Indexed("foveal.toy", Path("toy.py"), 63, "ESPCN", "model", ()), "torch")
    found = collect.records()
    monkeypatch.setattr(collect, "_collected", lambda: (found, [missing]))
    with pytest.raises(Abort, match="Aborted with 1 warnings in strict mode"):
        build()
