"""Evaluations in tables of a PostgreSQL server, by one connection for each worker."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterable, Iterator

import psycopg
from psycopg import errors
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from ..errors import INTERRUPTED, REPLACED, NotWritable, SpevalError
from ..process import forks
from ..process.background import Ticker, notice, weakly
from .dialect import quoted
from .link import Link, parsed
from .locks import Deaths

__all__ = ["Postgres"]

FORMAT = 1
COMMENT = "evaluations of speval, format "
AWAY = "57P"  # class of SQLSTATE, and more, of what a server says that starts or stops
PATIENCE = 2  # seconds for a server to answer a ping
CLOCK = 60.0  # seconds by which two clocks may differ
SPARE = 10  # connections that others may need
# Seconds. A lock that is free tells of a death only when its owner has had the time to connect again: so
# often it looks whether it has to. A server that has started again has lost all locks.
GONE, KEEP, COME_BACK = 1.5, 0.5, 30.0
# Classes of SQLSTATE of what may be well the next time: connection, transaction state, rollback, resources,
# prerequisites, intervention, system.
PASSING = ("08", "25", "40", "53", "55", "57", "58")
# Each claim and each end writes to every index on evals: so names have a table of their own.
CREATE = (
    """CREATE TABLE evals (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name TEXT COLLATE "C" NOT NULL,
        status TEXT COLLATE "C" NOT NULL,
        updated FLOAT8 NOT NULL,
        result TEXT,
        args TEXT NOT NULL,
        error TEXT,
        attempt INTEGER NOT NULL DEFAULT 0,
        losses INTEGER NOT NULL DEFAULT 0,
        reset INTEGER NOT NULL DEFAULT 0,
        worker BIGINT,
        started FLOAT8,
        stopped BIGINT)""",
    'CREATE TABLE names (id BIGINT NOT NULL, name TEXT COLLATE "C" PRIMARY KEY)',
    """CREATE TABLE workers (
        id BIGINT PRIMARY KEY, host TEXT NOT NULL, pid BIGINT NOT NULL,
        started FLOAT8 NOT NULL, ended FLOAT8, code TEXT, fate TEXT)""",
    """CREATE TABLE spaces (
        fingerprint TEXT NOT NULL, size BIGINT NOT NULL, func TEXT NOT NULL, added FLOAT8 NOT NULL)""",
    """CREATE TABLE reports (
        id BIGINT NOT NULL, step BIGINT NOT NULL, value FLOAT8, PRIMARY KEY (id, step))""",
    "CREATE INDEX ON reports (step, value)",
    "CREATE INDEX ON evals (id) WHERE status = 'pending'",
    "CREATE INDEX ON evals (worker) WHERE status = 'in_progress'",
    "CREATE INDEX ON evals (id) WHERE status = 'failed'",
    "CREATE INDEX ON workers (id) WHERE ended IS NULL",
    f"COMMENT ON TABLE evals IS '{COMMENT}{FORMAT}'",
)
# To look into pg_class lets a session hear of the tables that others have made while it waited.
FORMAT_OF = "SELECT obj_description(oid, 'pg_class'), oid::int8 FROM pg_class WHERE oid = to_regclass(:table)"
LOCK = "SELECT pg_try_advisory_lock(:table::int8::int4, :worker::int8::int4)"
UNLOCK = "SELECT pg_advisory_unlock(:table::int8::int4, :worker::int8::int4)"
CONNECTIONS = """
    SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
        current_setting('max_connections')::int8"""
IS_LOCKED = """
    SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND classid = 0 AND objid = :worker
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
FREE = """
    SELECT id FROM workers WHERE id = ANY (:workers)
        AND NOT (:surely AND started < extract(epoch FROM pg_postmaster_start_time())
            AND clock_timestamp() < pg_postmaster_start_time() + :grace * interval '1 second')
        AND id & 4294967295 NOT IN (SELECT objid::int8 FROM pg_locks
            WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid = to_regclass(:table)
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""


class Locks:
    """Advisory locks of the sessions of live workers, which the server drops when their connections end."""

    blind, see_all, are_sure = False, True, True

    def __init__(self, db: Postgres) -> None:
        self._db = weakref.proxy(db)
        self._deaths = Deaths()

    @property
    def doubt(self) -> bool:
        return self._deaths.doubt

    def add(self, worker: int) -> None:
        self._db.keep(worker)

    def discard(self, worker: int) -> None:
        self._db.give_up(worker)

    def dead(self, conn: Link, workers: Iterable[int], surely: bool = True) -> set[int]:
        facts = {
            "workers": list(workers),
            "surely": surely,
            "grace": COME_BACK,
            "table": quoted(self._db.table),
        }
        if not facts["workers"]:
            return set()
        free = {worker for (worker,) in conn.execute(FREE, facts)}
        if not surely:
            return free
        return self._deaths.confirmed(dict.fromkeys(free, GONE))

    def renew(self) -> None:
        """Give all others their time anew: whatever has cut our connection may have cut theirs."""
        self._deaths.renew()

    def are_settled(self, claims: bool) -> bool:
        return True


def _end(link: Link, section: forks.Section) -> None:
    link.close()
    section.attend(-1)


class Postgres:
    """A `Database` in tables of a server. Its one connection is kept between transactions.

    A thread looks after it while a worker's lock depends on it.
    """

    serial, poll, watch = False, 0.2, 0.2

    def __init__(self, url: str) -> None:
        self.name = url
        self._conninfo, self.table, self.path = parsed(url)
        self._section = forks.Section(self._forget)
        self._link: Link | None = None
        self._workers: set[int] = set()
        self._locked: set[int] = set()  # of these, on the connection that there is
        self._keeper = Ticker(weakly(self._tick))
        self._opened = False
        self.ahead = 0.0
        self.locks = Locks(self)
        forks.watch()

    def exists(self) -> bool:
        try:
            self.require()
        except FileNotFoundError:
            return False
        return True

    def require(self) -> None:
        with self._transaction("BEGIN READ ONLY") as conn:
            if not self.is_prepared(conn):
                raise FileNotFoundError(f"there is no table {self.table} in {self.path}")

    def is_away(self, exc: Exception) -> bool:
        if not (getattr(exc.__cause__, "sqlstate", None) or AWAY).startswith(AWAY):
            return False
        # psycopg knows no SQLSTATE of a connection that the server refuses. libpq does, and tells by a ping.
        ping = PGconn.ping(make_conninfo(self._conninfo, connect_timeout=PATIENCE).encode())
        if ping in (Ping.REJECT, Ping.NO_RESPONSE):
            return True
        with contextlib.suppress(SpevalError), self._transaction("BEGIN READ ONLY"):
            return True  # it came back just now
        return False

    def try_out(self) -> None:
        with contextlib.suppress(SpevalError), self._transaction("BEGIN READ ONLY"):
            pass

    def read(self) -> contextlib.AbstractContextManager[Link]:
        return self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    glance = read

    @contextlib.contextmanager
    def write(self, alone: bool = False) -> Iterator[Link]:
        with self._transaction("BEGIN" if alone else "") as conn:
            if alone:
                conn.execute("LOCK TABLE evals IN SHARE ROW EXCLUSIVE MODE")
            yield conn

    @contextlib.contextmanager
    def create(self) -> Iterator[Link]:
        with self._transaction("BEGIN") as conn:
            with notice(lambda: f"waiting for who adds evaluations to {self.path}"):
                conn.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(:table, 0))", {"table": self.table}
                ).fetchall()
            yield conn

    def prepare(self, conn: Link) -> bool:
        if self.is_prepared(conn):
            return False
        for statement in CREATE:
            conn.execute(statement)
        self.is_prepared(conn)
        return True

    def is_prepared(self, conn: Link) -> bool:
        if conn.oid:
            return True
        found = conn.execute(FORMAT_OF, {"table": quoted(self.table)}).fetchall()
        if not found:
            return False
        ((comment, oid),) = found
        if not (comment or "").startswith(COMMENT):
            raise SpevalError(f"{self.path} is a table of something else: name another")
        if comment != f"{COMMENT}{FORMAT}":
            raise SpevalError(
                f"{self.path} has {comment}, this speval knows {FORMAT}: use the newer one that made it"
            )
        conn.oid = oid
        return True

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[Link]:
        with self._section.entered() as free:
            if not free:
                raise SpevalError(INTERRUPTED.format(path=self.path))
            try:
                link = self._connected()
                with link.transaction(begin):
                    yield link
            except psycopg.Error as exc:
                raise self._explained(exc) from exc

    def _connected(self) -> Link:
        """Return the connection, made anew if it broke; with the locks of our workers."""
        if self._link is None or not self._link.is_alive:
            self._disconnect()
            self._section.attend(1)
            try:
                self._link = Link(self._conninfo, self.table)
            except BaseException:
                self._section.attend(-1)
                raise
            self._finalizer = weakref.finalize(self, _end, self._link, self._section)
            self.locks.renew()
            self._opened = True
        link = self._link
        self.ahead = link.ahead()
        missing = self._workers - self._locked
        if missing:
            self._lock(link, missing)
        return link

    def _lock(self, link: Link, workers: set[int]) -> None:
        with link.transaction("BEGIN READ ONLY"):
            if not self.is_prepared(link):
                return
            for worker in workers:
                ((got,),) = link.execute(LOCK, self._key(link, worker)).fetchall()
                if got:
                    self._locked.add(worker)

    @staticmethod
    def _key(link: Link, worker: int) -> dict[str, int]:
        return {"table": _signed(link.oid), "worker": _signed(worker & 0xFFFFFFFF)}

    def _disconnect(self) -> None:
        link, self._link = self._link, None
        self._locked.clear()
        if link is not None:
            self._finalizer()

    def _forget(self) -> None:
        """In a forked child: what is of the parent stays so."""
        if self._link is not None:
            self._link.forget()
            self._finalizer.detach()
        self._link = None
        self._workers.clear()
        self._locked.clear()

    def keep(self, worker: int) -> None:
        """Say that a worker lives, for as long as this process does."""
        self._workers.add(worker)
        self._look_after()
        self._keeper.start(KEEP)

    def give_up(self, worker: int) -> None:
        with self._section.lock:
            self._workers.discard(worker)
            if worker in self._locked:
                self._locked.discard(worker)
                if self._link is not None and self._link.is_ours:
                    with contextlib.suppress(psycopg.Error):
                        self._link.ask(UNLOCK, self._key(self._link, worker))
        if not self._workers:
            self._keeper.stop()

    def _tick(self) -> float:
        link = self._link
        unused = KEEP if link is None else time.monotonic() - link.used
        if unused < KEEP:
            return KEEP - unused
        self._look_after()
        return KEEP

    def _look_after(self) -> None:
        """See that our workers have their locks."""
        with self._section.tried() as free:
            if free:  # else a transaction does it
                with contextlib.suppress(psycopg.Error, SpevalError, OSError):
                    self._connected()

    def examine(self) -> Iterator[tuple[str, bool, str]]:
        """Try a server; yield of one thing after the other what it is, whether it is well, what was found."""
        yield "psycopg", True, psycopg.__version__
        try:
            with self._transaction("BEGIN READ ONLY") as conn:
                began = time.monotonic()
                ((server,), (used, most)) = (
                    conn.execute("SELECT version()").fetchall()[0],
                    conn.execute(CONNECTIONS).fetchall()[0],
                )
                trip = (time.monotonic() - began) / 2
                prepared = self.is_prepared(conn)
            yield "server", True, server.partition(" on ")[0]
            yield "round trip", True, f"{1000 * trip:.2g} ms"
            yield (
                "clock",
                abs(self.ahead) < CLOCK,
                f"{self.ahead:+.3f} s from ours, and counts",
            )
            yield "connections", used < most - SPARE, f"{used} of {most} are used; each worker takes one"
            yield "locks", *self._try_locks()
            yield "table", True, f"of evaluations, format {FORMAT}" if prepared else "not there yet"
        except SpevalError as exc:
            yield "server", False, str(exc)

    def _try_locks(self) -> tuple[bool, str]:
        """See the lock of another connection, end that, and see that the lock is gone."""
        try:
            with contextlib.closing(Link(self._conninfo, self.table)) as other:
                other.ask(LOCK, {"table": 0, "worker": os.getpid()})
                seen = [self._is_locked(os.getpid())]
        except psycopg.Error as exc:
            return False, f"cannot be tried by a second connection: {' '.join(str(exc).split())}"
        end = time.monotonic() + GONE
        while seen[-1] and time.monotonic() < end:
            time.sleep(0.01)
            seen.append(self._is_locked(os.getpid()))
        if not seen[0]:
            return False, "that of one connection is not seen by another: is there a proxy?"
        if seen[-1]:
            return False, f"that of a connection that has ended is still there after {GONE} s"
        return True, "seen by another connection, and gone when theirs has ended"

    def _is_locked(self, number: int) -> bool:
        with self._transaction("BEGIN READ ONLY") as conn:
            return bool(conn.execute(IS_LOCKED, {"worker": number}).fetchall())

    def _explained(self, exc: psycopg.Error) -> SpevalError:
        said = " ".join(str(exc).split())
        if isinstance(exc, errors.UndefinedTable) and self._opened:
            return SpevalError(f"{self.path} was deleted while it was in use: start again")
        if isinstance(exc, errors.DivisionByZero):
            return SpevalError(REPLACED.format(path=self.path))
        # Without a state: the connection broke; or the database contradicts itself, and will go on to do so.
        broke = exc.sqlstate is None and isinstance(exc, (psycopg.OperationalError, psycopg.InterfaceError))
        if broke or (exc.sqlstate or "")[:2] in PASSING:
            return NotWritable(f"{self.path} cannot be used for now ({said})")
        return SpevalError(f"{self.path} cannot be used ({said})")


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number
