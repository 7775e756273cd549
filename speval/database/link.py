"""One connection to a PostgreSQL server, on which statements are sent in one go."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
import select
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import error_from_result
from psycopg.pq import DiagnosticField, ExecStatus

from ..errors import SpevalError
from ..process import forks
from ..process.machine import identity
from .dialect import for_many, kind_of, literal, parameter, translated

__all__ = ["Link", "parsed"]

OLDEST, OLDEST_LIBPQ = 12, 14  # version of the server; of the library, which has pipelines since then
MOST = 5000  # rows that one statement takes
LONGEST = 50  # characters of a table's name, for which those of its indexes leave room
SYNC = 60.0  # seconds after which the two clocks are compared again
# What ends a connection to a host that has vanished, on both sides, in some 10 s.
QUIET, INTERVAL, COUNT = 5, 2, 3
KEEPALIVE = {
    "keepalives_idle": QUIET,
    "keepalives_interval": INTERVAL,
    "keepalives_count": COUNT,
    "tcp_user_timeout": 1000 * (QUIET + INTERVAL * COUNT),  # milliseconds
    "connect_timeout": 10,
}
# Plans are kept that were made when a table was small: all but a count has to go by its indexes.
SETTINGS = f"""
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off;
    SET tcp_keepalives_idle = {QUIET}; SET tcp_keepalives_interval = {INTERVAL};
    SET tcp_keepalives_count = {COUNT}; SET tcp_user_timeout = {1000 * (QUIET + INTERVAL * COUNT)};
    SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0; SET lock_timeout = 0;
    SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off';
    SELECT set_config(name, '0', false) FROM pg_settings
    WHERE name IN ('transaction_timeout', 'idle_session_timeout')"""

WELL = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK, ExecStatus.PIPELINE_SYNC)


class Reply:
    """What the server answers to one message; nothing yet, while that is under way."""

    result: Any = None


class Rows:
    """What a statement, sent in so many pieces, has found or changed."""

    def __init__(self, link: Link, replies: list[Reply]) -> None:
        self._link = link
        self._replies = replies

    @property
    def rowcount(self) -> int:
        return sum(self._link.answer(reply).command_tuples or 0 for reply in self._replies)

    def fetchall(self) -> list[Any]:
        return list(self)

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(map(self._link.rows, self._replies))

    def close(self) -> None: ...


def _check(conn: psycopg.Connection[Any]) -> None:
    """Raise if a server, or what is between, cannot be used."""
    if psycopg.pq.version() < OLDEST_LIBPQ * 10000:
        raise SpevalError(
            f"libpq {psycopg.pq.version() // 10000} is too old: {OLDEST_LIBPQ} is needed, as the package"
            " psycopg[binary] has it"
        )
    if conn.execute("SELECT pg_backend_pid()").fetchall() != [(conn.info.backend_pid,)]:
        raise SpevalError(
            "this is a proxy that shares connections to PostgreSQL, which cannot tell who lives: name the"
            " server itself"
        )
    if conn.info.server_version < OLDEST * 10000:
        raise SpevalError(f"PostgreSQL {conn.info.server_version // 10000} is too old: {OLDEST} is needed")
    if conn.info.parameter_status("server_encoding") != "UTF8":
        raise SpevalError("this database is not in UTF-8: make one by `createdb -E UTF8 -T template0`")


def _error(result: Any) -> psycopg.Error:
    """Return what a result tells that is no good; None, or one without a state, is of the library itself."""
    if result is not None and result.error_field(DiagnosticField.SQLSTATE):
        return error_from_result(result)
    said = b"" if result is None else result.error_message
    return psycopg.OperationalError(said.decode("utf-8", "replace") or "the connection broke")


class Link:
    """One connection to a server, and a transaction on it: a `Connection`.

    Statements are sent in one go until the rows of one are asked for.
    """

    DatabaseError = psycopg.DatabaseError

    def __init__(self, conninfo: str, table: str) -> None:
        self._conn = conn = psycopg.connect(conninfo, autocommit=True)
        self._pid = os.getpid()
        self._identity = identity(conn.fileno())
        self._table = table
        self.oid = 0  # of the table, once it is known to be one of evaluations
        self._pgconn = conn.pgconn
        self._asked: collections.deque[Reply] = collections.deque()  # what is not answered yet
        self._prepared: dict[Any, bytes] = {}  # statement and types of its parameters: its name on the server
        self._poll = select.poll()
        self._compared = -SYNC
        self.used = 0.0  # when it was seen to be there
        try:
            _check(conn)
            conn.execute(SETTINGS)
            self._pgconn.enter_pipeline_mode()
        except BaseException:
            conn.close()
            raise

    def ahead(self) -> float:
        """Return by how much the clock of the server is ahead of ours (s), as it was a minute ago at most."""
        if time.monotonic() - self._compared >= SYNC:
            began = time.time()
            ((now,),) = self.ask("SELECT :now")
            self._ahead = float(now) - (began + time.time()) / 2
            self._compared = time.monotonic()
        return self._ahead

    @property
    def is_ours(self) -> bool:
        """It is of this process, and open, and `func` has not put another file in its place."""
        if self._pid != os.getpid() or self._conn.closed:
            return False
        return identity(self._conn.fileno()) == self._identity

    @property
    def is_alive(self) -> bool:
        """Tell whether the server is still there, as far as the kernel knows."""
        if not self.is_ours:
            return False
        with contextlib.suppress(psycopg.Error, OSError):
            if self._ready(select.POLLIN, 0):  # it says something unasked: that it ends, most often
                self.ask("SELECT 1")
            return not self._conn.closed
        return False

    @contextlib.contextmanager
    def transaction(self, begin: str = "") -> Iterator[None]:
        """Be in a transaction in the block. Without `begin`, all that is sent up to its end is one."""
        try:
            if begin:
                self.execute(begin)
            yield
            if begin:
                self.execute("COMMIT")
            self._pgconn.pipeline_sync()
            self._receive(self._expected())
            self.used = time.monotonic()
        except BaseException:
            self.close()  # which rolls back, wherever it was: an exception may have come between two answers
            raise

    def ask(self, statement: str, facts: Any = (), /) -> list[Any]:
        """Execute a statement that is a transaction; return its rows."""
        with self.transaction():
            rows = self.execute(statement, facts)
        return rows.fetchall()

    def execute(self, statement: str, facts: Any = (), /) -> Rows:
        text, names = translated(statement, self._table)
        given = [facts[name] for name in names] if isinstance(facts, dict) else facts
        return Rows(self, [self._send(text, given)])

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]], /) -> Rows:
        replies: list[Reply] = []
        left = iter(rows)
        while some := list(itertools.islice(left, MOST)):
            if len(some) == 1:  # by a statement of which the server keeps the plan
                replies.append(self._send(translated(statement, self._table)[0], some[0]))
                break
            columns = list(zip(*some))
            text = for_many(statement, self._table, tuple(map(kind_of, columns)))
            replies.append(self._send(text, list(map(literal, columns))))
            if len(some) == MOST:
                self.answer(replies[-1])  # or all of them would stand in memory
        return Rows(self, replies)

    def _send(self, text: bytes, facts: Sequence[Any]) -> Reply:
        values, types = zip(*map(parameter, facts)) if facts else ((), ())
        name = self._prepared.get((text, types))
        if name is None:
            name = self._prepared[text, types] = b"s%d" % len(self._prepared)
            self._pgconn.send_prepare(name, text, list(types))
            self._expected()
        self._pgconn.send_query_prepared(name, list(values))  # psycopg 3.2 takes no tuple
        return self._expected()

    def _expected(self) -> Reply:
        self._asked.append(Reply())
        return self._asked[-1]

    def answer(self, reply: Reply) -> Any:
        """Return the answer to a statement; it commits nothing to wait for that."""
        if reply.result is None:
            self._pgconn.send_flush_request()
            self._receive(reply)
        return reply.result

    def rows(self, reply: Reply) -> list[tuple[Any, ...]]:
        result = self.answer(reply)
        loader = Transformer(self._conn)  # of one's own: others may use the connection meanwhile
        loader.set_pgresult(result)
        return loader.load_rows(0, result.ntuples, tuple)

    def _receive(self, last: Reply) -> None:
        """Send what has not been sent; take the answers to all, up to that one."""
        while self._pgconn.flush():
            if self._ready(select.POLLIN | select.POLLOUT) & select.POLLIN:
                self._pgconn.consume_input()
        while last.result is None:
            result = self._next()
            if result is None or result.status not in WELL:
                raise _error(result)
            if result.status != ExecStatus.PIPELINE_SYNC:
                self._next()  # is None, at the end of each statement
            self._asked.popleft().result = result

    def _next(self) -> Any:
        while self._pgconn.is_busy():
            self._ready(select.POLLIN)
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    def _ready(self, events: int, milliseconds: int | None = None) -> int:
        """Wait until the connection is ready for one of these events; return for which."""
        self._poll.register(self._conn.fileno(), events)
        return sum(ready for _, ready in self._poll.poll(milliseconds))

    def close(self) -> None:
        """Close it; never what was inherited from another process, or is another file by now."""
        if self.is_ours:
            self._conn.close()
        elif self._pid == os.getpid() and not self._conn.closed:
            forks.keep(self._conn)

    def forget(self) -> None:
        """In a forked child: let the server see the end of the parent's connection when that ends."""
        if not self._conn.closed:
            forks.keep(self._conn)
            if identity(self._conn.fileno()) == self._identity:
                os.close(self._conn.fileno())


def parsed(url: str) -> tuple[str, str, str]:
    """Return what libpq takes, the table, and the URL as it may be shown."""
    before, _, query = url.partition("?")
    pieces = [piece for piece in query.split("&") if piece]
    table = "evals"
    for piece in pieces:
        if piece.startswith("table="):
            table = urllib.parse.unquote(piece[len("table=") :])
    rest = "&".join(piece for piece in pieces if not piece.startswith("table="))
    try:
        known = conninfo_to_dict(f"{before}?{rest}" if rest else before)
    except psycopg.ProgrammingError:
        raise ValueError(
            "the URL of the database is none that libpq knows: postgresql://user@host:port/dbname?table=name"
        ) from None
    ports = str(known.get("port", "")).replace(",", "")
    if "@" in f"{known.get('host')}{known.get('dbname')}" or not (ports.isdigit() or ports == ""):
        raise ValueError("the URL is not as libpq has it: a password in it has to be percent-encoded")
    if not 0 < len(table.encode()) <= LONGEST:
        raise ValueError(f"the name of a table has 1 to {LONGEST} bytes, not {table!r}")
    conninfo = make_conninfo(
        "", **{**KEEPALIVE, "application_name": "speval", **known, "client_encoding": "UTF8"}
    )
    return conninfo, table, _shown(known, table)


def _shown(known: Mapping[str, Any], table: str) -> str:
    quote = functools.partial(urllib.parse.quote, safe="")
    user = f"{quote(str(known['user']))}@" if known.get("user") else ""
    host = quote(str(known.get("host", "")), safe=",") if "host" in known else ""
    port = f":{known['port']}" if known.get("port") else ""
    dbname = f"/{quote(str(known['dbname']))}" if known.get("dbname") else "/"
    where = "".join(f"{word}={quote(str(known[word]))}&" for word in ("service", "hostaddr") if word in known)
    return f"postgresql://{user}{host}{port}{dbname}?{where}table={quote(table)}"
