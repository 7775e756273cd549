"""Where evaluations are kept: the choice of a database by its name."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import NotWritable, SpevalError
from .sqlite import Sqlite

if TYPE_CHECKING:
    from .interface import Connection, Database, Name
else:  # which take 3 ms to make, of each start
    Connection = Database = Name = Any

__all__ = [
    "FIRST",
    "LAST",
    "Connection",
    "Database",
    "Name",
    "database",
    "existing",
    "insist",
    "is_url",
    "shown",
]

log = logging.getLogger("speval")
T = TypeVar("T")

FIRST, LAST = -(2**63), 2**63 - 1  # whole numbers, of those that a database has: ids, steps
SCHEMES = ("postgresql://", "postgres://")
AWAY = 60.0  # seconds for which an instance that starts waits for its server
SHORT, LONG = 5.0, 60.0  # seconds between two tries, at most: of an instance that starts, and of any other


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


def insist(
    db: Database,
    action: Callable[[], T],
    has_begun: Callable[[], bool],
    sleep: Callable[[float], object] = time.sleep,
    note: Callable[[], str] = str,
) -> T:
    """Call `action`, and return what it returns. While the database cannot be used, log so and try again.

    Parameters
    ----------
    has_begun : callable
        Returns True if the instance has used the database before. It waits for any time then.
    sleep : callable
        Waits for a number of seconds, and lets signals interrupt that.
    note : callable
        Returns what is logged beside the error.

    Raises
    ------
    NotWritable
        If the instance has not used the database before. If its server is away, that is after a minute.
    """
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            return action()
        except NotWritable as exc:
            limit = LONG if has_begun() else SHORT
            if limit == SHORT and (time.monotonic() - began >= AWAY or not db.is_away(exc)):
                raise
            log.warning("%s (%snext try in %d s)", exc, note(), pause)
        sleep(pause)
        pause = min(2 * pause, limit)


def shown(name: Name) -> str:
    """Return a name as it may be shown: as it was given, but without a password."""
    if isinstance(name, (str, bytes, os.PathLike)) and not is_url(name):
        return os.fsdecode(name)
    try:
        return database(name).path
    except (SpevalError, ValueError):
        return f"{SCHEMES[0]}..."
