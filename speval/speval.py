"""Evaluate a function over a list of arguments, by any number of processes, in one database.

The script is the worker: every instance that is started claims pending evaluations in the database,
evaluates them and stores the results, until nothing is left::

                  claim                complete
        pending --------> in_progress ----------> completed     the first result stays
         ^   ^                 |  |      fail
         |   |_____release_____|  |-------------> failed        func raised, or lost max_attempts times
         |_________reclaim________|                 |
         |______________________reset_______________|           (also from completed, in_progress)

Every claim has a number, its *attempt*, which only grows: it is the token by which a worker that was
presumed dead is told from the one that holds the evaluation now. A result that comes late, of a claim that
was lost, completes the evaluation too, as long as there is no other.

Below, in this order: what may happen to an evaluation, each with its statement, the worker that goes round in
it, and the public functions.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import workers
from .arguments import check
from .database import FIRST, LAST, Connection, Database, Name, database, existing, insist, shown
from .errors import NotWritable, SpevalError, cut, last_line, visible
from .function import code_of, copied_generators, differences, name_of
from .pace import SHARE, Pace
from .process.background import Ticker, notice, weakly
from .process.launcher import announce, counted, head, is_launched, is_used
from .process.machine import command, cpus, process, programs_ended
from .process.signals import Signals
from .reading import CHUNK_SIZE, check_status, count, count_evals, left, look_up, not_stored, unfinished
from .reports import Reports, Rule, delete, store
from .running import Claim, ends_process, known_at_work, running, waiting_for_this
from .space import Adaptive, Space, adaptive, suggestion
from .values import MAX_ERROR, error_of, from_json, refusal_of, to_json
from .workers import DIED, NOBODY, STALLED, Lookout, Loss, how_far

if TYPE_CHECKING:
    from .view.progress import Progress

__all__ = ["reset_evals", "speval"]

log = logging.getLogger("speval")
T = TypeVar("T")

KNOW_SPACE = """
    SELECT 1 FROM spaces
    WHERE fingerprint = :fingerprint AND size = :size AND :number <= (SELECT count(*) FROM evals)"""
KEEP_SPACE = """
    INSERT INTO spaces (fingerprint, size, func, added) VALUES (:fingerprint, :size, :func, :now)"""
ADD_EVAL = """
    /* WITH added AS ( */ INSERT INTO evals (name, status, updated, args) VALUES (?, 'pending', ?, ?)
    /* RETURNING id, name) INSERT INTO names (id, name) SELECT id, name FROM added */"""


def populate(db: Database, space: Space, func: str, code: str | None = None) -> bool:
    """Make sure that the database has the evaluations of `space`; tell whether anything is left to do.

    Atomic: all or none is added. That it was seen is kept with its fingerprint, so that a further instance
    only has to compare that.

    Raises
    ------
    SpaceMismatch
        If an evaluation has other arguments in the database. Nothing is added then.
    """
    known, said = False, []
    if db.exists():
        with Signals(), db.read() as conn:
            known = db.is_prepared(conn) and _is_known(conn, space, space.size)
            said, rest = differences(db, conn, func, code), any(left(conn))
    if not known:
        with Signals(), db.create() as conn:
            new = db.prepare(conn)
            if not _is_known(conn, space, len(space)):
                _add(db, conn, space, func, space if new else not_stored(db, conn, space))
            rest = any(left(conn)) or not _is_known(conn, space, space.size)
    for line in said:
        log.warning("%s", line)
    return rest


def _is_known(conn: Connection, space: Space, number: int) -> bool:
    """Tell whether `space` was seen, and there are so many evaluations."""
    facts = {"fingerprint": space.fingerprint, "size": space.size, "number": number}
    return bool(conn.execute(KNOW_SPACE, facts).fetchall())


def _add(db: Database, conn: Connection, space: Space, func: str, new: Iterable[tuple[str, str]]) -> None:
    now = time.time() + db.ahead
    with notice(lambda: f"adding to {db.path}, {space.position} of {space.size} evaluations so far"):
        conn.executemany(ADD_EVAL, ((name, now, args) for name, args in new))
    conn.execute(KEEP_SPACE, {"fingerprint": space.fingerprint, "size": space.size, "func": func, "now": now})


COUNT_EVALS = "SELECT count(*) FROM evals"
IS_ADDED = "SELECT 1 FROM evals WHERE id > :after AND args = :args"


def add(db: Database, conn: Connection, args: str, after: int, size: int) -> bool:
    """Add an evaluation that was suggested, unless there are `size`, or its like has come since that id."""
    ((number,),) = conn.execute(COUNT_EVALS).fetchall()
    if number >= size or conn.execute(IS_ADDED, {"after": after, "args": args}).fetchall():
        return False
    while look_up(conn, [str(number)]):  # where others have been given names, or were deleted
        number += 1
    conn.executemany(ADD_EVAL, [(str(number), time.time() + db.ahead, args)])
    return True


class Outcome(NamedTuple):
    """How an evaluation ended: a result, as JSON, or an error; and when it was called and came back.

    `stopped`: at which step, if it was told to stop.
    """

    claim: Claim
    result: str | None
    error: str | None
    started: float
    ended: float
    stopped: int | None = None


# The WHERE of a partial index has to stand here letter for letter, or SQLite scans the table. It believes
# the index then; with the CAST it looks at the row too.
FIND_PENDING = """
    SELECT id, name, args, attempt + 1, losses FROM evals WHERE status = 'pending' AND id >= :first
    ORDER BY id LIMIT :room /* FOR UPDATE SKIP LOCKED */"""
CLAIMED = "status = 'in_progress', attempt = attempt + 1, worker = :worker, started = :now, updated = :now"
CLAIM = f"""
    UPDATE evals SET {CLAIMED} WHERE status = 'pending' AND id <= :last
        AND CAST(status AS TEXT) = 'pending' AND attempt >= reset /* AND id = ANY (:ids) */"""
FIND_AND_CLAIM = f"""
    WITH found AS ({FIND_PENDING.replace(":room", "1")})
    UPDATE evals SET {CLAIMED} FROM found WHERE evals.id = found.id
    RETURNING evals.id, evals.name, evals.args, attempt"""
FIRST_PENDING = """
    SELECT attempt, (SELECT max(id) FROM evals) - id + 1, (SELECT count(*) FROM workers WHERE ended IS NULL)
    FROM evals WHERE status = 'pending' AND id >= :first ORDER BY id LIMIT 1"""
COUNT_SOME_PENDING = """
    SELECT count(*) FROM (SELECT 1 FROM evals WHERE status = 'pending' LIMIT :room) AS pending"""


def claim(
    db: Database, conn: Connection, worker: int, room: int, first: int = FIRST, least: int = 1
) -> Iterable[Any]:
    """Claim up to `room` pending evaluations, the first from that id on; one that was lost before alone.

    Fewer when little is left for each worker, but not fewer than `least`. Return rows, of which a `Claim`
    each is made after the transaction.
    """
    claims: list[tuple[Any, ...]] = []
    size = 0
    room = min(room, _share(conn, room, first, least))
    if room == 1 and not db.serial:
        return conn.execute(FIND_AND_CLAIM, {"worker": worker, "first": first})
    with contextlib.closing(conn.execute(FIND_PENDING, {"room": room, "first": first})) as cursor:
        for row in cursor:
            claims.append(row[:-1])
            _, _, args, _, losses = row
            size += len(args) if isinstance(args, str) else 0
            if losses or size > CHUNK_SIZE:
                break
    if len(claims) > 1 and losses:
        claims.pop()
    if claims:
        ids = [id for id, *_ in claims]
        facts = {"last": ids[-1], "ids": ids, "worker": worker, "now": time.time()}
        claimed = conn.execute(CLAIM, facts)
    if db.serial and (claimed.rowcount != len(claims) if claims else room and left(conn)[0]):
        raise conn.DatabaseError("its index of pending evaluations is not right")  # no row is locked
    return claims


def _share(conn: Connection, room: int, first: int, least: int) -> int:
    """Return how many of `room` evaluations a worker may claim, for all workers to end together.

    Half of its part of what is left: guided self-scheduling (Polychronopoulos and Kuck, 1987). At least
    `least`: a smaller claim takes less time than its own transaction.
    """
    pending = conn.execute(FIRST_PENDING, {"first": first}).fetchall() if room > 1 else []
    if not pending:
        return room
    # Evaluations are claimed for the first time in the order of their ids: from a fresh one on all are.
    ((attempt, rest, busy),) = pending
    if attempt:
        ((rest,),) = conn.execute(COUNT_SOME_PENDING, {"room": 2 * busy * room}).fetchall()
    return int(max(1, rest // max(1, 2 * busy), min(rest, least)))


# Also over what was lost (pending again, claimed by another, or failed by losses, which leaves no
# worker), as long as there is no other result. (An OR instead of CASE takes SQLite 25 us more to plan.)
COMPLETE = """
    UPDATE evals SET status = 'completed', result = ?, worker = ?, started = ?, updated = ?,
        stopped = CAST(? AS BIGINT)
    WHERE id = ? AND ? > reset AND 1 = CASE status WHEN 'completed' THEN 0
        WHEN 'failed' THEN CASE WHEN worker IS NULL THEN 1 ELSE 0 END ELSE 1 END"""
FAIL = """
    UPDATE evals SET status = 'failed', error = coalesce(error, '') || ?, worker = ?, started = ?, updated = ?
    WHERE id = ? AND attempt = ? AND attempt > reset AND status = 'in_progress'"""
# A result that is not stored though nothing speaks against it; or an error of what is held.
IS_REFUSED = """
    SELECT 1 FROM evals WHERE id = :id
        AND (status = 'in_progress' AND attempt = :attempt AND worker = :worker
            OR :completed = 1 AND :attempt > reset AND status IN ('pending', 'in_progress'))"""
IS_STORED = """
    SELECT 1 FROM evals
    WHERE id = :id AND status IN ('completed', 'failed') AND worker = :worker AND started = :started
        AND updated = :ended"""


def finish(db: Database, conn: Connection, worker: int, outcomes: list[Outcome]) -> Callable[[], list[bool]]:
    """Complete or fail evaluations; what is returned tells, after the transaction, which.

    A late result, of a claim that was lost, is stored as long as there is no other result; a late
    error is not. After a reset neither is.
    """
    completed: list[tuple[Any, ...]] = []
    failed: list[tuple[Any, ...]] = []
    for (id, _, _, attempt), result, error, started, ended, stopped in outcomes:
        if error is None:
            completed.append((result, worker, started, ended, stopped, id, attempt))
        else:
            failed.append((error, worker, started, ended, id, attempt))
    pairs = (COMPLETE, completed), (FAIL, failed)
    changed = [conn.executemany(statement, rows) for statement, rows in pairs if rows]
    if not db.serial:
        return functools.partial(_are_stored, db, None, worker, outcomes, changed)
    stored = _are_stored(db, conn, worker, outcomes, changed)
    return lambda: stored


def _are_stored(db: Database, conn: Any, worker: int, outcomes: list[Outcome], changed: Any) -> list[bool]:
    if sum(cursor.rowcount for cursor in changed) == len(outcomes):
        return [True] * len(outcomes)
    with contextlib.nullcontext(conn) if conn else db.read() as open_one:
        return [_is_stored(open_one, worker, outcome) for outcome in outcomes]


def _is_stored(conn: Connection, worker: int, outcome: Outcome) -> bool:
    facts = {**outcome._asdict(), **outcome.claim._asdict(), "worker": worker}
    if conn.execute(IS_REFUSED, {**facts, "completed": int(outcome.error is None)}).fetchall():
        raise conn.DatabaseError("it does not take the end of an evaluation")  # and would give it out again
    return bool(conn.execute(IS_STORED, facts).fetchall())


RELEASE = """
    UPDATE evals SET status = 'pending', worker = NULL, started = NULL, updated = :now
    WHERE status = 'in_progress' AND status || '' = 'in_progress' AND worker = :worker AND id >= :first"""


def release(conn: Connection, worker: int, first: int = FIRST) -> None:
    """Give back the claims of a worker, from that id on."""
    conn.execute(RELEASE, {"worker": worker, "first": first, "now": time.time()})


CLAIMS_OF = "SELECT id, name FROM evals WHERE status = 'in_progress' AND worker = :worker"
ADOPT = "UPDATE evals SET worker = :worker WHERE status = 'in_progress' AND worker IS NULL"
RECLAIM = """
    UPDATE evals SET worker = NULL, started = NULL, updated = :now, losses = losses + 1,
        status = CASE WHEN losses + 1 < :max_attempts THEN 'pending' ELSE 'failed' END,
        error = CASE WHEN length(error) > :enough THEN error ELSE coalesce(error, '') || :line END
            || CASE WHEN losses + 1 < :max_attempts THEN ''
                ELSE 'lost ' || (losses + 1) || ' times, the last process ' || :how END
    WHERE status = 'in_progress' AND worker = :worker"""


def reclaim(db: Database, conn: Connection, lost: Iterable[Loss], max_attempts: int) -> list[str]:
    """Give the claims of lost workers back, or fail those lost too often; return what to say of it."""
    said = []
    now = time.time()
    for loss in workers.held(db, conn, lost):
        if loss.worker == NOBODY:
            conn.execute(ADOPT, {"worker": NOBODY})
        names = [name for _, name in sorted(conn.execute(CLAIMS_OF, {"worker": loss.worker}).fetchall())]
        facts = {
            "worker": loss.worker,
            "now": now,
            "max_attempts": max_attempts,
            "line": f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))} {loss.who} {loss.how}\n",
            "enough": MAX_ERROR,
            "how": visible(loss.how.splitlines()[0]),
        }
        conn.execute(RECLAIM, facts)
        if conn.execute(CLAIMS_OF, facts).fetchall() or (db.serial and loss.has_claims and not names):
            raise conn.DatabaseError("its index of evaluations in progress is not right")
        if loss.why == DIED:
            workers.mark_dead(db, conn, loss.worker)
        if names:
            said.append(f"reclaimed {_some(names)}: {visible(loss.who)} {facts['how']}")
    return said


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"evaluation{'s' * (len(names) > 1)} {', '.join(map(visible, names[:3]))}{more}"


COUNT_FINISHED = """
    SELECT count(*) FROM evals
    WHERE id BETWEEN :first AND :last AND (CAST(:status AS TEXT) IS NULL OR status = :status)
        AND status <> 'pending'"""
# Also what is pending after a loss: the result may yet come late.
RESET = """
    UPDATE evals SET status = 'pending', result = NULL, error = NULL, losses = 0, reset = attempt,
        worker = NULL, started = NULL, updated = :now, stopped = NULL
    WHERE id BETWEEN :first AND :last AND (CAST(:status AS TEXT) IS NULL OR status = :status)
        AND (status <> 'pending' OR attempt > reset)"""


def reset(conn: Connection, first: int, last: int, status: str | None) -> int:
    """Make evaluations pending as if they had never been tried; return how many of them were not."""
    facts = {"first": first, "last": last, "status": status, "now": time.time()}
    ((number,),) = conn.execute(COUNT_FINISHED, facts).fetchall()
    delete(conn, facts)
    conn.execute(RESET, facts)
    return int(number)


LOOK = 5.0  # seconds after which a busy worker looks after the others
QUICK = 0.001  # seconds in which no program runs
MOMENT, SHORT_MOMENT = 0.5, 0.2  # seconds, at most, until an interrupt that a program has got comes to us too
STILL_WAITING = 60.0  # seconds after which a waiting worker says for whom; doubled each time

IN_PROGRESS = """
    SELECT name, evals.started, host, pid FROM evals LEFT JOIN workers ON workers.id = worker
    WHERE status = 'in_progress' ORDER BY evals.id LIMIT 3"""


class Worker:
    """One claiming loop on one database.

    Its random id stands in the database, beside its claims, and as a lock in the file of locks. A
    database that was deleted and made anew does not know the id: the worker stops then.

    Evaluations are claimed in batches. While one of more than one runs, a watchdog, which is a thread,
    sees to it that nothing waits behind an evaluation that turns out long. It takes from the right end
    of `todo` while the loop takes from the left.

    Attributes
    ----------
    todo : deque of Claim
        What is claimed and not started, in the order of ids.
    done : list of Outcome
        What is finished and not stored.
    """

    def __init__(
        self,
        db: Database,
        timeout: float | None,
        max_attempts: int,
        code: str | None = None,
        watched: bool = False,
        space: Adaptive | None = None,
        stop: Rule | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.id = int.from_bytes(os.urandom(6), "big")
        self.todo: collections.deque[Claim] = collections.deque()
        self.done: list[Outcome] = []
        self._db = db
        self._timeout = timeout
        self._max_attempts = max_attempts
        self._clock = clock
        self._sleep = sleep
        self._pace = Pace(timeout)
        self._cost = (0.0, 0.0)  # seconds of the last transaction: waiting for it, writing
        self._running: Claim | None = None
        self._programs = programs_ended()
        self._since = float("inf")  # when the evaluation of a batch began that runs now
        self._claimed = (0.0, 0.0)  # when the batch was claimed, by our clock and by the wall's
        self._exchanging = threading.Lock()  # the loop, or the watchdog
        self._watchdog = Ticker(weakly(self._watch))
        self._signals = Signals()
        self._pid = os.getpid()
        self._joined = False
        self._counts: dict[str, int] | None = None  # once nothing is left, and this worker is marked as ended
        self._row = workers.row(self.id, code, watched)
        self._first = FIRST  # for a while, where what is no longer pending takes time to pass: none is before
        self._lookout = Lookout(db, self.id, timeout, clock)
        self._reports = Reports(db, self._row, stop, self._exchanging, clock)
        self._space = space  # an adaptive one
        if space is not None:
            from .history import History

            self._history = History(db)

    def work(self, func: Callable[[Any], Any], max_failures: int | None, wait: bool) -> dict[str, int] | None:
        """Claim, evaluate and store until nothing is left; at the end, or when interrupted, leave."""
        if not wait:
            self._lookout.patience = 0.0
        with self._signals, known_at_work(self._db.path):
            self._db.locks.add(self.id)
            try:
                self._loop(func, max_failures, wait)
            except BaseException:
                if os.getpid() == self._pid:  # what a child forked by `func` does is not ours
                    self._signals.leave()
                    self.leave()
                raise
            else:
                return self.leave()
            finally:
                self._db.locks.discard(self.id)

    def _loop(self, func: Callable[[Any], Any], max_failures: int | None, wait: bool) -> None:
        evaluated = failed = 0
        while True:
            self._signals.renew()
            room = self._pace.room if self._max_attempts > 1 else 1  # a loss costs the batch
            claimed = self._insist(functools.partial(self.exchange, room))
            if claimed or self._claim_suggested():
                self._lookout.pause = 0.0
            elif self._counts is not None or not (wait and self._wait()):
                return
            for outcome in self._evaluate_batch(func):
                evaluated += 1
                failed += outcome.error is not None
                if failed == evaluated == max_failures:
                    raise SpevalError(
                        f"the first {failed} evaluations of this instance all failed, the last with"
                        f" {last_line(outcome.error)}: mend the cause, then reset_evals() and start"
                        " again; or set max_failures=None"
                    )

    def _claim_suggested(self) -> bool:
        """Add and claim what an adaptive space suggests; or tell that there are enough evaluations.

        No instance waits while another one thinks. So they may come to the same: then the later thinks again.
        """
        space, refused = self._space, set()
        while space is not None and len(known := self._insist(self._history.renew)) < len(space):
            args = self._signals.let_through(suggestion, space, known)
            self._stay_out_of_children(None)
            after = LAST if args in refused else known.last  # which it knew, and suggests again
            if self._insist(functools.partial(self.exchange, 1, suggested=(args, after, len(space)))):
                return True
            refused.add(args)
        return False

    def _evaluate_batch(self, func: Callable[[Any], Any]) -> Iterator[Outcome]:
        """Evaluate what is claimed, until it is old, or the watchdog has given the rest back."""
        if len(self.todo) > 1 and self._db.locks.are_sure:
            self._watchdog.start(self._pace.limit)
        else:
            self._watchdog.stop()
        number = size = 0
        began, began_at = self._clock(), time.time()
        # By either clock, here and below: only one may count while the process, or the host, is stopped.
        fresh = self._pace.stale - max(began - self._claimed[0], abs(began_at - self._claimed[1]))
        age, old = 0.0, min(self._pace.old, fresh)
        self._since, ended = began, began_at
        while self.todo and age <= old and size <= CHUNK_SIZE:
            try:
                self._running = self._reports.running = claim = self.todo.popleft()
            except IndexError:  # the watchdog was quicker
                break
            started = ended
            result, error = self._evaluate(func, claim)
            ended = time.time()
            ran = self._clock() - self._since
            if ran > QUICK:
                self._await_interrupt(ran, result, error)
            ahead = self._db.ahead
            stopped = self._reports.stopped(claim)
            outcome = Outcome(claim, result, error, started + ahead, ended + ahead, stopped)
            self.done.append(outcome)
            self._since = self._clock()
            number += 1
            size += len(result or error or "")
            age = max(self._since - began, abs(ended - began_at))
            yield outcome
        self._since = float("inf")
        if number:
            # Not on a server: there, large first batches of all workers wait for each other's rows.
            watched = self._db.serial and self._db.locks.are_sure
            self._pace.learn(number, self._clock() - began, *self._cost, watched)

    def _watch(self) -> float:
        """Let nothing wait behind a long evaluation; return when to look again, in seconds."""
        long, since = self._pace.long, self._since
        ran = self._clock() - since
        if ran < long:
            return min(long - ran, long)
        if self.todo or self.done:
            try:
                self.exchange(0, since)
            except SpevalError:  # the loop meets it too, and says so
                return LOOK
        return long

    def _evaluate(self, func: Callable[[Any], Any], claim: Claim) -> tuple[str | None, str | None]:
        """Return the result, as JSON, or the error."""
        token = running.set((*running.get(), (self._db.path, claim, self._reports)))
        try:
            args = from_json(claim.args, "the arguments")
            head(claim.name, claim.attempt)
            result = self._signals.let_through(func, args)
        except BaseException as exc:  # also asyncio.CancelledError, and what extensions raise
            if ends_process(exc, self._signals, self._pid):
                raise
            self._stay_out_of_children(exc)
            return None, error_of(exc)
        finally:
            running.reset(token)
        self._stay_out_of_children(None)
        try:
            return to_json(result), None
        except TypeError as exc:
            return None, refusal_of(result, exc)

    def _await_interrupt(self, ran: float, result: str | None, error: str | None) -> None:
        """Wait for an interrupt that may have ended a program of `func` before it reaches this process.

        What such a program returns is no result. The wait is longer after an error or an exit code.
        """
        if self._signals.handlers:
            programs, self._programs = self._programs, programs_ended()
            if self._programs != programs:
                bad = error or (result or "").lstrip("-").strip("0").isdigit()
                self._signals.let_through(self._sleep, MOMENT if bad else min(SHARE * ran, SHORT_MOMENT))

    def _stay_out_of_children(self, exc: BaseException | None) -> None:
        if os.getpid() != self._pid:
            raise SpevalError("func came back in a process that was forked in it: use os._exit()") from exc

    def exchange(
        self, room: int, since: float | None = None, suggested: tuple[str, int, int] | None = None
    ) -> int:
        """Store what is done, release what is not started, and claim up to `room` evaluations, atomically.

        Return how many were claimed. If nothing else is pending, what was `suggested` is added (see `add`).
        Also called by the watchdog, with no room, and only for as long as the evaluation runs that began
        at `since`.

        After an error it may have been stored, or not: so what is not started is not evaluated, and who
        claims releases all that he holds first.
        """
        began = self._clock()
        said: list[str] = []
        with self._exchanging:
            if since not in (None, self._since):
                return 0
            self._counts = None
            outcomes, reports, unstarted = self.done[:], self._reports.new(), self._unstarted()
            with self._db.write(alone=suggested is not None) as conn:
                waiting = self._clock() - began
                workers.check_in(self._db, conn, self._row, self._joined)
                store(conn, reports)
                finished = finish(self._db, conn, self.id, outcomes)
                if room or unstarted:
                    release(conn, self.id, FIRST if room else unstarted[0].id)
                if self._lookout.is_due(min(LOOK, (self._timeout or LOOK) / 4)):
                    self._first = FIRST
                    said = reclaim(self._db, conn, self._lookout.lost(conn), self._max_attempts)
                rows = claim(self._db, conn, self.id, room, self._first, self._pace.least)
                if suggested is not None and not (rows := list(rows)) and add(self._db, conn, *suggested):
                    rows = claim(self._db, conn, self.id, room)
                if room and self._db.serial and not (self._space or rows or any(left(conn))):
                    self._counts = self._end(conn)  # another transaction would wait for all other workers
            stored = finished()
            if not self._joined:
                announce(self._db.name, used=True)
            self._joined = True
            del self.done[: len(outcomes)]
            self._reports.forget(reports)
            claims = list(map(Claim._make, rows))
            self.todo.extend(claims)
            if room:
                self._first = claims[0].id if claims and not self._db.serial else FIRST
                self._claimed = self._clock(), time.time()
                self._cost = waiting, self._claimed[0] - began - waiting
        self._say(said, outcomes, stored, claims)
        return len(claims)

    def _unstarted(self) -> list[Claim]:
        """Take back what is not started. From the right: so the loop starts none behind the first of it."""
        claims: list[Claim] = []
        with contextlib.suppress(IndexError):
            while True:
                claims.append(self.todo.pop())
        return claims[::-1]

    def leave(self) -> dict[str, int] | None:
        """Store what is done, release all other claims and mark the worker as ended, atomically.

        When everything is finished it marks all workers: the others only have to see that. Return the
        number of evaluations by status, None if it could not be done.
        """
        self._watchdog.stop()
        if not self._joined or (self._counts is not None and not self.done):
            return self._counts
        try:
            with contextlib.suppress(NotWritable):  # for a moment: a deadlock, a connection that broke
                return self._leave()
            return self._leave()
        except SpevalError as exc:
            log.error("%s", exc)
            for claim, result, error, *_ in self.done:
                kept = cut(result or error or "", MAX_ERROR)
                log.error("not stored: evaluation %s: %s", visible(claim.name), kept)
            return None

    def _leave(self) -> dict[str, int]:
        with self._db.write() as conn:
            workers.check_in(self._db, conn, self._row, self._joined)
            store(conn, self._reports.new())
            finished = finish(self._db, conn, self.id, self.done)
            said = self._give_up_claims(conn)
            counts = self._end(conn)
        self._say(said, self.done, finished(), [])
        return counts

    def _end(self, conn: Connection) -> dict[str, int]:
        workers.mark_ended(conn, self.id)
        workers.mark_all_ended(conn)
        return count(self._db, conn)

    def _give_up_claims(self, conn: Connection) -> list[str]:
        """Release all claims; but one that was interrupted only after the timeout is a loss."""
        ran = self._clock() - self._since
        if self._timeout is None or self._running is None or ran < self._timeout:
            release(conn, self.id)
            return []
        release(conn, self.id, self._running.id + 1)
        return reclaim(self._db, conn, [Loss(self.id, process(), STALLED, STALLED)], self._max_attempts)

    def _insist(self, action: Callable[[], T]) -> T:
        if not (self._joined or is_used(self._db.name)):
            return action()
        sleep = functools.partial(self._signals.let_through, self._sleep)
        kept = "%d finished evaluations are kept in memory, "
        return insist(self._db, action, lambda: True, sleep, lambda: kept % len(self.done))

    def _wait(self) -> bool:
        """Wait until there is something to claim or to reclaim; False if everything is finished."""
        began, say, took = self._clock(), STILL_WAITING, 0.0
        while True:
            if pause := self._lookout.rest(took):
                self._signals.let_through(self._sleep, pause)
            looking = self._clock()
            pending, in_progress, lost = self._insist(self._look)
            took = self._clock() - looking
            if pending or lost:
                self._lookout.hurry()
                return True
            if not in_progress:
                return False
            if self._db.locks.blind and self._timeout is None:
                raise SpevalError(
                    "evaluations are in progress elsewhere, and without locks nobody can tell whether their"
                    " workers live: set a timeout"
                )
            if self._clock() - began >= say:
                log.warning("waiting for %s", self._insist(self._whom))
                say *= 2

    def _look(self) -> tuple[bool, bool, list[Loss]]:
        with self._db.read() as conn:
            pending, in_progress = left(conn)
            if not (pending or in_progress) and workers.has_ended(conn, self.id):
                self._counts = count(self._db, conn)
            if not self._lookout.is_due():
                return pending, in_progress, []
            # A server that took over from another one may have forgotten what we have finished.
            forgotten = bool(workers.oldest_claim(conn, self.id))
            return pending or forgotten, in_progress, self._lookout.lost(conn)

    def _whom(self) -> str:
        with self._db.read() as conn:
            rows = conn.execute(IN_PROGRESS).fetchall()
        return ", ".join(
            visible(f"evaluation {name}, for {time.time() - (started or 0):.0f} s on {host} (process {pid})")
            for name, started, host, pid in rows
        )

    def _say(
        self, reclaimed: list[str], outcomes: list[Outcome], stored: list[bool], claims: list[Claim]
    ) -> None:
        """Log what a transaction has done."""
        told = log.isEnabledFor(logging.INFO)
        for line in reclaimed:
            log.warning("%s", line)
        for (claim, _, error, started, ended, _), accepted in zip(outcomes, stored):
            if not accepted:
                log.warning(
                    "dropped what came late for evaluation %s, attempt %s: it was given to another, or reset",
                    *(visible(claim.name), claim.attempt),
                )
            elif error is not None:
                log.warning("evaluation %s failed: %s", visible(claim.name), last_line(error))
            elif told:
                log.info("completed evaluation %s in %.3g s", claim.name, ended - started)
        for claim in claims if told else ():
            log.info("claimed evaluation %s, attempt %s", claim.name, claim.attempt)


def speval(
    func: Callable[[Any], Any],
    eval_space: Mapping[Any, Any] | Iterable[Any] | Adaptive,
    evals_fname: Name,
    timeout: float | None = None,
    *,
    n_jobs: int = 1,
    max_attempts: int = 3,
    max_failures: int | None = 10,
    wait: bool = True,
    progress: bool = False,
    stop: Rule | None = None,
) -> dict[str, int]:
    """Evaluate `func` for each of the arguments in `eval_space`, together with all other instances.

    Makes the database if there is none, adds what is new in `eval_space`, then claims pending
    evaluations, calls `func` for each and stores what it returns, until nothing is left. Start the
    same script as often as you like, at any time, on every host that mounts the directory or reaches the
    server.

    Parameters
    ----------
    func : callable
        Called with the arguments of one evaluation, as they are after a way through JSON (a tuple is
        a list then). What it returns is stored as JSON; what has one obvious form there is converted.
        An exception that it raises is stored as the evaluation's error.
    eval_space : iterable, dict, or adaptive space
        Arguments of each evaluation, anything that JSON has. The evaluations are called "0", "1", ...
        or by the keys of a dict. It may be longer than what is stored, or have new names: these are
        added. It is read once, before anything else, and not kept in memory. An adaptive space has
        ``len(space)``, the number of evaluations in all, and ``space.suggest(history)``: the arguments of
        the next, by a sequence of those that there are, as from `load_evals`. See `speval.search`.
    evals_fname : str or path-like
        File name of the sqlite3 database; missing directories are made. Or a table of a PostgreSQL server,
        ``postgresql://user@host/dbname?table=name``, also where another function takes such a name.
    timeout : float, optional
        Seconds, > 0, after which an evaluation is presumed stalled and given to another worker. By
        default none ever is: death of a process is noticed without it. A worker process of `n_jobs` that
        is past it is ended, by SIGTERM and 2 s later SIGKILL, and replaced.
    n_jobs : int
        Number of worker processes on this host, >= 1; -1: one for each CPU that this process may use, by
        its affinity and the quota of its cgroup. With 1, the default, this process evaluates; otherwise
        it only starts the others, by a fork on Linux, replaces those that die, and ends them all before
        it ends itself. Libraries like NumPy may use the number of CPUs over `n_jobs` threads in each.
    max_attempts : int
        Number, >= 1, of deaths or timeouts after which an evaluation is failed. With 1, each is claimed
        alone, because a death takes the batch along.
    max_failures : int, optional
        If the first so many evaluations, >= 1, of this instance, or of one of its worker processes, all
        fail, it stops. None: never.
    wait : bool
        Stay until the last evaluation is finished, because the instance that holds it may still die.
        If false, return as soon as nothing is pending.
    progress : bool
        Show on stderr how far all instances together are: in one line, rewritten in place, on a terminal;
        now and then elsewhere.
    stop : rule, optional
        By which `report` tells `func` to stop, ``median()`` or ``halving()`` of `speval.search`, say.

    Returns
    -------
    dict
        Number of evaluations by status, as from `count_evals`.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or an evaluation has no JSON or no unique name. Nothing is touched.
    SpaceMismatch
        If an evaluation of the same name is stored with other arguments. Nothing is touched.
    SpevalError
        If the database is damaged, of something else, was deleted while in use, or cannot be written
        at the start, for a minute if its server is away; if all of the first `max_failures` evaluations
        failed; inside `func`, if it is on the database whose evaluation runs; if worker processes cannot be
        started, or not be forked because this process has other threads: it says what to do.
    OSError
        If a directory or the temporary file for the space cannot be made.

    Notes
    -----
    Evaluations are finished in the same transaction in which the next are claimed; after that no crash
    takes their results back. Short ones are claimed in batches that begin within 0.2 s; a crash costs the
    batch, beside the evaluation that runs. KeyboardInterrupt, SIGTERM and SIGHUP store what is finished,
    release what is not, and then go their way. `sys.exit()` in `func`, without one of them, is a failure.

    Examples
    --------
    >>> import tempfile
    >>> from speval import load_evals
    >>> fname = tempfile.mkdtemp() + "/evals.db"
    >>> speval(lambda x: x**2, [1, 2, 3], fname)
    {'pending': 0, 'in_progress': 0, 'completed': 3, 'failed': 0}
    >>> [e["result"] for e in load_evals(fname)]
    [1, 4, 9]
    """
    check(func, eval_space, timeout, n_jobs, max_attempts, max_failures, stop)
    db = database(evals_fname)
    if not running.get():
        announce(db.name)
    if db.path in waiting_for_this():
        raise SpevalError(f"speval() inside func on {db.path} too would wait for itself: use another file")
    code = code_of(func)
    with Space(eval_space) as space:
        action = functools.partial(populate, db, space, name_of(func), code)
        rest = insist(db, action, lambda: is_used(db.name))
    recount = functools.partial(insist, db, functools.partial(count_evals, db), lambda: True)
    counts = None if rest else recount()
    settings = {"timeout": timeout, "max_attempts": max_attempts, "space": adaptive(eval_space), "stop": stop}
    work = functools.partial(_work, db if n_jobs == 1 else db.name, func, code, max_failures, wait, settings)
    told = n_jobs != 1 and not is_launched()
    nothing = contextlib.nullcontext()
    with _summed_up(db) if told else nothing, _line(db) if progress and rest else nothing as line:
        # Again, if somebody else extended the space at the very end; unless the database contradicts itself.
        while counts is None or (wait and unfinished(counts) and unfinished(counts := recount())):
            if n_jobs == 1:
                counts = _in_this_process(work, timeout, line) or recount()
            else:
                _in_processes(db, func, work, n_jobs, timeout, line)
                counts = recount()
    if counts["failed"]:
        log.warning(
            "%d of %d evaluations failed: load_evals(%r, 'failed') says why; reset_evals() and start again",
            *(counts["failed"], sum(counts.values()), shown(evals_fname)),
        )
    return counts


def _work(
    name: Name,
    func: Callable[[Any], Any],
    code: str | None,
    max_failures: int | None,
    wait: bool,
    settings: dict[str, Any],
    count: Any = None,
) -> dict[str, int] | None:
    """Work on the database; in a process that another one watches, `count` tells that what it has to know."""
    db = database(name)
    watched = count is not None or is_launched()  # by who tells how it died
    worker = Worker(db, code=code, watched=watched, **settings)
    if count is None:
        return worker.work(func, max_failures, wait)
    pid = os.getpid()
    count.value += 1
    db.try_out()
    count.value += 1

    def counted(args: Any) -> Any:
        count.value += 1
        try:
            return func(args)
        finally:
            if os.getpid() == pid:  # not in a child that `func` has forked
                count.value += 1

    return worker.work(counted, max_failures, wait)


def _in_processes(
    db: Database, func: Any, work: Callable[..., Any], n_jobs: int, timeout: Any, line: Progress | None
) -> None:
    from .process import jobs

    tell = functools.partial(jobs.apart, workers.tell, db)
    n, copied = cpus() if n_jobs == -1 else n_jobs, copied_generators(func)
    with Signals() as signals:
        jobs.run(work, n, timeout, signals.let_through, line, tell, copied)


def _line(db: Database) -> Progress:
    """Return the line that shows how far the sweep is, of all instances."""
    from .view.progress import Progress

    return Progress(lambda name: how_far(db), lambda: [db.path])


@contextlib.contextmanager
def _summed_up(db: Database) -> Iterator[None]:
    """When Ctrl-C ends the block, say how far it is."""
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(SpevalError, OSError):
            counts, _ = how_far(db)
            done, total = sum(counts.values()) - unfinished(counts), sum(counts.values())
            how = command(shown) or "call it again"
            log.warning("interrupted: nothing is lost, %d of %d are done; to go on: %s", done, total, how)
        raise


def _in_this_process(
    work: Callable[..., dict[str, int] | None], timeout: float | None, line: Progress | None
) -> dict[str, int] | None:
    with contextlib.ExitStack() as shown, counted(timeout) as count:
        if line is not None:
            ticker = Ticker(line.show)
            shown.callback(ticker.stop)
            ticker.start(line.show())
        return work(count)


def reset_evals(
    evals_fname: Name,
    status: str | None = "failed",
    names: Iterable[str] | None = None,
) -> int:
    """Make evaluations pending again, as if they had never been tried, atomically.

    What was claimed before is not stored after it: a worker that still evaluates one drops its result.

    Parameters
    ----------
    evals_fname : str or path-like
        File name of the sqlite3 database.
    status : {"failed", "completed", "in_progress"} or None
        Only those with this status; None: whatever it is.
    names : iterable of str, optional
        Only these. By default all.

    Returns
    -------
    int
        How many are pending now that were not. (What is pending already is reset too.)

    Raises
    ------
    ValueError
        If there is no such status or no evaluation of one of the names. Nothing is changed.
    FileNotFoundError, SpevalError
        As from `load_evals`.

    Examples
    --------
    >>> import tempfile
    >>> fname = tempfile.mkdtemp() + "/evals.db"
    >>> counts = speval(lambda x: 1 / x, [0, 1, 2], fname)
    >>> counts["failed"], reset_evals(fname)
    (1, 1)
    """
    from .history import note_reset

    check_status(status)
    if isinstance(names, str):
        raise TypeError(f"names has to be a list of names, not the str {names!r}")
    names = None if names is None else list(names)  # which may be a generator of the user's
    db = existing(evals_fname)
    with Signals(), db.read():  # before anything is made beside a database of something else
        pass
    with Signals(), db.write(alone=True) as conn:
        db.prepare(conn)
        note_reset(conn)
        return sum(reset(conn, first, last, status) for first, last in _ids(db, conn, names))


def _ids(db: Database, conn: Connection, names: Iterable[str] | None) -> list[tuple[int, int]]:
    """Return ranges of ids: of each name, or of all."""
    if names is None:
        return [(FIRST, LAST)]
    found = look_up(conn, [str(name) for name in names])
    missing = [name for name in names if str(name) not in found]
    if missing:
        raise ValueError(f"{db.path} has no evaluation {missing[0]!r}")
    return [(id, id) for id, _ in found.values()]
