"""What the processes of the measurements do: ``python instances.py NAME ARGUMENT ...``.

Each function is one kind of process; what it returns is printed as JSON, in the last line. Times are of
the monotonic clock, which all processes of a machine share. PYTHONPATH says which speval it is.
"""

from __future__ import annotations

import contextlib
import hashlib  # noqa: F401 - so that no process imports it when all are to go
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import tempfile  # noqa: F401 - the same
import time
from collections.abc import Callable, Iterator
from resource import RUSAGE_SELF, getrusage
from typing import Any

import speval

BOUND = 900  # seconds after which a process ends, whatever has become of the one that started it


def space(size: str) -> Iterator[dict[str, float]]:
    return ({"x": i, "y": i / 2} for i in range(int(size)))


def ready() -> None:
    """Say that everything is imported, and wait until all processes are to go."""
    print("ready", flush=True)
    sys.stdin.readline()


def function(kind: str, amount: str = "0") -> Callable[[Any], Any]:
    """Return a function that does nothing, sleeps, computes, or returns a text of a size."""
    if kind == "sleep":
        return lambda args: time.sleep(float(amount))
    if kind == "given":
        return time.sleep
    if kind == "spin":
        return lambda args: spin(int(amount))
    if kind == "text":
        return lambda args: "x" * int(amount)
    return lambda args: None


def spin(number: int) -> None:
    """Compute for a time that is the same in every process, which that of a loop in Python is not."""
    pow(3, 1 << number, (1 << 4423) - 1)


def enter(path: str, size: str, kind: str = "", amount: str = "") -> tuple[float, float, int]:
    """Populate, or start on a finished sweep, and evaluate nothing; return begin, end, memory in KiB."""

    def func(args: Any) -> None:
        raise KeyboardInterrupt

    evals: Any = space(size)
    if kind == "range":
        evals = range(int(size))
    if kind == "text":
        evals = ("x" * int(amount) for _ in range(int(size)))
    if kind == "uniform":
        evals = [random.Random(i).uniform(0.005, 0.05) for i in range(int(size))]
    before, began = getrusage(RUSAGE_SELF).ru_maxrss, time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        speval.speval(func, evals, path)
    return began, time.monotonic(), getrusage(RUSAGE_SELF).ru_maxrss - before


def work(path: str, kind: str = "", amount: str = "", attempts: str = "3") -> tuple[float, float, int]:
    """Evaluate what is stored; return when the last call ended, when all was done, and bytes written."""
    func, last = function(kind, amount), [0.0]

    def noting(args: Any) -> None:
        func(args)
        last[0] = time.monotonic()

    if path.startswith("postgresql:"):
        from speval.database import postgres  # noqa: F401
    ready()
    speval.speval(noting if kind == "given" else func, [], path, max_attempts=int(attempts))
    return last[0], time.monotonic(), _written()


def _written() -> int:
    with open("/proc/self/io") as lines:
        return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def start(path: str, size: str, kind: str = "", amount: str = "") -> tuple[float, float]:
    """Evaluate a space that each instance gives as a whole, from the database's beginning on."""
    func = function(kind, amount)
    ready()
    speval.speval(func, range(int(size)), path)
    return 0.0, time.monotonic()


def race(path: str, size: str, mode: str, kind: str = "", amount: str = "") -> tuple[float, float]:
    """Do what `start` does with nothing but sqlite3: populate if the table is empty, then go in batches."""
    func, room = function(kind, amount), 200 if kind else 1000
    ready()
    conn = sqlite3.connect(path, isolation_level=None, timeout=60)
    for _ in range(10_000):
        with contextlib.suppress(sqlite3.OperationalError):  # another one sets it: that waits for no lock
            conn.execute(f"PRAGMA journal_mode = {mode}")
            break
        time.sleep(0.001)
    conn.execute("PRAGMA synchronous = FULL")
    conn.execute("BEGIN IMMEDIATE")
    conn.execute(
        "CREATE TABLE IF NOT EXISTS evals (id INTEGER PRIMARY KEY, name TEXT UNIQUE, status TEXT,"
        " updated REAL, started REAL, args TEXT, result TEXT, worker INTEGER, attempt INTEGER DEFAULT 0)"
    )
    conn.execute("CREATE INDEX IF NOT EXISTS pending ON evals (id) WHERE status = 'pending'")
    if not conn.execute("SELECT 1 FROM evals LIMIT 1").fetchall():
        rows = ((str(i), time.time(), json.dumps(i)) for i in range(int(size)))
        conn.executemany("INSERT INTO evals (name, status, updated, args) VALUES (?, 'pending', ?, ?)", rows)
    conn.execute("COMMIT")
    claimed: list[Any] = []
    facts = {"room": room, "worker": os.getpid()}
    while True:
        done = [(json.dumps(func(json.loads(args))), time.time(), id) for id, args in claimed]
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(STORE, done)
        claimed = conn.execute(NEXT, facts).fetchall()
        if claimed:
            conn.execute(TAKE, {**facts, "now": time.time(), "last": claimed[-1][0]})
        conn.execute("COMMIT")
        if not claimed:
            return 0.0, time.monotonic()


def bare(number: str, kind: str, amount: str = "") -> tuple[float, float, int]:
    """Call a function, and store nothing."""
    func = function(kind, amount)
    ready()
    for _ in range(int(number)):
        func(None)
    return time.monotonic(), time.monotonic(), 0


def floor(path: str, room: str = "1000", kind: str = "", amount: str = "") -> tuple[float, float, int]:
    """Do what `work` does with nothing but sqlite3, `room` evaluations a transaction, by one process."""
    func, facts = function(kind, amount), {"room": int(room), "worker": 1}
    conn = sqlite3.connect(path, isolation_level=None)
    conn.executescript("PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = FULL")
    rows: list[Any] = []
    ready()
    while True:
        done = [(json.dumps(func(json.loads(args))), time.time(), id) for id, args in rows]
        conn.execute("BEGIN IMMEDIATE")
        conn.executemany(STORE, done)
        rows = conn.execute(NEXT, facts).fetchall()
        if rows:
            conn.execute(TAKE, {**facts, "now": time.time(), "last": rows[-1][0]})
        conn.execute("COMMIT")
        if not rows:
            return 0.0, time.monotonic(), _written()


STORE = "UPDATE evals SET status = 'completed', result = ?, updated = ? WHERE id = ?"
NEXT = "SELECT id, args FROM evals WHERE status = 'pending' ORDER BY id LIMIT :room"
TAKE = """
    UPDATE evals SET status = 'in_progress', attempt = attempt + 1, worker = :worker, started = :now,
        updated = :now
    WHERE status = 'pending' AND id <= :last"""


def insert(path: str, size: str) -> tuple[float, float]:
    """Insert what `enter` does, into the same tables, with nothing but sqlite3 and json."""
    speval.speval(abs, [], path)
    conn, began = sqlite3.connect(path, isolation_level=None), time.monotonic()
    conn.executescript("PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = FULL; BEGIN IMMEDIATE")
    rows = ((str(i), began, json.dumps(args)) for i, args in enumerate(space(size)))
    conn.executemany("INSERT INTO evals (name, status, updated, args) VALUES (?, 'pending', ?, ?)", rows)
    conn.execute("COMMIT")
    return began, time.monotonic()


def evaluate(path: str, number: str = "") -> list[float]:
    """Evaluate no-ops until all or `number` are done, or SIGINT comes; return when each was called."""
    called: list[float] = []

    def func(args: Any) -> None:
        called.append(time.monotonic())
        if len(called) == 1:
            print("started", flush=True)
        if len(called) == most:
            raise KeyboardInterrupt

    most = int(number or 0) + 1 if number else 0
    with contextlib.suppress(KeyboardInterrupt):
        speval.speval(func, [], path)
    return called if not number else [called[0], called[-1]]


def curve(seed: str, number: int) -> list[float]:
    """Return the losses of a training by epoch: a power law, quick or slow, with a little noise."""
    rng = random.Random(f"curve {seed} {number}")
    last, power = 0.05 + 0.5 * rng.random() ** 1.5, rng.uniform(0.3, 1.2)
    losses = [last + (1 - last) * (1 + epoch) ** -power for epoch in range(EPOCHS)]
    return [loss + rng.gauss(0, 0.005) for loss in losses]


EPOCHS, EPOCH = 100, 0.02  # and seconds that one takes


def train(path: str, seed: str, number: str, rule: str) -> tuple[float, float]:
    """Go through simulated trainings, and stop what is not promising by a rule."""
    from speval.search import halving, median

    def func(which: int) -> float:
        loss = 0.0
        for epoch, loss in enumerate(curve(seed, which)):
            time.sleep(EPOCH)
            if speval.report(loss, epoch):
                break
        return loss

    ready()
    began, stop = time.monotonic(), {"median": median(), "halving": halving(), "none": None}[rule]
    speval.speval(func, range(int(number)), path, stop=stop)
    return began, time.monotonic()


def reports(path: str, number: str) -> tuple[float, float]:
    """Report so many times in a second, but for what that takes; return how long it was and took."""
    took = 0.0

    def func(args: Any) -> None:
        nonlocal took
        for step in range(int(number)):
            began = time.monotonic()
            speval.report(0.5, step)
            took += time.monotonic() - began
            time.sleep(max(0.0, start + (step + 1) / int(number) - time.monotonic()))

    start = time.monotonic()
    speval.speval(func, [0], path)
    return time.monotonic() - start, took


def trace(path: str, every: str) -> list[float]:
    """Evaluate no-ops; return when each so many-th was called."""
    called: list[float] = []
    count = 0

    def func(args: Any) -> None:
        nonlocal count
        if count % int(every) == 0:
            called.append(time.monotonic())
        count += 1

    speval.speval(func, [], path)
    return called


def hold(path: str) -> None:
    """Say when the one evaluation is called; do not come back from its first attempt."""

    def func(args: Any) -> None:
        print(time.monotonic(), flush=True)
        if speval.current_eval()["attempt"] == 1:
            time.sleep(BOUND)

    print("started", flush=True)
    speval.speval(func, [0], path)


def sweep(path: str) -> None:
    speval.speval(lambda args: time.sleep(2), range(100), path)


def write(path: str) -> list[tuple[float, float]]:
    """Write small transactions until SIGINT comes; return when each began and ended."""
    from speval.database import database

    db, spans = database(path), []
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    logging.getLogger("speval").setLevel(logging.ERROR)  # it would warn of each kill
    answer = json.dumps(globals()[sys.argv[1]](*sys.argv[2:]))
    print(answer, flush=True)
    os._exit(0)  # nothing of the interpreter's end is measured
