"""`python -m foveal.catalogue FILE…` updates the catalogue's sentence in Markdown files."""

from __future__ import annotations

import sys
from pathlib import Path

from foveal.catalogue.status import rows
from foveal.catalogue.tables import refreshed


def main(names: list[str]) -> None:
    """Update the sentence between the markers of each file.

    Args:
        names: paths of Markdown files.
    """
    listed = rows()
    for name in names:
        path = Path(name)
        path.write_text(refreshed(path.read_text(encoding="utf-8"), listed), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
