"""Where evaluations are kept: the choice of a database by its name."""

from __future__ import annotations

import os

from .interface import Database, Name
from .sqlite import Sqlite

__all__ = ["Database", "Name", "database", "existing"]


def database(name: Name) -> Database:
    """Return the database of that name: the file name of one of sqlite3. What is one already is returned."""
    return Sqlite(name) if isinstance(name, (str, bytes, os.PathLike)) else _checked(name)


def _checked(db: Database) -> Database:
    if not hasattr(db, "glance"):
        raise TypeError(f"a database is named by a str or a path, not by {db!r}")
    return db


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
