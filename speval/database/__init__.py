"""Where evaluations are kept: the choice of a database by its name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .sqlite import Sqlite

if TYPE_CHECKING:
    from .interface import Connection, Database, Name
else:  # which take 3 ms to make, of each start
    Connection = Database = Name = Any

__all__ = ["Connection", "Database", "Name", "database", "existing"]


def database(name: Name) -> Database:
    """Return the database of that name: the file name of one of sqlite3. What is one already is returned."""
    if isinstance(name, (str, bytes, os.PathLike)):
        return Sqlite(name)
    if not hasattr(name, "glance"):
        raise TypeError(f"a database is named by a str or a path, not by {name!r}")
    return name


def existing(name: Name) -> Database:
    """Return a database that is there.

    Raises
    ------
    FileNotFoundError
        If it is not.
    """
    db = database(name)
    db.require()
    return db
