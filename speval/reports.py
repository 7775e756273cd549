"""What evaluations report while they run: stored with little effort, and compared with what others had."""

from __future__ import annotations

import collections
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from .database import Connection, Database
from .errors import SpevalError
from .process.signals import Signals
from .workers import check_in

__all__ = ["Reports", "Rule", "delete", "store"]

# Not after a reset; but what was lost may come late, as a result may.
STORE_REPORT = """
    INSERT INTO reports (id, step, value)
    SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM evals WHERE evals.id = ? AND ? > reset)
    ON CONFLICT (id, step) DO UPDATE SET value = excluded.value"""
DELETE_REPORTS = """
    DELETE FROM reports WHERE id BETWEEN :first AND :last AND EXISTS (SELECT 1 FROM evals
        WHERE evals.id = reports.id AND (CAST(:status AS TEXT) IS NULL OR status = :status))"""
VALUES_AT = "SELECT value FROM reports WHERE step = :step AND id <> :id"
ASKED = 8  # decisions, at most, that wait for a transaction
SHARE = 0.05  # of its time, that an evaluation may spend on transactions for what it reports


class Rule(Protocol):
    """When to stop an evaluation that is not promising. Of values, the smallest is best, or the largest."""

    maximize: bool

    def decides_at(self, step: int, before: int) -> bool:
        """Tell whether to compare at this step; `before` is that of the last report, -1 if there is none."""

    def stops(self, last: float, best: float, others: Sequence[float]) -> bool:
        """Tell whether to stop, by the last value and the best so far, and what others had at this step."""


class Due:
    """When the next transaction of its kind may come, `at`, by what those before have taken on average."""

    def __init__(self) -> None:
        self.at = -math.inf
        self._took = 0.0

    def learn(self, began: float, ended: float) -> None:
        self._took += (ended - began - self._took) / 4
        self.at = ended + self._took / SHARE


class Asked(NamedTuple):
    """A report by which to decide: the step, its value, and the best up to then."""

    step: int
    value: float
    best: float


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
        self._sign = -1.0 if rule is not None and rule.maximize else 1.0
        self._exchanging = exchanging
        self._clock = clock
        self._pid = os.getpid()
        self._new: dict[tuple[int, int, int], float] = {}  # id, attempt and step: value
        self._writes, self._reads = Due(), Due()
        self._claim: Any = None
        self._begin(None)

    def _begin(self, claim: Any) -> None:
        self._claim = claim
        self._step = -1
        self._best = math.nan
        self._asked: collections.deque[Asked] = collections.deque(maxlen=ASKED)  # the last by which to decide
        self._stopped: int | None = None

    def stopped(self, claim: Any) -> int | None:
        """Return the step at which this evaluation was last told to stop, None if it was not."""
        return self._stopped if claim is self._claim else None

    def add(self, claim: Any, value: float, step: int | None) -> bool:
        """Take in a report of the evaluation that runs; tell whether it is to stop."""
        if os.getpid() != self._pid:  # in a child that `func` has forked
            return False
        if claim is not self._claim:
            self._begin(claim)
        before, self._step = self._step, self._step + 1 if step is None else step
        self._new[claim.id, claim.attempt, self._step] = value
        if math.isnan(self._best) or self._sign * value < self._sign * self._best:
            self._best = value
        if self._rule is not None and self._rule.decides_at(self._step, before):
            self._asked.append(Asked(self._step, value, self._best))
        if self._clock() >= (self._reads if self._asked else self._writes).at:
            self._look()
        if self._stopped is not None:
            self._stopped = self._step
        return self._stopped is not None

    def _look(self) -> None:
        """Store what is new, if that is due, and decide what is asked."""
        began, asked = self._clock(), list(self._asked)
        due = self._writes if began >= self._writes.at else self._reads
        with Signals():
            if not self._exchanging.acquire(
                blocking=False
            ):  # the watchdog does it; or a signal's handler reports
                return
            try:
                others = self._store(asked) if due is self._writes else self._seen(asked)
            except SpevalError:  # the worker meets it too, and says so
                return
            finally:
                self._exchanging.release()
                due.learn(began, self._clock())
        self._asked.clear()
        for (_, value, best), values in zip(asked, others):
            if self._rule is not None and self._rule.stops(value, best, values):
                self._stopped = self._step

    def _seen(self, asked: list[Asked]) -> list[list[float]]:
        with self._db.glance() as conn:
            return _others(conn, asked, self._claim.id)

    def _store(self, asked: list[Asked]) -> list[list[float]]:
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
            if self._new.get(key) is value:  # else it was reported anew meanwhile
                del self._new[key]


def _others(conn: Connection, asked: list[Asked], id: int) -> list[list[float]]:
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
