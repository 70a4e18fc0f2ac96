"""The catalogue of methods: the rows of the literature, the records beside the code, and the measured claims.

It may import every other package and none imports it. Importing it is cheap; collecting the records imports their
files.
"""

from foveal.catalogue.collect import CatalogueError, Located, find, records
from foveal.catalogue.entries import Entry, entries
from foveal.catalogue.status import Row, rows

__all__ = ["CatalogueError", "Entry", "Located", "Row", "entries", "find", "records", "rows"]
