"""What a person wants to know of a database: how far it is, who works on it, what failed and why.

Reads in short transactions, some thousand rows at a time, beside any number of instances.
"""

from __future__ import annotations

import bisect
import contextlib
import csv
import functools
import json
import math
import os
import re
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

from ..database import FIRST, LAST, Connection, Database, Name, existing
from ..errors import SpevalError, cut, last_line
from ..process.signals import Signals
from ..reading import (
    CHUNK_SIZE,
    COLUMNS,
    as_dict,
    check_order,
    count_all,
    first_fresh,
    iter_evals,
    search_of,
)
from ..workers import live
from .progress import ENOUGH, WINDOW

__all__ = [
    "MORE",
    "Failure",
    "Idle",
    "Survey",
    "Working",
    "best",
    "best_so_far",
    "columns",
    "error_of",
    "errors",
    "failures",
    "in_order",
    "is_completed",
    "named",
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
FIND = f"SELECT {COLUMNS} FROM evals /* NATURAL JOIN names */ WHERE name = :name"
PLACE_OF = "SELECT host, pid FROM workers WHERE id = :worker"
SIZE = "SELECT count(*), max(id) FROM evals"
ROOM = 50_000  # rows, of which only short columns are read, in one transaction
CHUNKS = 2  # of so many rows are read for the rate
YEAR_10000 = 253_402_300_800.0  # unix time of its start, s
NUMBER = re.compile(r"(?<!\w)[-+]?(?:0x[0-9a-f]+|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)


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
    first, at most so many as were asked for; `at` is the unix time of the look. `sure`: whoever works on it
    is among the workers, and one that is dead is known to be.
    """

    counts: dict[str, int]
    workers: list[Working]
    running: list[tuple[str, float | None, int]]
    at: float
    sure: bool

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def left(self) -> int:
        return self.counts["pending"] + self.counts["in_progress"]


class Idle:
    """At how many looks in a row nobody worked on a database, and nothing changed in it."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._looks = 0

    def learn(self, seen: Survey) -> int:
        """Take in a look; one at which it is not known who lives does not count."""
        works = not seen.sure or any(worker.alive for worker in seen.workers)
        self._looks = 0 if works or seen.counts != self._counts else self._looks + 1
        self._counts = seen.counts
        return self._looks


class Failure(NamedTuple):
    """Evaluations that failed with the same last line of their traceback, but for its numbers.

    The line of the first of them, how many they are, and some names.
    """

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
        counts = count_all(db, conn)
        rows = live(conn)
        dead = db.locks.dead(conn, [id for id, *_ in rows], surely=False)
        workers = [
            Working(id, _readable(host), _readable(pid), _time(started), id not in dead)
            for id, host, pid, started, _ in rows
        ]
        claims = conn.execute(RUNNING, {"room": room}).fetchall()
        sure = db.locks.see_all
    running = [(_text(name), _time(started), worker) for name, started, worker in claims]
    return Survey(counts, workers, running, time.time(), sure)


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
        before = min(first_fresh(db, conn, total, last or 0), LAST)  # SQLite has no larger number
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
    after = FIRST
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
    """Return the status and the error of one evaluation, ``""`` if it has none; and why it cannot be read.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    db = existing(evals_fname)
    with Signals(), db.read() as conn:
        rows = conn.execute(FIND, {"name": name}).fetchall()
    if not rows:
        raise ValueError(f"{db.path} has no evaluation {name!r}")
    ((_, *row),) = rows
    e = dict(zip(COLUMNS.split(", ")[1:], row))
    try:
        e = as_dict(db.path, *row)
    except SpevalError as exc:  # a damaged value, which other readers raise
        e["error"] = f"{_text(e['error'])}\n{exc}".lstrip("\n")
    return _text(e["status"]), _text(e["error"])


def failures(evals_fname: Name, most: int = 1000) -> list[Failure]:
    """Return the failed evaluations by the last line of their traceback, the most frequent first.

    Lines that differ in their numbers are one. Of those that differ otherwise, only the first `most` are
    kept apart.
    """
    numbers: Counter[str] = Counter()
    first: dict[str, tuple[str, list[str]]] = {}  # a line, and names
    for name, error in errors(evals_fname):
        line = last_line(error) or "no reason was stored"
        kind = NUMBER.sub("0", line)
        if kind not in first and len(first) >= most:
            kind = line = "others"
        numbers[kind] += 1
        _, some = first.setdefault(kind, (line, []))
        if len(some) < 3:
            some.append(name)
    return [Failure(first[kind][0], number, first[kind][1]) for kind, number in numbers.most_common()]


def is_completed(name: str) -> bool:
    """Tell whether every evaluation is completed; also if it is gone, and not needed any more."""
    try:
        db = existing(name)
        with Signals(), db.read() as conn:
            counts = count_all(db, conn)
    except FileNotFoundError:
        return True
    except (OSError, SpevalError):
        return False
    return counts["completed"] == sum(counts.values())


def results(evals_fname: Name, status: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the evaluations as flat dicts: one key for each argument and each key of a dict result.

    Those are ``args.<key>`` for arguments that are a dict, ``args.<index>`` for a list, else ``args``;
    ``result.<key>`` for a result that is a dict, else ``result``; the others are ``name``, ``status``,
    ``duration`` (seconds, of what is finished), and `MORE`: as `load_evals` has them, but for ``host`` and
    ``process`` of the worker.
    """
    place = functools.lru_cache(maxsize=1000)(_place_of(evals_fname))
    for e in iter_evals(evals_fname, status):
        row = {"name": e["name"], "status": e["status"]}
        _flatten(row, "args", e["args"])
        if e["status"] == "completed":
            _flatten(row, "result", e["result"])
        row["duration"] = _duration(e) if e["status"] in ("completed", "failed") else None
        row["attempt"], row["losses"], row["stopped"] = e["attempt"], e["losses"], e["stopped"]
        row["started"], row["updated"] = _time(e["started"]), _time(e["updated"])
        row["host"], row["process"] = place(e["worker"])
        row["error"] = e["error"]
        if bytes in map(type, row.values()):
            row = {key: _readable(value) for key, value in row.items()}
        yield row


MORE = ("attempt", "losses", "stopped", "started", "updated", "host", "process", "error")
ENDS = ("duration", *MORE)


def _place_of(evals_fname: Name) -> Callable[[Any], tuple[Any, Any]]:
    """Return what looks up host and process of a worker."""
    db = existing(evals_fname)

    def place_of(worker: Any) -> tuple[Any, Any]:
        if worker is None:
            return None, None
        with Signals(), db.read() as conn:
            found = conn.execute(PLACE_OF, {"worker": worker}).fetchall()
        return found[0] if found else (None, None)

    return place_of


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


def columns(rows: Iterator[dict[str, Any]]) -> list[str]:
    """Return the keys of all rows: those of the arguments, then of the results, each as they first come."""
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(row))
    keys = [key for key in found if key not in ("name", "status", *ENDS)]
    keys.sort(key=lambda key: not key.startswith("args"))  # keeps the order otherwise
    return ["name", "status", *keys, *ENDS]


def named(text: str, keys: list[str]) -> list[str]:
    """Return the columns that are meant by a list with commas; a name with a comma is in double quotes.

    Raises
    ------
    ValueError
        As from `resolve`.
    """
    try:
        (words,) = csv.reader([text], skipinitialspace=True)
    except csv.Error as exc:
        raise ValueError(f"{text!r} is no list of columns: {exc}") from exc
    found = [resolve(word if word in keys else word.strip(), keys) for word in words or [""]]
    return list(dict.fromkeys(found))


def resolve(key: str, keys: list[str]) -> str:
    """Return the column that is meant by `key`: itself, or the only one that ends with it.

    Raises
    ------
    ValueError
        If there is none, or several.
    """
    found = _meant(key, keys)
    if key in found or len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{key!r} may be {' or '.join(found)}: which?")
    raise ValueError(f"there is no column {key!r}, but {cut(', '.join(keys), 2000)}")


def _meant(key: str, keys: Container[str]) -> list[str]:
    return [column for column in (key, f"args.{key}", f"result.{key}") if column in keys]


def best(evals_fname: Name, key: str, largest: bool) -> tuple[str, dict[str, Any]] | None:
    """Return the column that is meant by `key`, and the row of the completed evaluation that is best there.

    That has the smallest or the `largest` number, the first of them. None if no number is there yet.

    Raises
    ------
    ValueError
        As from `resolve`.
    """
    tops: dict[str, dict[str, Any] | None] = {}
    row = None
    for row in results(evals_fname, "completed"):
        for column in _meant(key, row):
            top, value = tops.setdefault(column, None), row[column]
            if _is_number(value) and (top is None or _is_better(value, top[column], largest)):
                tops[column] = row
    if row is None:
        return None
    column = resolve(key, list(tops) or columns(results(evals_fname, "completed")))
    found = tops.get(column)
    return None if found is None else (column, found)


def best_so_far(evals_fname: Name) -> tuple[str, dict[str, Any]] | None:
    """Return the same as `best`, by what an adaptive space is after; None if there is none, or no result."""
    db = existing(evals_fname)
    with Signals(), db.read() as conn:
        way, _, key = search_of(conn)[1].partition(" ")
    with contextlib.suppress(ValueError):  # no result has it
        return best(evals_fname, key, way == "max") if key else None
    return None


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and not math.isnan(value))


def _is_better(value: float, than: float, largest: bool) -> bool:
    return value > than if largest else value < than


def in_order(rows: Iterator[dict[str, Any]], keys: list[str], reverse: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows sorted by keys, the first counts most: numbers, then text, then those without it.

    On disk, not in memory.
    """
    for key in reversed(keys):  # each leaves in their order those that have the same
        rows = _in_order(rows, key, reverse)
    return rows


def _in_order(rows: Iterator[dict[str, Any]], key: str, reverse: bool) -> Iterator[dict[str, Any]]:
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
