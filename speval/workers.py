"""Who works on a database, and who of them is lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .database import Connection, Database
from .errors import REPLACED, SpevalError
from .process.machine import host
from .process.signals import Signals
from .reading import count_all, left

__all__ = [
    "DIED",
    "NOBODY",
    "STALLED",
    "UNKNOWN",
    "Lookout",
    "Loss",
    "check_in",
    "has_ended",
    "held",
    "how_far",
    "live",
    "mark_all_ended",
    "mark_dead",
    "mark_ended",
    "row",
    "tell",
]

JOIN = """
    INSERT INTO workers (id, host, pid, started, code, fate)
    SELECT :worker, :host, :pid, :now, :code, :fate
    WHERE NOT EXISTS (SELECT 1 FROM workers WHERE id = :worker)"""
# Who has locked a worker's row lets nobody else change what that holds. Where statements are sent in one go,
# and there is no such row, this one is an error, and what was sent behind it is not done.
LOOKUP_WORKER = """
    SELECT /* 1 / */ (SELECT count(*) FROM workers WHERE id = :worker),
        (SELECT id FROM workers WHERE id = :worker /* FOR UPDATE */)"""
COME_BACK = "UPDATE workers SET ended = NULL WHERE id = :worker AND ended IS NOT NULL"
HOLD_WORKER = "SELECT 1 FROM workers WHERE id = :worker /* FOR UPDATE SKIP LOCKED */"
LIVE_WORKERS = "SELECT id, host, pid, started, fate FROM workers WHERE ended IS NULL ORDER BY started"
HAS_ENDED = "SELECT ended FROM workers WHERE id = :worker"
MARK_ENDED = "UPDATE workers SET ended = :now WHERE id = :worker"
MARK_ALL_ENDED = """
    UPDATE workers SET ended = :now WHERE ended IS NULL
        AND NOT EXISTS (SELECT 1 FROM evals WHERE status = 'pending')
        AND NOT EXISTS (SELECT 1 FROM evals WHERE status = 'in_progress')
        /* AND id IN (SELECT id FROM workers WHERE ended IS NULL FOR UPDATE SKIP LOCKED) */"""
TELL = """
    UPDATE workers SET fate = :fate WHERE fate = '' AND ended IS NULL AND pid = :pid AND host = :host"""
OLDEST_CLAIM = """
    SELECT id, attempt FROM evals WHERE status = 'in_progress' AND worker = :worker ORDER BY id LIMIT 1"""
# `held` is joined so that SQLite reads the status from the table. In a plain WHERE it trusts the index.
ARE_REALLY_HELD = """
    SELECT 1 FROM evals JOIN evals AS held ON held.id = evals.id
    WHERE evals.status = 'in_progress' AND held.status || '' = 'in_progress'
        AND (:ours = 1 OR coalesce(evals.worker, -1) <> :worker) LIMIT 1"""
UNKNOWN_HOLDERS = """
    SELECT DISTINCT coalesce(worker, -1) FROM evals WHERE status = 'in_progress'
        AND (worker IS NULL OR worker NOT IN (SELECT id FROM workers WHERE ended IS NULL))"""

NOBODY = -1  # who holds claims that name none
DIED, STALLED, UNKNOWN = "died", "ran past the timeout", "is unknown"
QUICKLY = 0.1  # seconds, at most, between two looks of a waiting worker that has seen something
PATIENCE = 1.0  # seconds in which who watched a process that has died says how


class Loss(NamedTuple):
    """A worker whose claims are to be taken from it, and why; `how`, as far as that is known.

    `oldest` is its oldest claim, if it is lost only as long as that is the same.
    """

    worker: int
    who: str
    why: str
    how: str
    oldest: Any = None

    @property
    def has_claims(self) -> bool:
        """The worker was found by what it holds."""
        return self.why == UNKNOWN or bool(self.oldest)


def row(worker: int, code: str | None, watched: bool) -> dict[str, Any]:
    """Return what is entered of a worker of this process; is it `watched` by who tells how it died?"""
    fate = "" if watched else None
    return {
        "worker": worker,
        "host": host(),
        "pid": os.getpid(),
        "now": time.time(),
        "code": code,
        "fate": fate,
    }


def check_in(db: Database, conn: Connection, row: dict[str, Any], joined: bool) -> None:
    """Enter a worker, once; after that it has to be there, or the database is another one."""
    prepared = db.is_prepared(conn)
    if prepared and not joined:
        conn.execute(JOIN, row)
        return
    found = conn.execute(LOOKUP_WORKER, row) if prepared else None
    if found is None or (db.serial and found.fetchall()[0][0] == 0):
        raise SpevalError(REPLACED.format(path=db.path))
    conn.execute(COME_BACK, row)  # if somebody took us for dead


def mark_ended(conn: Connection, worker: int) -> None:
    conn.execute(MARK_ENDED, {"worker": worker, "now": time.time()})


def mark_dead(db: Database, conn: Connection, worker: int) -> None:
    """Mark a worker as ended that does not live; raise an error if the list of live workers still has it."""
    mark_ended(conn, worker)
    if db.serial and worker in [other for other, *_ in live(conn)]:
        raise conn.DatabaseError(
            "its table of workers is not right"
        )  # or each look would find the worker again


def held(db: Database, conn: Connection, lost: Iterable[Loss]) -> list[Loss]:
    """Return those that are lost still, now that nobody can change what they hold."""
    lost = [
        loss
        for loss in lost
        if loss.why == UNKNOWN or db.serial or conn.execute(HOLD_WORKER, {"worker": loss.worker}).fetchall()
    ]
    dead = db.locks.dead(conn, [loss.worker for loss in lost if loss.why == DIED], surely=False)
    return [
        loss
        for loss in lost
        if (loss.why != DIED or loss.worker in dead)
        and (loss.oldest is None or oldest_claim(conn, loss.worker) == loss.oldest)
    ]


def oldest_claim(conn: Connection, worker: int) -> list[Any]:
    return conn.execute(OLDEST_CLAIM, {"worker": worker}).fetchall()


def mark_all_ended(conn: Connection) -> None:
    """When everything is finished, mark all workers: the others only have to see that."""
    conn.execute(MARK_ALL_ENDED, {"now": time.time()})


def has_ended(conn: Connection, worker: int) -> bool:
    return conn.execute(HAS_ENDED, {"worker": worker}).fetchall() not in ([], [(None,)])


def tell(db: Database, pid: int, fate: str) -> None:
    """Say how a process of this host died, for those who reclaim what it held."""
    with contextlib.suppress(SpevalError, OSError), db.write() as conn:
        if db.is_prepared(conn):
            conn.execute(TELL, {"pid": pid, "host": host(), "fate": fate})


def live(conn: Connection) -> list[tuple[int, Any, Any, Any, Any]]:
    """Return id, host, process, start (unix time, s) and fate of those that have not said that they end."""
    rows: list[tuple[int, Any, Any, Any, Any]] = conn.execute(LIVE_WORKERS).fetchall()
    return rows


def how_far(db: Database) -> tuple[dict[str, int], int]:
    """Return the number of evaluations by status, and of workers that live; do not wait to know it.

    What an adaptive space has yet to suggest is pending.
    """
    with Signals(), db.glance() as conn:
        workers = [worker for worker, *_ in live(conn)]
        return count_all(db, conn), len(workers) - len(db.locks.dead(conn, workers, surely=False))


class Lookout:
    """What a worker sees of the others: who is dead, and who is stalled.

    Stalled: the oldest claim has been the same for `timeout` seconds of our own monotonic clock, since we
    first saw it. Clocks of other hosts may say anything.
    """

    def __init__(self, db: Database, worker: int, timeout: float | None, clock: Callable[[], float]) -> None:
        self._db = db
        self._worker = worker
        self._timeout = timeout
        self._clock = clock
        self._seen: dict[int, tuple[object, float]] = {}  # worker: its oldest claim, first seen then
        self.patience = PATIENCE
        self.pause = 0.0  # seconds before the next look of a waiting worker; 0 again when it has claimed
        self._looked = -float("inf")
        self._others = 0
        self._turn = 0.0  # seconds after a look for which it is the turn of the others
        self._untold: dict[int, float] = {}  # worker: first seen dead then, and nobody has said how it died

    @property
    def waits(self) -> bool:
        """Somebody is dead, but who watched him may yet say how he died; or is dead if he stays away."""
        return bool(self._untold) or self._db.locks.doubt

    def is_due(self, pause: float = 0.0) -> bool:
        """Tell whether to look, `pause` seconds after the last time or later.

        All together look after one another only so often, however many they are.
        """
        return self.waits or self._clock() - self._looked >= max(pause, self._turn)

    def hurry(self) -> None:
        """Have a look as soon as one is due at all."""
        self._looked = -float("inf")

    def rest(self, took: float) -> float:
        """Return how long to wait before a look, longer each time; the last `took` so many seconds."""
        pause = self.pause
        # Of a waiting worker's looks, a fifth is after the others. And most of the time nobody looks.
        limit = QUICKLY if self.waits else max(self._db.poll, self._others * self._db.watch / 5)
        self.pause = min(2 * pause or 0.02, limit)
        return max(pause, 2 * took)

    def lost(self, conn: Connection) -> list[Loss]:
        pending, in_progress = left(conn)
        settled = self._db.locks.are_settled(in_progress)
        seen, self._seen = self._seen, {}
        untold, self._untold = self._untold, {}
        lost = []
        others = [row for row in live(conn) if row[0] != self._worker]
        self._others = len(others)
        self._looked = self._clock()
        self._turn = self._db.watch * self._others * (0.5 + os.urandom(1)[0] / 256)
        dead = self._db.locks.dead(conn, [worker for worker, *_ in others])
        for worker, where, pid, _, fate in others:
            if worker in dead:
                if settled and self._is_told(worker, fate, untold):
                    lost.append(Loss(worker, f"process {pid} on {where}", DIED, str(fate or DIED)))
            elif self._timeout is not None and self._is_stalled(conn, worker, seen):
                oldest = self._seen[worker][0]
                lost.append(Loss(worker, f"process {pid} on {where}", STALLED, STALLED, oldest))
        if not pending:
            unknown = conn.execute(UNKNOWN_HOLDERS).fetchall()
            lost += [Loss(worker, f"worker {worker}", UNKNOWN, UNKNOWN) for (worker,) in unknown]
        if self._db.serial and in_progress and not pending and not lost:
            self._check_holders(conn)
        return lost

    def _check_holders(self, conn: Connection) -> None:
        """Raise an error if only an index says that evaluations are in progress.

        Otherwise a worker would wait for ever. On a server this proves nothing, because other workers
        change the table between two statements.
        """
        facts = {"worker": self._worker, "ours": int(bool(oldest_claim(conn, self._worker)))}
        if not conn.execute(ARE_REALLY_HELD, facts).fetchall():
            raise conn.DatabaseError("its index of evaluations in progress is not right")

    def _is_told(self, worker: int, fate: object, untold: dict[int, float]) -> bool:
        """Tell whether it is known how a worker died, or nobody will say so."""
        if fate != "":
            return True
        now = self._clock()
        since = self._untold[worker] = untold.get(worker, now)  # until it is marked as ended
        return now - since >= self.patience

    def _is_stalled(self, conn: Connection, worker: int, seen: dict[int, tuple[object, float]]) -> bool:
        now = self._clock()
        oldest = oldest_claim(conn, worker)
        before, since = seen.get(worker, (None, now))
        self._seen[worker] = oldest, since if oldest == before else now
        return bool(oldest) and self._timeout is not None and now - self._seen[worker][1] >= self._timeout
