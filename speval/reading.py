"""Evaluations as dicts, or counted."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from .database import FIRST, Connection, Database, Name, existing
from .errors import SpaceMismatch, Unreadable
from .process.signals import Signals
from .space import ADAPTIVE
from .values import from_json

__all__ = [
    "CHUNK_SIZE",
    "COLUMNS",
    "STATUSES",
    "as_dict",
    "check_order",
    "check_status",
    "count",
    "count_all",
    "count_evals",
    "count_surely",
    "first_fresh",
    "iter_evals",
    "left",
    "load_evals",
    "look_up",
    "not_stored",
    "read_chunk",
    "read_some",
    "search_of",
    "unfinished",
]

STATUSES = ("pending", "in_progress", "completed", "failed")
CHUNK, CHUNK_SIZE = 1000, 8_000_000  # evaluations, and characters, read in one transaction
SOME = 500  # evaluations, at most, that are looked up at once: SQLite takes 999 parameters


def load_evals(
    evals_fname: Name, status: str | None = None, *, reports: bool = False
) -> list[dict[str, Any]]:
    """Return the evaluations of a database, in the order of the space.

    Parameters
    ----------
    evals_fname : str or path-like
        File name of the sqlite3 database, also one of speval 0.1.1.
    status : {"pending", "in_progress", "completed", "failed"}, optional
        Only those with this status. By default all.
    reports : bool
        With what `report` was told.

    Returns
    -------
    list of dict
        ``"name"`` (str); ``"status"``; ``"updated"`` (unix time of the last change, float, seconds;
        if finished, when `func` came back);
        ``"result"`` (what `func` returned, None unless completed); ``"args"``; ``"error"`` (traceback of a
        failed one, a line for each loss, why a value cannot be read here; str or None); ``"attempt"``
        (number of times it was claimed); ``"losses"`` (how often its worker died or ran past the
        timeout); ``"worker"`` (id of the last, or None);
        ``"started"`` (unix time of the last claim; if finished, when `func` was called; or None);
        ``"stopped"`` (step at which it was stopped as not promising, or None). With `reports` also
        ``"reports"``, a dict of step (int) to value (float), by step.

    Raises
    ------
    FileNotFoundError
        If there is no such file; none is made.
    SpevalError
        If it is no database of evaluations, or damaged.

    Notes
    -----
    Each evaluation is read atomically, not the whole: while workers run, later ones may be newer.

    A result that has more levels or digits than this Python reads is None, and the arguments likewise. The
    reason is the end of ``"error"``. (Only speval 0.2.0 and older have stored such values.)

    Examples
    --------
    >>> import tempfile
    >>> from speval import speval
    >>> fname = tempfile.mkdtemp() + "/evals.db"
    >>> counts = speval(len, {"short": "a", "long": "abc"}, fname)
    >>> [(e["name"], e["result"]) for e in load_evals(fname, "completed")]
    [('short', 1), ('long', 3)]
    """
    return list(iter_evals(evals_fname, status, reports=reports))


def iter_evals(
    evals_fname: Name, status: str | None = None, *, reports: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield what `load_evals` returns, with constant memory, however many there are."""
    check_status(status)
    return _iter_evals(existing(evals_fname), status, reports)


def check_status(status: str | None) -> None:
    if status is not None and status not in STATUSES:
        raise ValueError(f"there is no status {status!r}, but {', '.join(STATUSES)}")


def _iter_evals(db: Database, status: str | None, reports: bool) -> Iterator[dict[str, Any]]:
    after: int | None = FIRST
    while after is not None:
        reported: dict[int, dict[int, float]] = {}
        with Signals(), db.read() as conn:
            rows, after = read_chunk(conn, after, status)
            if reports and rows:
                reported = _reported(conn, rows[0][0], rows[-1][0])
        for id, *row in rows:
            more = {"reports": reported.get(id, {})} if reports else {}
            yield {**as_dict(db.path, *row), **more}


REPORTED = "SELECT id, step, value FROM reports WHERE id >= :first AND id <= :last ORDER BY id, step"


def _reported(conn: Connection, first: int, last: int) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    for id, step, value in conn.execute(REPORTED, {"first": first, "last": last}):
        found.setdefault(id, {})[step] = math.nan if value is None else value
    return found


# Where all rows of a statement come at once, these have to be few if they are large.
SIZE = "octet_length(args) + coalesce(octet_length(result), 0) + coalesce(octet_length(error), 0)"
LAST_OF_CHUNK = f"""
    SELECT max(id) FROM (
        SELECT id
            /* , sum({SIZE}) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before */
        FROM evals WHERE id > :after ORDER BY id LIMIT :room) AS chunk
    /* WHERE coalesce(before, 0) <= {CHUNK_SIZE} */"""
COLUMNS = "id, name, status, updated, result, args, error, attempt, losses, worker, started, stopped"
READ = f"""
    SELECT {COLUMNS} FROM evals
    WHERE id > :after AND id <= :last AND (CAST(:status AS TEXT) IS NULL OR status = :status) ORDER BY id"""
READ_SOME = f"SELECT {COLUMNS} FROM evals WHERE id IN ({{}})"


def read_chunk(conn: Connection, after: int, status: str | None) -> tuple[list[tuple[Any, ...]], int | None]:
    """Return some rows, and the id to go on after, None at the end."""
    ((last,),) = conn.execute(LAST_OF_CHUNK, {"after": after, "room": CHUNK}).fetchall()
    if last is None:
        return [], None
    check_order(conn, after, [last])
    rows: list[tuple[Any, ...]] = []
    size = 0
    facts = {"after": after, "last": last, "status": status}
    with contextlib.closing(conn.execute(READ, facts)) as cursor:  # an open one would keep its lock
        for row in cursor:
            check_order(conn, after, [row[0]])
            after = row[0]
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, str))
            if size > CHUNK_SIZE:
                return rows, after
    if last < after:
        raise conn.DatabaseError("its rows are not in order")
    return rows, last


def read_some(conn: Connection, ids: list[int]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for first in range(0, len(ids), SOME):
        some = ids[first : first + SOME]
        rows += conn.execute(READ_SOME.format(", ".join("?" * len(some))), some).fetchall()
    return rows


def check_order(conn: Connection, after: object, ids: Iterable[object]) -> None:
    """Raise if ids do not grow: who goes on after the last of them might go round for ever."""
    for id in ids:
        if not isinstance(id, int) or not isinstance(after, int) or id <= after:
            raise conn.DatabaseError("its rows are not in order")
        after = id


def _read(text: Any, what: str) -> tuple[Any, str]:
    """Return a stored value, or None and the reason."""
    try:
        return from_json(text, what), ""
    except Unreadable as exc:
        return None, str(exc)


def as_dict(
    path: str, name: str, status: str, updated: float, result: Any, args: Any, *more: Any
) -> dict[str, Any]:
    """Return an evaluation as from `load_evals`, of the columns of a row behind its id."""
    error, attempt, losses, worker, started, stopped = more
    what = f"of evaluation {name!r} of {path}"
    try:
        value, given = from_json(result, f"the result {what}"), from_json(args, f"the arguments {what}")
    except Unreadable:  # it costs this evaluation, and not the others
        value, why_no_value = _read(result, f"the result {what}")
        given, why_not_given = _read(args, f"the arguments {what}")
        error = "\n".join(filter(None, [(error or "").rstrip("\n"), why_no_value, why_not_given]))
    return {
        "name": name,
        "status": status,
        "updated": updated,
        "result": value,
        "args": given,
        "error": error,
        "attempt": attempt,
        "losses": losses,
        "worker": worker,
        "started": started,
        "stopped": stopped,
    }


def count_evals(evals_fname: Name) -> dict[str, int]:
    """Return the number of evaluations by status, all four of them, atomically.

    Raises
    ------
    FileNotFoundError, SpevalError
        As from `load_evals`.
    """
    db = existing(evals_fname)
    with Signals(), db.read() as conn:
        return count_surely(db, conn)


LEFT = """
    SELECT EXISTS (SELECT 1 FROM evals WHERE status = 'pending'),
        EXISTS (SELECT 1 FROM evals WHERE status = 'in_progress')"""


def left(conn: Connection) -> tuple[bool, bool]:
    """Tell whether any evaluations are pending, and whether any are in progress."""
    ((pending, in_progress),) = conn.execute(LEFT).fetchall()
    return bool(pending), bool(in_progress)


def unfinished(counts: dict[str, int]) -> int:
    return counts["pending"] + counts["in_progress"]


def count_surely(db: Database, conn: Connection) -> dict[str, int]:
    """Count, and see that no damaged index tells otherwise: a user might take that for the truth."""
    numbers = count(db, conn)
    if (numbers["pending"] > 0, numbers["in_progress"] > 0) != left(conn):
        raise conn.DatabaseError("its indexes are not right")
    return numbers


LARGEST_SEARCH = f"""
    SELECT size, fingerprint FROM spaces WHERE fingerprint LIKE '{ADAPTIVE} %'
    ORDER BY size DESC, added DESC LIMIT 1"""


def search_of(conn: Connection) -> tuple[int, str]:
    """Return how many evaluations the largest adaptive space is to make, and what it is after."""
    found = conn.execute(LARGEST_SEARCH).fetchall()
    return (found[0][0], str(found[0][1])[len(ADAPTIVE) + 1 :]) if found else (0, "")


def count_all(db: Database, conn: Connection) -> dict[str, int]:
    """Count; what an adaptive space has yet to suggest is pending too."""
    numbers = count_surely(db, conn)
    numbers["pending"] += max(search_of(conn)[0] - sum(numbers.values()), 0)
    return numbers


# A count(*) by itself counts pages' worth at a time; with anything beside it, or a WHERE, row by row.
COUNT = """
    SELECT (SELECT count(*) FROM evals), (SELECT max(id) FROM evals),
        (SELECT count(*) FROM evals WHERE status = 'in_progress'),
        (SELECT count(*) FROM evals WHERE status = 'failed')"""
SCAN = "/* SELECT set_config('enable_seqscan', 'on', true) */"  # which counts all in half the time there
COUNT_PENDING = "SELECT count(*) FROM evals WHERE status = 'pending' AND id <= :id"
COUNT_BY_HAND = "SELECT count(*) FROM evals WHERE attempt = 0 AND status <> 'pending' AND id > :id"
IS_FRESH = "SELECT 1 FROM evals WHERE id = :id AND attempt = 0 AND status || '' = 'pending'"


def count(db: Database, conn: Connection) -> dict[str, int]:
    """Return the number of evaluations by status, without a look at each: that takes 40 ms for a million.

    Where evaluations are claimed for the first time in the order of their ids. Then behind some id all are
    fresh, but for those that somebody changed by hand, and there are as many as there are ids.
    """
    conn.execute(SCAN)
    ((total, last, in_progress, failed),) = conn.execute(COUNT).fetchall()
    fresh = first_fresh(db, conn, total, last or 0)
    ((pending,),) = conn.execute(COUNT_PENDING, {"id": fresh - 1}).fetchall()
    ((by_hand,),) = conn.execute(COUNT_BY_HAND, {"id": fresh - 1}).fetchall()
    pending += (last or 0) + 1 - fresh - by_hand
    return dict(zip(STATUSES, (pending, in_progress, total - pending - in_progress - failed, failed)))


def first_fresh(db: Database, conn: Connection, total: int, last: int) -> int:
    """Return the id from which on nothing was ever claimed."""
    reached, fresh = 0, last
    if not db.serial or not conn.execute(IS_FRESH, {"id": last}).fetchall():
        reached, fresh = last, last + 1
    while total == last and reached + 1 < fresh:  # else rows were deleted, and ids prove nothing
        middle = (reached + fresh) // 2
        if conn.execute(IS_FRESH, {"id": middle}).fetchall():
            fresh = middle
        else:
            reached = middle
    return fresh


LOOKUP = "SELECT name, id, args FROM evals /* NATURAL JOIN names */ WHERE /* names. */ name IN ({})"


def not_stored(db: Database, conn: Connection, space: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the evaluations that are not in the database; the others must be as they are there."""
    given = iter(space)
    while some := dict(itertools.islice(given, SOME)):
        stored = look_up(conn, list(some))
        for name, args in some.items():
            if name not in stored:
                yield name, args
            elif stored[name][1] != args:
                was = from_json(stored[name][1], f"the arguments of evaluation {name!r} of {db.path}")
                now = from_json(args, f"the arguments of evaluation {name!r}")
                if not _are_same(was, now):
                    raise SpaceMismatch(db.path, name, was, now)


def look_up(conn: Connection, names: list[str]) -> dict[str, tuple[int, str]]:
    """Return id and arguments of those evaluations that there are."""
    found: dict[str, tuple[int, str]] = {}
    for first in range(0, len(names), SOME):
        some = names[first : first + SOME]
        rows = conn.execute(LOOKUP.format(", ".join("?" * len(some))), some).fetchall()
        found.update((name, (id, args)) for name, id, args in rows)
    return found


def _are_same(was: Any, given: Any) -> bool:
    """Compare as JSON: so 1 is not True, and NaN is NaN."""
    return json.dumps(was, sort_keys=True) == json.dumps(given, sort_keys=True)
