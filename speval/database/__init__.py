"""Where evaluations are kept: the choice of a database by its name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import SpevalError
from .sqlite import Sqlite

if TYPE_CHECKING:
    from .interface import Connection, Database, Name
else:  # which take 3 ms to make, of each start
    Connection = Database = Name = Any

__all__ = ["FIRST", "LAST", "Connection", "Database", "Name", "database", "existing", "is_url", "shown"]

FIRST, LAST = -(2**63), 2**63 - 1  # whole numbers, of those that a database has: ids, steps
SCHEMES = ("postgresql://", "postgres://")


def is_url(name: object) -> bool:
    """Tell whether a name is not that of a file, but of a table on a server."""
    return isinstance(name, str) and name.startswith(SCHEMES)


def database(name: Name) -> Database:
    """Return the database of that name. What is one already is returned.

    Parameters
    ----------
    name : str, path-like or Database
        The file name of one of sqlite3; or ``postgresql://user@host/dbname?table=name``, as libpq has URLs
        but for the table.
    """
    if is_url(name):
        try:
            from .postgres import Postgres
        except ImportError as exc:
            raise SpevalError(
                f"PostgreSQL needs the package psycopg, which the extra `postgres` brings ({exc})"
            ) from exc
        return Postgres(str(name))
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


def shown(name: Name) -> str:
    """Return a name as it may be shown: as it was given, but without a password."""
    if isinstance(name, (str, bytes, os.PathLike)) and not is_url(name):
        return os.fsdecode(name)
    try:
        return database(name).path
    except (SpevalError, ValueError):
        return f"{SCHEMES[0]}..."
