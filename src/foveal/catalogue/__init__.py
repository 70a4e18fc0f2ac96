"""The table of methods: the literature's rows, the records beside the code, and what was measured of their claims.

It stands on everything and nothing stands on it. Importing it is cheap; collecting the records imports their files.
"""

from foveal.catalogue.collect import CatalogueError, Located, find, records
from foveal.catalogue.entries import Entry, entries
from foveal.catalogue.status import Row, rows

__all__ = ["CatalogueError", "Entry", "Located", "Row", "entries", "find", "records", "rows"]
