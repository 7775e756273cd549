"""Evaluations in one sqlite3 file, which each transaction opens and closes again."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import stat
import time
from collections.abc import Iterator

from ..errors import NotWritable, SpevalError, message
from ..process import forks
from ..process.background import notice
from .locks import Locks
from .tables import CURRENT, format_of, prepare, show_as_current

__all__ = ["Sqlite"]

MAX_PATH = 504  # bytes; SQLite takes 512, "-journal" included
GIVE_UP = 20.0  # seconds after which a transaction on a network mount that cannot commit is rolled back
DOUBTS = 5  # times in a row that a database on a network mount may look damaged before it is called so

# Before Python 3.11 the errors of sqlite3 have no code; the messages of sqlite3_errstr() stand in.
SQLITE_BUSY, SQLITE_READONLY, SQLITE_IOERR, SQLITE_CORRUPT = 5, 8, 10, 11
SQLITE_FULL, SQLITE_CANTOPEN, SQLITE_PROTOCOL, SQLITE_NOTADB = 13, 14, 15, 26
MESSAGES = {
    "database is locked": SQLITE_BUSY,
    "attempt to write a readonly database": SQLITE_READONLY,
    "disk I/O error": SQLITE_IOERR,
    "database disk image is malformed": SQLITE_CORRUPT,
    "database or disk is full": SQLITE_FULL,
    "unable to open database file": SQLITE_CANTOPEN,
    "locking protocol": SQLITE_PROTOCOL,
    "file is not a database": SQLITE_NOTADB,
}

CANNOT_OPEN = (
    "{path} cannot be opened ({exc}): that needs write permission for the file and its directory, also to"
    " read it after a worker was killed in the middle of a transaction; and a file descriptor"
)
CANNOT_WRITE = "{path} cannot be written ({exc}): is the disk full, or a quota?"
PASSING = {
    SQLITE_BUSY: "{path} is locked by another process just now",
    SQLITE_READONLY: CANNOT_OPEN,
    SQLITE_CANTOPEN: CANNOT_OPEN,
    SQLITE_FULL: CANNOT_WRITE,
    SQLITE_IOERR: CANNOT_WRITE,
}


def _code(exc: Exception) -> int:
    """Return the primary result code of SQLite, 1 (SQLITE_ERROR) if there is none."""
    code = getattr(exc, "sqlite_errorcode", None)
    return MESSAGES.get(str(exc), 1) if code is None else code & 0xFF


class Sqlite:
    """A `Database` in a file. No connection is open while `func` runs, nothing that it does can hurt one.

    But for that of a watchdog, which works only where `Locks.are_sure`.
    """

    serial, ahead, poll, watch = True, 0.0, 0.1, 0.0

    def __init__(self, fname: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        name = os.fsdecode(fname)
        if not name:
            raise ValueError("the file name of the database is empty")
        self.path = self.name = os.path.realpath(name)
        length = len(os.fsencode(self.path))
        if length > MAX_PATH and os.name == "posix":
            raise ValueError(f"{self.path} has {length} bytes, SQLite takes {MAX_PATH}: use a shorter path")
        self._opened = False
        self._doubts = 0  # in a row, whether it is damaged
        forks.watch()
        self.locks = Locks.of(self.path)

    def exists(self) -> bool:
        try:
            self.require()
        except OSError:
            return False
        return True

    def require(self) -> None:
        found = os.stat(self.path)  # FileNotFoundError
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            raise SpevalError(
                f"{self.path} has a second name, a hard link: locks do not work so, copy the file"
            )

    def is_away(self, exc: Exception) -> bool:
        return False  # there is no server

    def try_out(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite has locks of its own, for all connections
            self._connect("ro").close()

    def read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN", "rw")

    @contextlib.contextmanager
    def glance(self) -> Iterator[sqlite3.Connection]:
        # It does not queue: so it must not take the journal of somebody at work for one to roll back.
        with self.locks.opened(create=False), self._connected("ro", counted=False) as conn:
            conn.execute("PRAGMA busy_timeout = 20")  # milliseconds: a commit takes one
            conn.execute("BEGIN")
            show_as_current(conn, self.path)
            yield conn

    def write(self, alone: bool = False) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        self._opened = True  # or, if it is not there, it was deleted: to write does not make it
        return self._transaction("BEGIN IMMEDIATE", "rw")

    def create(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        return self._transaction("BEGIN IMMEDIATE", "rwc")

    def prepare(self, conn: sqlite3.Connection) -> bool:
        return prepare(conn, self.path)

    def is_prepared(self, conn: sqlite3.Connection) -> bool:
        return format_of(conn, self.path) == CURRENT

    @contextlib.contextmanager
    def _transaction(self, begin: str, mode: str) -> Iterator[sqlite3.Connection]:
        writes = begin == "BEGIN IMMEDIATE"
        create = writes and (mode == "rwc" or os.path.exists(self.path))
        with self.locks.opened(create):
            mode = mode if writes or self.locks.may_repair else "ro"
            self.locks.spend_reserve()
            with self.locks.turn(), self._connected(mode) as conn:
                self._opened = True
                if writes:
                    self._patiently(conn, "PRAGMA journal_mode = TRUNCATE")
                    conn.execute("PRAGMA synchronous = FULL")
                    self._patiently(conn, begin)
                else:
                    conn.execute(begin)
                    self._patiently(conn, "PRAGMA user_version")  # it is the first read that locks
                    show_as_current(conn, self.path)
                    conn.execute("PRAGMA query_only = ON")
                self.locks.make_sure()
                yield conn
                self._patiently(conn, "COMMIT")
            self._doubts = 0

    @contextlib.contextmanager
    def _connected(self, mode: str, counted: bool = True) -> Iterator[sqlite3.Connection]:
        pid, conn = os.getpid(), None
        try:
            conn = self._connect(mode)
            yield conn
        except (sqlite3.Error, UnicodeDecodeError) as exc:  # the latter for messages of the former
            raise self._explained(exc, counted) from exc
        finally:
            if conn is not None:
                # Never close what a child has inherited in mid transaction: it would roll its parent's back.
                (_close if os.getpid() == pid else forks.keep)(conn)

    def _connect(self, mode: str) -> sqlite3.Connection:
        path = self.path.replace("\\", "/") if os.name == "nt" else self.path
        path = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        url = f"file://{path if path.startswith('/') else '/' + path}?mode={mode}"
        conn = sqlite3.connect(url, timeout=1.0, isolation_level=None, uri=True)
        conn.execute("PRAGMA trusted_schema = OFF")
        return conn

    def _patiently(self, conn: sqlite3.Connection, statement: str) -> None:
        """Execute what takes or gives up a lock of SQLite, and wait for as long as others keep it busy."""
        if _executed(conn, statement):
            return
        self.locks.probe()
        # Two may be in the same transaction after a server lost their locks, and wait for each other's end.
        gives_up = time.monotonic() + GIVE_UP if statement == "COMMIT" and self.locks.shared else math.inf
        with notice(lambda: f"waiting for a process that keeps the database locked, {self.path}"):
            while not _executed(conn, statement):
                if time.monotonic() > gives_up:
                    raise NotWritable(PASSING[SQLITE_BUSY].format(path=self.path))
                time.sleep(0.01)

    def _explained(self, exc: Exception, counted: bool) -> SpevalError:
        code, found = _code(exc), self._found(exc)
        if found is not None:
            return found
        if code in PASSING:
            return NotWritable(PASSING[code].format(path=self.path, exc=exc))
        if code == SQLITE_NOTADB:
            return SpevalError(f"{self.path} is not a database: name another file")
        self._doubts += counted
        if self.locks.shared and self._doubts <= DOUBTS:  # it may have read what others were writing
            return NotWritable(f"{self.path} looks damaged ({message(exc)}): has its server lost our locks?")
        if code == SQLITE_CORRUPT:
            return SpevalError(
                f"{self.path} is damaged ({exc}): when no instance runs, `sqlite3 {self.path} .recover` saves"
                " what can be read"
            )
        hint = "was it changed by hand? Go on with a copy of before that, or with another file"
        return SpevalError(f"{self.path} is not as speval made it ({message(exc)}): {hint}")

    def _found(self, exc: Exception) -> SpevalError | None:
        """Return what is wrong at the path of the database; None if there is a file."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            if self._opened:
                return SpevalError(f"{self.path} was deleted while it was in use: start again")
            return NotWritable(f"{self.path} cannot be made ({exc}): may you write to its directory?")
        except OSError as reason:
            return NotWritable(f"{self.path} cannot be reached ({reason})")
        if stat.S_ISDIR(found.st_mode):
            return SpevalError(f"{self.path} is a directory, not a database: name a file")
        return None


def _executed(conn: sqlite3.Connection, statement: str) -> bool:
    try:
        conn.execute(statement).fetchall()
    except sqlite3.OperationalError as exc:
        if _code(exc) in (SQLITE_BUSY, SQLITE_PROTOCOL):
            return False
        raise
    return True


def _close(conn: sqlite3.Connection) -> None:
    """Close a connection; what was not committed is rolled back, if only by the next who opens it."""
    with contextlib.suppress(sqlite3.Error):
        if conn.in_transaction:
            conn.execute("ROLLBACK")
    conn.close()
