"""MkDocs hook: makes `catalogue.md` from the catalogue, the records and the recorded results while the site is built.

Records stand in files that import torch, so the site is built in the full environment. Where a record cannot be read a
warning says so, which `mkdocs build --strict` turns into a failure.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

from foveal.catalogue.collect import unreadable
from foveal.catalogue.status import rows
from foveal.catalogue.tables import page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

_log = logging.getLogger("mkdocs.hooks.catalogue")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site's files.

    Args:
        files: of the site.
        config: of the site.

    Returns:
        The files with `catalogue.md` among them.
    """
    for missing in unreadable():
        _log.warning("%s is not in the catalogue page: it needs %s", missing.indexed.path, missing.package)
    files.append(File.generated(config, "catalogue.md", content=page(rows())))
    return files
