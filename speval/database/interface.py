"""What a database of evaluations can do: by this alone a worker knows one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, Union

__all__ = ["Connection", "Cursor", "Database", "Locks", "Name"]


class Cursor(Protocol):
    """The rows of a statement, as in PEP 249."""

    @property
    def rowcount(self) -> int: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...
    def close(self) -> None: ...


class Connection(Protocol):
    """A transaction that is under way. Parameters are ``:name``, or ``?`` where speed counts.

    ``:now`` is by the database's own clock where it has one. What stands between ``/*`` and ``*/`` is for
    servers, where several transactions write at once, and statements are sent together. A statement may be
    on its way until its rows are asked for: so ask for several things first, then look at them.

    Its exceptions are called as in PEP 249; they leave a transaction as `SpevalError`.
    """

    DatabaseError: type[Exception]

    def execute(self, statement: str, facts: Any = ..., /) -> Cursor: ...
    def executemany(self, statement: str, rows: Iterable[Sequence[Any]], /) -> Cursor: ...


class Locks(Protocol):
    """By which the workers on a database are known to be alive, however they end.

    Attributes
    ----------
    blind : bool
        There are none here: nobody can tell who is dead.
    see_all : bool
        Whoever is dead is known to be, on other hosts too.
    are_sure : bool
        Transactions may begin in another thread while `func` runs, whatever that does.
    doubt : bool
        Somebody may be dead, which will be known in a moment.
    """

    @property
    def blind(self) -> bool: ...
    @property
    def see_all(self) -> bool: ...
    @property
    def are_sure(self) -> bool: ...
    @property
    def doubt(self) -> bool: ...

    def add(self, worker: int) -> None:
        """Say that a worker of this process is alive, until `discard` or the end of the process."""

    def discard(self, worker: int) -> None: ...

    def dead(self, conn: Any, workers: Iterable[int], surely: bool = True) -> set[int]:
        """Return those workers, of any process, that are dead: for sure, or as it looks just now."""

    def are_settled(self, claims: bool) -> bool:
        """Tell whether every live worker has had the time to say so; are there any `claims`?"""


class Database(Protocol):
    """The evaluations of one sweep.

    A transaction waits for its turn, for as long as that takes. It commits if the block ends well. It raises
    `NotWritable` if it cannot be had for now, another `SpevalError` if it never can. One that reads finds
    the tables as they are today, whatever is there; one that writes does after `prepare`.

    Attributes
    ----------
    path : str
        The database for messages, and to tell it from others.
    name : str
        For other processes: `database(name)` is the same. There may be a password in it.
    serial : bool
        One transaction writes at a time: so evaluations are claimed for the first time in their order. And
        its statements are answered one by one.
    ahead : float
        Seconds by which its clock is ahead of ours.
    poll : float
        Seconds between two looks of a worker that waits for long; more, if many do.
    watch : float
        Seconds, at least, between two looks of all workers together after who lives.
    """

    path: str
    name: str
    serial: bool
    ahead: float
    poll: float
    watch: float

    @property
    def locks(self) -> Locks: ...

    def exists(self) -> bool:
        """Tell whether there is something; `SpevalError` if that cannot be used."""

    def require(self) -> None:
        """Raise `FileNotFoundError` if there is nothing, `SpevalError` if that cannot be used."""

    def is_away(self, exc: Exception) -> bool:
        """Return True if `exc` was raised because the server is starting, or cannot be reached, for now."""

    def try_out(self) -> None:
        """Use, without waiting for others, what another thread may have held when this process was forked."""

    def read(self) -> contextlib.AbstractContextManager[Any]:
        """Open a transaction that reads."""

    def glance(self) -> contextlib.AbstractContextManager[Any]:
        """Open a transaction that reads and waits for nobody: `SpevalError` if it cannot at once."""

    def write(self, alone: bool = False) -> contextlib.AbstractContextManager[Any]:
        """Open a transaction that writes, beside no other that does if `alone`. Nothing is made."""

    def create(self) -> contextlib.AbstractContextManager[Any]:
        """Open a transaction that writes, in a new database if there is none."""

    def prepare(self, conn: Any) -> bool:
        """Make the tables, or those of an older version into today's; tell whether there were none."""

    def is_prepared(self, conn: Any) -> bool:
        """Tell whether the tables are those of today; `SpevalError` if they are of something else."""


Name = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]", Database]
