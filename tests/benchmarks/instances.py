"""What the processes of the measurements do: ``python instances.py NAME ARGUMENT ...``.

Each function is one kind of process; what it returns is printed as JSON, in the last line. Times are of
the monotonic clock, which all processes of a machine share. PYTHONPATH says which speval it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sqlite3
import sys
import time
from resource import RUSAGE_SELF, getrusage
from typing import Any

import speval

BOUND = 600  # seconds after which a process ends, whatever has become of the one that started it


def space(size: str) -> list[dict[str, float]]:
    return [{"x": i, "y": i / 2} for i in range(int(size))]


def evaluate(path: str, size: str, seconds: str = "") -> list[float]:
    """Evaluate no-ops, or sleep, until nothing is left or SIGINT comes; return when each was called."""
    called: list[float] = []

    def func(args: Any) -> None:
        called.append(time.monotonic())
        if len(called) == 1:
            print("started", flush=True)
        if seconds:
            time.sleep(float(seconds))

    with contextlib.suppress(KeyboardInterrupt):
        speval.speval(func, space(size), path)
    return called


def floor(path: str, opening: str = "") -> list[float]:
    """Do the same with nothing but sqlite3, by one connection or by one for each transaction."""
    from speval.speval import CLAIM, COMPLETE, FIND_PENDING

    conn, facts = _connect(path), {}
    called: list[float] = []
    while facts or not called:
        if opening:
            conn.close()
            conn = _connect(path)
        now = time.time()
        conn.execute("BEGIN IMMEDIATE")
        if facts:
            conn.execute(COMPLETE, {**facts, "now": now, "started": now, "result": "null", "error": None})
        facts = {}
        for id, _, _, attempt, _ in conn.execute(FIND_PENDING, {"room": 1}).fetchall():
            facts = {"id": id, "attempt": attempt, "worker": 1}
            conn.execute(CLAIM, {**facts, "now": now})
        conn.execute("COMMIT")
        called.append(time.monotonic())
    return called[:-1]


def _connect(path: str) -> sqlite3.Connection:
    conn = sqlite3.connect(path, isolation_level=None)
    conn.executescript("PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = FULL")
    return conn


def hold(path: str) -> None:
    """Say when the one evaluation is called; do not come back from its first attempt."""

    def func(args: Any) -> None:
        print(time.monotonic(), flush=True)
        if speval.current_eval()["attempt"] == 1:
            time.sleep(BOUND)

    print("started", flush=True)
    speval.speval(func, [0], path)


def enter(path: str, size: str) -> tuple[float, float]:
    """Populate, or start on a finished sweep, and evaluate nothing; return when that began and ended."""

    def func(args: Any) -> None:
        raise KeyboardInterrupt

    given, began = space(size), time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        speval.speval(func, given, path)
    return began, time.monotonic()


def write(path: str) -> list[tuple[float, float]]:
    """Write small transactions until SIGINT comes; return when each began and ended."""
    from speval.speval import Database

    db, spans = Database(path), []
    print("started", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            with db.write() as conn:
                conn.execute("UPDATE evals SET updated = :now WHERE id = 1", {"now": time.time()})
            spans.append((began, time.monotonic()))
    return spans


def read(path: str) -> tuple[float, float, int, int]:
    """Read all; return when that began and ended, the number of rows and the growth of memory in KiB."""
    before, began = getrusage(RUSAGE_SELF).ru_maxrss, time.monotonic()
    rows = sum(1 for _ in speval.iter_evals(path))
    return began, time.monotonic(), rows, getrusage(RUSAGE_SELF).ru_maxrss - before


def count(path: str) -> list[float]:
    """Count 15 times; return the seconds of each."""
    times = [time.monotonic()]
    for _ in range(15):
        speval.count_evals(path)
        times.append(time.monotonic())
    return [after - before for before, after in zip(times, times[1:])]


if __name__ == "__main__":
    signal.alarm(BOUND)
    logging.getLogger("speval").setLevel(logging.ERROR)  # it would warn of each kill
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
