"""MkDocs hook: the plots that benches leave in `results/` are found by the pages under `assets/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the plots to the site's files.

    Args:
        files: of the site.
        config: of the site.

    Returns:
        The files, with `results/NAME.svg` as `assets/NAME.svg`.
    """
    for plot in sorted(Path("results").glob("*.svg")):
        files.append(File.generated(config, f"assets/{plot.name}", abs_src_path=str(plot.resolve())))
    return files
