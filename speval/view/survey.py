"""What a person wants to know of a database: how far it is, who works on it, what failed and why.

Reads in short transactions, some thousand rows at a time, beside any number of instances.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..database import Connection, Database, Name, existing
from ..errors import SpevalError, last_line
from ..process.signals import Signals
from ..reading import (
    CHUNK_SIZE,
    check_order,
    count_evals,
    count_surely,
    first_fresh,
    iter_evals,
)
from ..workers import live
from .progress import ENOUGH, WINDOW

__all__ = [
    "Failure",
    "Survey",
    "Working",
    "columns",
    "error_of",
    "errors",
    "failures",
    "in_order",
    "is_completed",
    "rate",
    "resolve",
    "results",
    "survey",
]

WHEN_FINISHED = """
    SELECT id, updated FROM evals
    WHERE id < :before AND status IN ('completed', 'failed') ORDER BY id DESC LIMIT :room"""
RUNNING = """
    SELECT name, started, worker FROM evals WHERE status = 'in_progress' ORDER BY started LIMIT :room"""
FAILED = """
    SELECT id, name, error FROM evals WHERE status = 'failed' AND id > :after ORDER BY id LIMIT :room"""
ERROR_OF = "SELECT status, error FROM evals WHERE name = :name"
SIZE = "SELECT count(*), max(id) FROM evals"
ROOM = 50_000  # rows, of which only short columns are read, in one transaction
CHUNKS = 2  # of so many rows are read for the rate
YEAR_10000 = 253_402_300_800.0  # unix time of its start, s


class Working(NamedTuple):
    """A worker that has not ended: since when (unix time, s, if that is known), and whether it lives."""

    id: int
    host: str
    pid: int
    started: float | None
    alive: bool


class Survey(NamedTuple):
    """How far the evaluations of a database are.

    `running` has name, start (unix time, s, None if it is not known) and worker of the claims, the oldest
    first, at most so many as were asked for; `at` is the unix time of the look.
    """

    counts: dict[str, int]
    workers: list[Working]
    running: list[tuple[str, float | None, int]]
    at: float

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def left(self) -> int:
        return self.counts["pending"] + self.counts["in_progress"]


class Failure(NamedTuple):
    """Evaluations that failed with the same last line of their traceback: how many, and some names."""

    line: str
    number: int
    names: list[str]


def _time(value: Any) -> float | None:
    """Return a unix time as it is stored, None if it is none that a calendar has."""
    return value if isinstance(value, (int, float)) and 0 <= value < YEAR_10000 else None


def _readable(value: Any) -> Any:
    """Return a stored value as one of JSON's: bytes, which speval never stores, as text."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _text(value: Any) -> str:
    return "" if value is None else str(_readable(value))


def survey(evals_fname: Name, room: int = 10) -> Survey:
    """Look at a database, atomically.

    Raises
    ------
    FileNotFoundError, SpevalError
        As from `load_evals`.
    """
    db = existing(evals_fname)
    with Signals(), db.read() as conn:
        counts = count_surely(conn)
        workers = [
            Working(id, _readable(host), _readable(pid), _time(started), not db.locks.is_dead(id))
            for id, host, pid, started in live(conn)
        ]
        claims = conn.execute(RUNNING, {"room": room}).fetchall()
    running = [(_text(name), _time(started), worker) for name, started, worker in claims]
    return Survey(counts, workers, running, time.time())


def rate(evals_fname: Name, seen: Survey) -> float | None:
    """Return how many evaluations were finished per second of late; None if nobody works or none was.

    In the last 30 s, or a minute, two, four and so on, until there are 10 of them; or in the time of the
    last 100,000. Evaluations that were tried again, from far back, do not count among the latest.
    """
    starts = [worker.started for worker in seen.workers if worker.alive and worker.started is not None]
    if not starts:
        return None
    latest = list(_latest(existing(evals_fname)))
    now = time.time()  # it may have waited for long
    ages = sorted(max(now - updated, 0.0) for updated in latest)
    since = max(now - min(starts), 1e-3)
    seconds = WINDOW
    while bisect.bisect(ages, seconds) < ENOUGH and seconds < since:
        seconds *= 2
    seconds = min(seconds, since)
    if len(ages) > (CHUNKS - 1) * ROOM:  # there may be more
        seconds = min(seconds, max(ages[-1], 1e-3))
    return bisect.bisect(ages, seconds) / seconds or None


def _latest(db: Database) -> Iterator[float]:
    """Yield when the latest evaluations were finished, by their place in the space, the last first."""
    with Signals(), db.read() as conn:
        ((total, last),) = conn.execute(SIZE).fetchall()
        before = min(first_fresh(conn, total, last or 0), 2**63 - 1)  # SQLite has no larger number
    for _ in range(CHUNKS):
        with Signals(), db.read() as conn:
            rows = conn.execute(WHEN_FINISHED, {"before": before, "room": ROOM}).fetchall()
            check_order(conn, -(2**63) - 1, [*(id for id, _ in reversed(rows)), before])
        if not rows:
            return
        yield from (at for _, updated in rows if (at := _time(updated)) is not None)
        before = rows[-1][0]


def errors(evals_fname: Name) -> Iterator[tuple[str, str]]:
    """Yield name and error of the failed evaluations, in the order of the space."""
    db = existing(evals_fname)
    after = -(2**63)
    while True:
        with Signals(), db.read() as conn:
            rows = _some_failed(conn, after)
            check_order(conn, after, (id for id, _, _ in rows))
        if not rows:
            return
        for after, name, error in rows:  # noqa: B007 - the last is where to go on
            yield name, error


def _some_failed(conn: Connection, after: int) -> list[tuple[int, str, str]]:
    rows, size = [], 0
    with contextlib.closing(conn.execute(FAILED, {"after": after, "room": ROOM})) as cursor:
        for id, name, error in cursor:
            rows.append((id, _text(name), _text(error)))
            size += len(rows[-1][2])
            if size > CHUNK_SIZE:
                break
    return rows


def error_of(evals_fname: Name, name: str) -> tuple[str, str]:
    """Return the status and the error of one evaluation, ``""`` if it has none.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    db = existing(evals_fname)
    with Signals(), db.read() as conn:
        rows = conn.execute(ERROR_OF, {"name": name}).fetchall()
    if not rows:
        raise ValueError(f"{db.path} has no evaluation {name!r}")
    ((status, error),) = rows
    return _text(status), _text(error)


def failures(evals_fname: Name, most: int = 1000) -> list[Failure]:
    """Return the failed evaluations by the last line of their traceback, the most frequent first.

    Of lines that differ each time, numbers in them say, only the first `most` are kept apart.
    """
    numbers: Counter[str] = Counter()
    names: dict[str, list[str]] = {}
    for name, error in errors(evals_fname):
        line = last_line(error) or "no reason was stored"
        if line not in names and len(names) >= most:
            line = "others"
        numbers[line] += 1
        some = names.setdefault(line, [])
        if len(some) < 3:
            some.append(name)
    return [Failure(line, number, names[line]) for line, number in numbers.most_common()]


def is_completed(name: str) -> bool:
    """Tell whether every evaluation is completed; also if it is gone, and not needed any more."""
    try:
        counts = count_evals(name)
    except FileNotFoundError:
        return True
    except (OSError, SpevalError):
        return False
    return counts["completed"] == sum(counts.values())


def results(evals_fname: Name, status: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the evaluations as flat dicts: one key for each argument and each key of a dict result.

    Those are ``args.<key>`` for arguments that are a dict, ``args.<index>`` for a list, else ``args``;
    ``result.<key>`` for a result that is a dict, else ``result``; the others are ``name``, ``status``,
    ``duration`` (seconds, of what is finished), ``attempt`` and ``worker``.
    """
    for e in iter_evals(evals_fname, status):
        row = {"name": e["name"], "status": e["status"]}
        _flatten(row, "args", e["args"])
        if e["status"] == "completed":
            _flatten(row, "result", e["result"])
        row["duration"] = _duration(e) if e["status"] in ("completed", "failed") else None
        row["attempt"], row["worker"] = e["attempt"], e["worker"]
        yield {key: _readable(value) for key, value in row.items()}


def _duration(e: dict[str, Any]) -> float | None:
    began, ended = _time(e["started"]), _time(e["updated"])
    return None if began is None or ended is None else ended - began


def _flatten(row: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, dict) and value:
        row.update((f"{key}.{name}", item) for name, item in value.items())
    elif isinstance(value, list) and value and key == "args":
        row.update((f"{key}.{index}", item) for index, item in enumerate(value))
    else:
        row[key] = value


ENDS = ("duration", "attempt", "worker")


def columns(rows: Iterator[dict[str, Any]]) -> list[str]:
    """Return the keys of all rows: those of the arguments, then of the results, each as they first come."""
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(row))
    keys = [key for key in found if key not in ("name", "status", *ENDS)]
    keys.sort(key=lambda key: not key.startswith("args"))  # keeps the order otherwise
    return ["name", "status", *keys, *ENDS]


def in_order(rows: Iterator[dict[str, Any]], key: str, reverse: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows sorted by a key: numbers, then text, then those without it. On disk, not in memory."""
    with tempfile.TemporaryDirectory(prefix="speval-") as folder:
        conn = sqlite3.connect(os.path.join(folder, "rows"), isolation_level=None)
        with contextlib.closing(conn):
            try:
                conn.execute("PRAGMA synchronous = OFF")
                conn.execute("BEGIN")
                conn.execute("CREATE TABLE rows (key, row TEXT)")
                conn.executemany("INSERT INTO rows VALUES (?, ?)", _keyed(rows, key))
                for (row,) in conn.execute(SORT_DOWN if reverse else SORT_UP):
                    yield json.loads(row)
            except sqlite3.Error as exc:
                raise SpevalError(f"cannot sort in {tempfile.gettempdir()} ({exc}): set TMPDIR") from exc


SORT_UP = "SELECT row FROM rows ORDER BY key IS NULL, key, rowid"
SORT_DOWN = "SELECT row FROM rows ORDER BY key IS NULL, key DESC, rowid"


def _keyed(rows: Iterator[dict[str, Any]], key: str) -> Iterator[tuple[Any, str]]:
    for row in rows:
        value = row.get(key)
        if isinstance(value, (dict, list)):
            value = json.dumps(value)
        elif isinstance(value, str):
            value = value.encode(errors="backslashreplace").decode()
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            value = float(value) if abs(value) < 1e308 else str(value)
        yield value, json.dumps(row)


def resolve(key: str, keys: list[str]) -> str:
    """Return the column that is meant by `key`: itself, or the only one that ends with it.

    Raises
    ------
    ValueError
        If there is none, or several.
    """
    if key in keys:
        return key
    found = [column for column in keys if column.partition(".")[2] == key]
    if len(found) == 1:
        return found[0]
    what = f"{' and '.join(found)} are" if found else f"there is no column {key!r}, but {', '.join(keys)}"
    raise ValueError(f"{what}: which?" if found else what)
