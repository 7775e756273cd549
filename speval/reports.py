"""What evaluations report while they run: stored with little effort, and compared with what others had."""

from __future__ import annotations

import collections
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .database import LAST, Connection, Database
from .errors import SpevalError
from .process.signals import Signals
from .workers import check_in

__all__ = ["Reports", "Rule", "delete", "store"]

# Of the last claim, and not after a reset.
STORE_REPORT = """
    INSERT INTO reports (id, step, value)
    SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM evals WHERE evals.id = ? AND attempt = ? AND attempt > reset)
    ON CONFLICT (id, step) DO UPDATE SET value = excluded.value"""
DELETE_REPORTS = """
    DELETE FROM reports WHERE id BETWEEN :first AND :last AND EXISTS (SELECT 1 FROM evals
        WHERE evals.id = reports.id AND (CAST(:status AS TEXT) IS NULL OR status = :status))"""
VALUES_AT = "SELECT value FROM reports WHERE step = :step AND id <> :id"
ASKED = 8  # decisions, at most, that wait for a transaction
LONG = 1.0  # seconds
SHARE = 0.05  # of its time, that an evaluation may spend on transactions for what it reports


class Rule(Protocol):
    """When to stop an evaluation that is not promising."""

    def decides_at(self, step: int, before: int) -> bool:
        """Tell whether to compare at this step; `before` is that of the last report, -1 if there is none."""

    def stops(self, own: Sequence[float], others: Sequence[float]) -> bool:
        """Tell whether to stop, by its own values up to this step, and what others had there."""


class Due:
    """When the next transaction of its kind may come, `at`, by what those before have taken on average.

    No single wait counts more than `LONG`.
    """

    def __init__(self) -> None:
        self.at = -math.inf
        self._took = 0.0

    def learn(self, began: float, ended: float) -> None:
        self._took += (min(ended - began, LONG) - self._took) / 4
        self.at = ended + self._took / SHARE


class Reports:
    """What the evaluations of a worker have reported, until that is stored.

    Transactions for that alone take little of its time; to read takes less than to write.
    """

    def __init__(
        self,
        db: Database,
        row: dict[str, Any],
        rule: Rule | None,
        exchanging: threading.Lock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._row = row
        self._rule = rule
        self._exchanging = exchanging
        self._clock = clock
        self._pid = os.getpid()
        self._new: dict[tuple[int, int, int], float] = {}  # id, attempt and step: value
        self._writes, self._reads = Due(), Due()
        self.running: Any = None  # the claim of the evaluation that runs
        self._begin(None)

    def _begin(self, claim: Any) -> None:
        self._claim = claim
        self._step = -1
        self._values: list[float] = []  # if there is a rule
        # The last reports by which to decide: step, and how many values there were.
        self._asked: collections.deque[tuple[int, int]] = collections.deque(maxlen=ASKED)
        self._stopped: int | None = None

    def stopped(self, claim: Any) -> int | None:
        """Return the step at which this evaluation was last told to stop, None if it was not."""
        return self._stopped if claim is self._claim else None

    def add(self, claim: Any, value: float, step: int | None) -> bool:
        """Take in a report of the evaluation that runs; tell whether it is to stop."""
        # Not of a thread that an earlier evaluation has left over, nor of a child that `func` has forked.
        if claim is not self.running or os.getpid() != self._pid:
            return False
        if claim is not self._claim:
            self._begin(claim)
        at = min(self._step + 1, LAST) if step is None else step
        before, self._step = self._step, at
        self._new[claim.id, claim.attempt, at] = value
        if self._rule is not None:
            self._values.append(value)
            if self._rule.decides_at(at, before):
                self._asked.append((at, len(self._values)))
        if self._clock() >= (self._reads if self._asked else self._writes).at:
            self._look()
        if self._stopped is not None:
            self._stopped = self._step
        return self._stopped is not None

    def _look(self) -> None:
        """Store what is new, if that is due, and decide what is asked."""
        began, asked = self._clock(), list(self._asked)
        due = self._writes if began >= self._writes.at else self._reads
        try:
            others = self._exchanged(asked, due is self._writes)
            if others is not None:
                self._asked.clear()
                self._decide(asked, others)
        finally:
            due.learn(began, self._clock())

    def _decide(self, asked: list[tuple[int, int]], others: list[list[float]]) -> None:
        for (_, number), values in zip(asked, others):
            if self._rule is not None and self._rule.stops(self._values[:number], values):
                self._stopped = self._step

    def _exchanged(self, asked: list[tuple[int, int]], writes: bool) -> list[list[float]] | None:
        """Return what others had at these steps; None if that cannot be told now."""
        with Signals():
            # The watchdog may be at it; or we are, and a signal's handler reports.
            if not self._exchanging.acquire(blocking=False):
                return None
            try:
                return self._store(asked) if writes else self._seen(asked)
            except SpevalError:  # the worker meets it too, and says so
                return None
            finally:
                self._exchanging.release()

    def _seen(self, asked: list[tuple[int, int]]) -> list[list[float]]:
        with self._db.glance() as conn:
            return _others(conn, asked, self._claim.id)

    def _store(self, asked: list[tuple[int, int]]) -> list[list[float]]:
        new = self.new()
        with self._db.write() as conn:
            check_in(self._db, conn, self._row, True)
            store(conn, new)
            others = _others(conn, asked, self._claim.id)
        self.forget(new)
        return others

    def new(self) -> list[tuple[tuple[int, int, int], float]]:
        return list(self._new.items())

    def forget(self, stored: list[tuple[tuple[int, int, int], float]]) -> None:
        for key, value in stored:
            newer = self._new.pop(key, value)
            if newer is not value:  # it was reported anew meanwhile
                self._new.setdefault(key, newer)


def _others(conn: Connection, asked: list[tuple[int, int]], id: int) -> list[list[float]]:
    """Return, for each step, what the others have reported."""
    found = []
    for step, *_ in asked:
        rows = conn.execute(VALUES_AT, {"step": step, "id": id}).fetchall()
        found.append([math.nan if value is None else value for (value,) in rows])
    return found


def store(conn: Connection, reports: list[tuple[tuple[int, int, int], float]]) -> None:
    rows = [(id, step, value, id, attempt) for (id, attempt, step), value in reports]
    if rows:
        conn.executemany(STORE_REPORT, rows)


def delete(conn: Connection, facts: dict[str, Any]) -> None:
    """Delete what evaluations have reported, from the `first` id to the `last`, of that `status` or all."""
    conn.execute(DELETE_REPORTS, facts)
