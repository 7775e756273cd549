"""A database in memory: what a worker needs of one, and nothing else. For threads of one process."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator

from speval.database.tables import CURRENT, format_of, prepare, show_as_current
from speval.errors import SpevalError


class Memory:
    """Its workers live until they say that they do not."""

    blind, see_all, are_sure, doubt = False, True, True, False
    serial, ahead, poll, watch = True, 0.0, 0.1, 0.0

    def __init__(self) -> None:
        self.path = self.name = "memory"
        self.locks = self
        self._workers: set[int] = set()
        self._conn: sqlite3.Connection | None = None
        self._turn = threading.Lock()

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def add(self, worker: int) -> None:
        self._workers.add(worker)

    def discard(self, worker: int) -> None:
        self._workers.discard(worker)

    def dead(self, conn: object, workers: Iterable[int], surely: bool = True) -> set[int]:
        return {worker for worker in workers if worker not in self._workers}

    def are_settled(self, claims: bool) -> bool:
        return True

    def exists(self) -> bool:
        return self._conn is not None

    def try_out(self) -> None: ...
    def is_away(self, exc: Exception) -> bool:
        return False

    def require(self) -> None:
        if self._conn is None:
            raise FileNotFoundError(self.path)

    @contextlib.contextmanager
    def create(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            if self._conn is None:
                self._conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            self._conn.execute("BEGIN")
            try:
                yield self._conn
                self._conn.execute("COMMIT")
            except BaseException as exc:
                self._conn.execute("ROLLBACK")
                if isinstance(exc, sqlite3.Error):
                    raise SpevalError(str(exc)) from exc
                raise

    @contextlib.contextmanager
    def write(self, alone: bool = False) -> Iterator[sqlite3.Connection]:
        if self._conn is None:
            raise SpevalError("it is gone")
        with self.create() as conn:
            yield conn

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        with self.write() as conn:
            show_as_current(conn, self.path)
            yield conn

    glance = read

    def prepare(self, conn: sqlite3.Connection) -> bool:
        return prepare(conn, self.path)

    def is_prepared(self, conn: sqlite3.Connection) -> bool:
        return format_of(conn, self.path) == CURRENT
