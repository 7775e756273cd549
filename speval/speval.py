"""Evaluate a function over a list of arguments, by any number of processes, in one sqlite3 file.

The script is the worker: every instance that is started claims pending evaluations in the database,
evaluates them and stores the results, until nothing is left::

                  claim                complete
        pending --------> in_progress ----------> completed     the first result stays
         ^   ^                 |  |      fail
         |   |_____release_____|  |-------------> failed        func raised, or lost max_attempts times
         |_________reclaim________|                 |
         |______________________reset_______________|           (also from completed)

Every claim has a number, its *attempt*, which only grows: it is the token by which a worker that was
presumed dead is told from the one that holds the evaluation now.

Below, in this order: the statements, the errors, JSON and spaces, signals, the locks beside the
database, the database, the state machine, the worker, and the public functions.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import errno
import functools
import importlib
import json
import logging
import os
import re
import signal
import sqlite3
import stat
import struct
import sys
import threading
import time
import traceback
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

try:
    import fcntl
except ImportError:  # Windows: no queue and no liveness, only `timeout` reclaims
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

__all__ = [
    "SpaceMismatch",
    "SpevalError",
    "count_evals",
    "current_eval",
    "iter_evals",
    "load_evals",
    "reset_evals",
    "speval",
]

log = logging.getLogger("speval")
T = TypeVar("T")

APPLICATION_ID = 0x73706576  # "spev"
FORMAT = 1
STATUSES = ("pending", "in_progress", "completed", "failed")
COLUMNS_0_1_1 = ["name", "status", "updated", "result", "args"]

# Every transaction opens the database and reads this again: as few tables and indexes as will do.
# `reset` is the attempt at the last reset: no claim up to it can store anything any more.
CREATE = (
    """CREATE TABLE evals (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        updated REAL NOT NULL,
        result TEXT,
        args TEXT NOT NULL,
        error TEXT,
        attempt INTEGER NOT NULL DEFAULT 0,
        losses INTEGER NOT NULL DEFAULT 0,
        reset INTEGER NOT NULL DEFAULT 0,
        worker INTEGER,
        started REAL)""",
    """CREATE TABLE workers (
        id INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL,
        started REAL NOT NULL, ended REAL)""",
    """CREATE TABLE spaces (
        fingerprint TEXT NOT NULL, size INTEGER NOT NULL, func TEXT NOT NULL, added REAL NOT NULL)""",
    "CREATE INDEX evals_pending ON evals (id) WHERE status = 'pending'",
    "CREATE INDEX evals_in_progress ON evals (worker) WHERE status = 'in_progress'",
    "CREATE INDEX evals_failed ON evals (id) WHERE status = 'failed'",
    "CREATE INDEX evals_by_hand ON evals (id) WHERE attempt = 0 AND status <> 'pending'",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)
UPGRADE_0_1_1 = (
    "ALTER TABLE evals RENAME TO evals_0_1_1",
    *CREATE,
    """INSERT INTO evals (name, status, updated, result, args, attempt)
        SELECT name, CASE status WHEN 'in_progress' THEN 'pending' ELSE status END,
            updated, result, args,
            coalesce(rowid <= (SELECT max(rowid) FROM evals_0_1_1 WHERE status <> 'pending'), 0)
        FROM evals_0_1_1 ORDER BY rowid""",
    "DROP TABLE evals_0_1_1",
)

KNOW_SPACE = """
    SELECT 1 FROM spaces WHERE fingerprint = :fingerprint AND size <= (SELECT count(*) FROM evals)"""
KEEP_SPACE = """
    INSERT INTO spaces (fingerprint, size, func, added)
    VALUES (:fingerprint, :size, :func, :now)"""
FIRST_FUNC = "SELECT func FROM spaces ORDER BY rowid LIMIT 1"
ADD_EVAL = "INSERT INTO evals (name, status, updated, args) VALUES (?, 'pending', ?, ?)"
LOOKUP_EVAL = "SELECT id, args FROM evals WHERE name = :name"

JOIN = "INSERT INTO workers (id, host, pid, started) VALUES (:worker, :host, :pid, :now)"
LOOKUP_WORKER = "SELECT ended FROM workers WHERE id = :worker"
LIVE_WORKERS = "SELECT id, host, pid FROM workers WHERE ended IS NULL AND id <> :worker"
LIVE_WORKERS_SINCE = "SELECT id, host, pid, started FROM workers WHERE ended IS NULL ORDER BY started"
MARK_ENDED = "UPDATE workers SET ended = :ended WHERE id = :worker"
MARK_ALL_ENDED = """
    UPDATE workers SET ended = :now WHERE ended IS NULL
        AND NOT EXISTS (SELECT 1 FROM evals WHERE status = 'pending')
        AND NOT EXISTS (SELECT 1 FROM evals WHERE status = 'in_progress')"""

# The WHERE of a partial index has to stand here letter for letter, or SQLite scans the table. It believes
# the index then; with a plus it looks at the row too.
FIND_PENDING = """
    SELECT id, name, args, attempt + 1, losses FROM evals WHERE status = 'pending' ORDER BY id LIMIT :room"""
CLAIM = """
    UPDATE evals SET status = 'in_progress', attempt = attempt + 1, worker = :worker, started = :now,
        updated = :now
    WHERE status = 'pending' AND id <= :last AND +status = 'pending' AND attempt >= reset"""
FIRST_PENDING = """
    SELECT attempt, (SELECT max(id) FROM evals) - id + 1, (SELECT count(*) FROM workers WHERE ended IS NULL)
    FROM evals WHERE status = 'pending' ORDER BY id LIMIT 1"""
COUNT_SOME_PENDING = "SELECT count(*) FROM (SELECT 1 FROM evals WHERE status = 'pending' LIMIT :room)"
# Also over what was lost (pending again, claimed by another, or failed by losses, which leaves no
# worker), as long as there is no other result. (An OR instead of CASE takes SQLite 25 us more to plan.)
COMPLETE = """
    UPDATE evals SET status = 'completed', result = ?, error = NULL, worker = ?, started = ?, updated = ?
    WHERE id = ? AND ? > reset
        AND CASE status WHEN 'completed' THEN 0 WHEN 'failed' THEN worker IS NULL ELSE 1 END"""
FAIL = """
    UPDATE evals SET status = 'failed', error = ?, worker = ?, started = ?, updated = ?
    WHERE id = ? AND attempt = ? AND attempt > reset AND status = 'in_progress'"""
IS_HELD = """
    SELECT 1 FROM evals
    WHERE id = :id AND status = 'in_progress' AND attempt = :attempt AND worker = :worker"""
IS_STORED = """
    SELECT 1 FROM evals
    WHERE id = :id AND status IN ('completed', 'failed') AND worker = :worker AND started = :started
        AND updated = :now"""
RELEASE = """
    UPDATE evals SET status = 'pending', worker = NULL, started = NULL, updated = :now
    WHERE status = 'in_progress' AND worker = :worker AND id >= :first"""
CLAIMS_OF = "SELECT name FROM evals WHERE status = 'in_progress' AND worker IS :worker ORDER BY id"
OLDEST_CLAIM = """
    SELECT id, attempt FROM evals WHERE status = 'in_progress' AND worker = :worker ORDER BY id LIMIT 1"""
RECLAIM = """
    UPDATE evals SET worker = NULL, started = NULL, updated = :now, losses = losses + 1,
        status = CASE WHEN losses + 1 < :max_attempts THEN 'pending' ELSE 'failed' END,
        error = 'lost ' || (losses + 1) || ' times: each time its worker died or ran past the timeout'
    WHERE status = 'in_progress' AND worker IS :worker"""
UNKNOWN_HOLDERS = """
    SELECT DISTINCT worker FROM evals WHERE status = 'in_progress'
        AND (worker IS NULL OR worker NOT IN (SELECT id FROM workers WHERE ended IS NULL))"""
COUNT_FINISHED = """
    SELECT count(*) FROM evals
    WHERE id BETWEEN :first AND :last AND (:status IS NULL OR status = :status) AND status <> 'pending'"""
# Also what is pending after a loss: the result may yet come late.
RESET = """
    UPDATE evals SET status = 'pending', result = NULL, error = NULL, losses = 0, reset = attempt,
        worker = NULL, started = NULL, updated = :now
    WHERE id BETWEEN :first AND :last AND (:status IS NULL OR status = :status)
        AND (status <> 'pending' OR attempt > reset)"""

LEFT = """
    SELECT EXISTS (SELECT 1 FROM evals WHERE status = 'pending'),
        EXISTS (SELECT 1 FROM evals WHERE status = 'in_progress')"""
IN_PROGRESS = """
    SELECT name, evals.started, host, pid FROM evals LEFT JOIN workers ON workers.id = worker
    WHERE status = 'in_progress' ORDER BY evals.id LIMIT 3"""
# A count(*) by itself counts pages' worth at a time; with anything beside it, or a WHERE, row by row.
COUNT = """
    SELECT (SELECT count(*) FROM evals), (SELECT max(id) FROM evals),
        (SELECT count(*) FROM evals WHERE status = 'in_progress'),
        (SELECT count(*) FROM evals WHERE status = 'failed')"""
COUNT_PENDING = "SELECT count(*) FROM evals WHERE status = 'pending' AND id <= :id"
COUNT_BY_HAND = "SELECT count(*) FROM evals WHERE attempt = 0 AND status <> 'pending' AND id > :id"
IS_FRESH = "SELECT attempt = 0 AND status = 'pending' FROM evals WHERE id = :id"
COUNT_0_1_1 = "SELECT status, count(*) FROM evals GROUP BY status"
LAST_OF_CHUNK = """
    SELECT max(id) FROM (SELECT id FROM evals WHERE id > :after ORDER BY id LIMIT :room)"""
READ = """
    SELECT id, name, status, updated, result, args, error, attempt, losses, worker, started FROM evals
    WHERE id > :after AND id <= :last AND (:status IS NULL OR status = :status) ORDER BY id"""
LAST_OF_CHUNK_0_1_1 = """
    SELECT max(rowid) FROM (SELECT rowid FROM evals WHERE rowid > :after ORDER BY rowid LIMIT :room)"""
READ_0_1_1 = """
    SELECT rowid, name, status, updated, result, args, NULL, 0, 0, NULL, NULL FROM evals
    WHERE rowid > :after AND rowid <= :last AND (:status IS NULL OR status = :status) ORDER BY rowid"""


class SpevalError(Exception):
    """What went wrong with a database of evaluations, and what to do about it."""


class SpaceMismatch(SpevalError):
    """The evaluation space differs from the stored one under the same name.

    Attributes
    ----------
    name : str
        Name of the first evaluation that differs.
    stored, given : object
        Its arguments in the database and in the evaluation space.
    """

    def __init__(self, path: str, name: str, stored: object, given: object) -> None:
        super().__init__(
            f"evaluation {name!r} of {path} has the arguments {_cut(repr(stored))}, but the evaluation"
            f" space now says {_cut(repr(given))}. All instances have to get the same evaluation space:"
            " seed the random generator, sort what came from a set or from os.listdir, name the"
            " evaluations with a dict, or use another file for another space."
        )
        self.name, self.stored, self.given = name, stored, given


class NotWritable(SpevalError):
    """The database cannot be written for now: disk full, quota, read-only, input/output error."""


# Before Python 3.11 the errors of sqlite3 have no code; the messages of sqlite3_errstr() stand in.
SQLITE_BUSY, SQLITE_READONLY, SQLITE_IOERR, SQLITE_CORRUPT = 5, 8, 10, 11
SQLITE_FULL, SQLITE_CANTOPEN, SQLITE_PROTOCOL, SQLITE_NOTADB = 13, 14, 15, 26
MESSAGES = {
    "database is locked": SQLITE_BUSY,
    "attempt to write a readonly database": SQLITE_READONLY,
    "disk I/O error": SQLITE_IOERR,
    "database disk image is malformed": SQLITE_CORRUPT,
    "database or disk is full": SQLITE_FULL,
    "unable to open database file": SQLITE_CANTOPEN,
    "locking protocol": SQLITE_PROTOCOL,
    "file is not a database": SQLITE_NOTADB,
}


def _code(exc: Exception) -> int:
    """Return the primary result code of SQLite, 1 (SQLITE_ERROR) if there is none."""
    code = getattr(exc, "sqlite_errorcode", None)
    return MESSAGES.get(str(exc), 1) if code is None else code & 0xFF


MAX_JSON = 400_000_000  # characters; SQLite takes 10**9 bytes a row, args, result and error together
MAX_ERROR = 64 * 1024  # characters


def _cut(text: str, room: int = 200) -> str:
    """Return `text` with its middle left out if it has more than `room` characters."""
    return text if len(text) <= room else f"{text[: room // 2]} [...] {text[-room // 2 :]}"


def _plain(text: str, room: int) -> str:
    """Return `text` cut, and fit for UTF-8."""
    return _cut(text, room).encode(errors="backslashreplace").decode()


def visible(stored: object, kept: str = "") -> str:
    """Return what somebody has stored as one line, with escapes for what might move the cursor."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in str(stored))


def _message(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - its str() may raise anything
        text = ""
    return _plain(text or type(exc).__name__, 1000)


def _tolist(value: Any) -> Any:
    """Convert what JSON does not know: NumPy scalars and arrays, and anything else with ``tolist``."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encode = json.JSONEncoder(default=_tolist).encode
_decode = json.JSONDecoder().raw_decode


def _to_json(value: Any) -> str:
    """Return `value` as JSON; `TypeError` if it has none, whatever the reason."""
    try:
        text = _encode(value)
    except Exception as exc:
        raise TypeError(f"cannot be stored as JSON: {_message(exc)}") from exc
    if len(text) > MAX_JSON:
        raise TypeError(f"{len(text)} characters of JSON are too many, {MAX_JSON} can be stored")
    return text


def _from_json(text: Any, what: str) -> Any:
    """Return the value of a JSON `text` from a database; ``''`` and None (of speval 0.1.1) are kept."""
    try:
        value, end = _decode(text)  # half the time of loads(), for what has no space around it
        if end == len(text):
            return value
    except (ValueError, TypeError, RecursionError):
        pass
    try:
        return json.loads(text) if text else text
    except (ValueError, TypeError, RecursionError) as exc:
        raise SpevalError(f"{what} cannot be read, it is not JSON: {exc}") from exc


class Space:
    """An evaluation space as text, for one pass over what the user gave and several over the text.

    A temporary file with a line for each evaluation: its name, a tab, its arguments, both as JSON.
    Nothing of it is in memory, and it is made before any transaction, because the user's iterable may
    take its time.

    Attributes
    ----------
    size, position : int
        Number of evaluations, and how many of them the last pass has yielded so far.
    fingerprint : str
        Hash of names and arguments, in their order.
    """

    def __init__(self, eval_space: Mapping[Any, Any] | Iterable[Any]) -> None:
        import hashlib  # here, because a reader needs neither, and importing them takes milliseconds
        import tempfile

        self.size = self.position = 0
        self._file = tempfile.SpooledTemporaryFile(1 << 20)  # noqa: SIM115 - it is closed by close()
        digest = hashlib.blake2b(digest_size=16)
        began, pause = time.monotonic(), LONG_WAIT
        try:
            for name, args in _named(eval_space):
                line = f"{_encode(name)}\t{_args_to_json(name, args)}\n".encode()
                digest.update(line)
                self._file.write(line)
                self.size += 1
                if self.size % 1000 == 0 and time.monotonic() - began >= pause:
                    log.warning("read %d evaluations of the space by now, for %d s", self.size, pause)
                    pause *= 2
        except BaseException:
            self._file.close()
            raise
        self.fingerprint = digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield name and arguments, the latter as JSON."""
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            self.position = number
            name, _, args = line.decode().partition("\t")
            yield json.loads(name) if "\\" in name else name[1:-1], args[:-1]

    def close(self) -> None:
        self._file.close()


def _named(eval_space: Mapping[Any, Any] | Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and arguments of each evaluation; those of a list are called "0", "1", ..."""
    if not isinstance(eval_space, Mapping):
        for index, args in enumerate(eval_space):
            yield str(index), args
        return
    names = set()
    for key, args in eval_space.items():
        name = _to_name(key)
        if name in names:
            raise ValueError(f"two evaluations are called {name!r} as text: give them different names")
        names.add(name)
        yield name, args


def _to_name(key: Any) -> str:
    if not isinstance(key, (str, int, float)) and not hasattr(key, "__index__"):
        raise TypeError(f"an evaluation is named by a str or a number, not by {key!r}")
    try:
        str(key).encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"the name {key!r} has no UTF-8: use os.fsencode(name).hex(), say") from exc
    return str(key)


def _args_to_json(name: str, args: Any) -> str:
    try:
        return _to_json(args)
    except TypeError as exc:
        raise TypeError(f"the arguments of evaluation {name!r}: {exc}") from exc


NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP")
HELD = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
STOP: Any = getattr(signal, "SIGTSTP", None)  # Ctrl-Z
MORE = ("SIGALRM", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF")  # for which users have handlers
HANDLED = [*HELD, *(getattr(signal, name) for name in MORE if hasattr(signal, name))]
SAME = 2.0  # seconds in which a further SIGTERM or SIGHUP is the same


class _Terminated(BaseException):
    """A signal has come that ends the process by default."""


class Signals(contextlib.AbstractContextManager["Signals"]):
    """Hold back SIGINT, SIGTERM, SIGHUP and SIGTSTP in the block: nothing breaks into a transaction.

    They are let through while `func` runs and while a worker sleeps, and when the block is over; a
    second interrupt of its kind does not wait. (But for a SIGTERM or SIGHUP that comes within 2 s of any:
    many send one to all processes, of which one passes it on.) Where the default stands for an interrupt, it
    raises in `func` and ends the process, as by default, when the block is over. What was ignored stays
    ignored.

    Masking them in the main thread would not be enough: the kernel then gives them to any other thread
    (of a BLAS, say), and Python runs the handler in the main thread all the same.

    Attributes
    ----------
    interrupt : BaseException or None
        What an interrupt has raised, even if `func` caught it.
    handlers : dict
        The handlers that are put back at the end. Only of the main thread, elsewhere none is touched.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.interrupt: BaseException | None = None
        self._came: float | None = None  # the first of late, at
        self._held: list[int] = []  # to be heeded when they are let through
        self._heeded: list[int] = []  # they have raised, and are yet to end the process
        self._open = self._leaving = self._over = False

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            try:
                for signum in HELD:
                    handler = signal.getsignal(signum)
                    if callable(handler) or handler is signal.SIG_DFL:
                        self.handlers[signum] = handler
                        signal.signal(signum, self._handle)
            except BaseException:
                self._restore()
                raise
        return self

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        handler = self.handlers[signum]
        if self._over:  # somebody kept this handler, and put it back too late
            signal.signal(signum, handler)
            signal.raise_signal(signum)
        elif self._is_the_same(signum):
            return
        elif self._open and _is_forking(frame):  # what it raises would be lost there
            self._came = None
            _send_again(signum)
        elif self._open:
            self._heed(signum, frame)
        elif signum == STOP and signum in self._held:
            return
        elif signum == STOP or not (self._leaving or signum in self._held):
            self._held.append(signum)
        elif callable(handler) and (not self._leaving or _is_ours(handler)):
            handler(signum, frame)
        else:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def _heed(self, signum: int, frame: types.FrameType | None) -> None:
        handler = self.handlers[signum]
        try:
            if callable(handler):
                handler(signum, frame)
            elif signum == STOP:
                self._stop()
            else:
                self._heeded.append(signum)
                raise _Terminated
        except (KeyboardInterrupt, SystemExit, _Terminated) as exc:
            self.interrupt = exc
            raise

    def _stop(self) -> None:
        """Stop, but in no transaction of any thread, which all others would wait for."""
        with contextlib.ExitStack() as held:
            _hold_up_transactions(held)
            before = signal.signal(STOP, signal.SIG_DFL)  # ours, or of a block inside ours
            signal.raise_signal(STOP)
            signal.signal(STOP, before)

    def _is_the_same(self, signum: int) -> bool:
        handler = self.handlers[signum]
        if signum == STOP or (callable(handler) and handler is not signal.default_int_handler):
            return False
        now = time.monotonic()
        if self._came is None or now >= self._came + SAME:
            self._came = now
        return signum != signal.SIGINT and self._came < now

    def renew(self) -> None:
        """Take the signals again whose handlers `func` has put back to the default, as asyncio does."""
        for signum in self.handlers:
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(signum, self._handle)

    def let_through(self, func: Callable[..., T], *args: Any) -> T:
        """Call `func` with `args`; signals may interrupt it, also those that came before."""
        self._open = True
        try:
            while self._held:
                self._came = None
                signal.raise_signal(self._held.pop())
            return func(*args)
        finally:
            self._open = False

    def leave(self) -> None:
        """If one was heeded already, let the signals end the process at once, until the end of the block."""
        if self.interrupt is None:
            return
        self._leaving = True
        if signal.SIGINT in self.handlers:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _restore(self) -> None:
        for signum, handler in reversed(self.handlers.items()):  # SIGINT last: from then on it interrupts
            if signal.getsignal(signum) in (self._handle, signal.SIG_DFL):  # not if `func` set its own
                signal.signal(signum, handler)

    def __exit__(self, *exc_info: object) -> None:
        self._over, self._open = True, False
        self._restore()
        for signum in sorted({*self._held, *self._heeded}, key=lambda signum: signum == signal.SIGINT):
            signal.raise_signal(signum)
        for signum in self._heeded:  # process 1 of a container, to which the default does nothing
            raise SystemExit(128 + signum)


def _is_ours(handler: Any) -> bool:
    return isinstance(getattr(handler, "__self__", None), Signals)


def _send_again(signum: int) -> None:
    """Send a signal to this process in a moment, when the fork in which it came is over."""

    def send() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # not to this thread
        time.sleep(0.01)
        os.kill(os.getpid(), signum)

    threading.Thread(target=send, name="speval", daemon=True).start()


def _give_up_handlers() -> None:
    """In a forked child: put back the handlers that we replaced, the child is not the worker."""
    for signum in HELD:
        handler = signal.getsignal(signum)
        while _is_ours(handler):
            handler = handler.__self__.handlers[signum]  # type: ignore[union-attr]
            signal.signal(signum, handler)


LOCKS_SENTENCE = b"Locks of the speval database beside this file; do not delete it while instances run.\n"
HOLDER, MADE = 128, 256  # offsets in that file: who holds the queue, when it was made beside claims
# Byte 0 is the queue of writers, byte 1 + id says that a worker is alive. Who leaves the queue and comes
# again would be back before the one that was woken meanwhile: so he passes a turnstile, where that one is.
QUEUE, TURNSTILE = 0, 1 << 60
SETTLE = 10.0  # seconds in which the workers take their bytes of a new file again
LONG_WAIT = 10.0  # seconds after which somebody says so
NETWORK_MOUNTS = ("nfs", "cifs", "smb", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.")
LOCAL_LOCKS = ("nolock", "local_lock=all", "local_lock=posix", "localflock")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Locks:
    """Advisory locks of this process on bytes of the file beside a database, ``<database>-lock``.

    The kernel drops them when the process ends, however it ends: so they tell without any clock which
    workers live. Open-file-description locks where there are some (Linux), because POSIX locks are lost
    as soon as anything in the process opens and closes the file; POSIX locks elsewhere; none on Windows.

    A server of a network mount may lose them while we live. So there, and where they are POSIX locks,
    each transaction takes the bytes of our workers again, in the file opened anew if need be.

    One object a database and process, shared by its threads; `mutex` keeps their transactions apart, and
    `busy` says which one is in one.
    """

    blind = fcntl is None

    def __init__(self, path: str) -> None:
        self.path = path + "-lock"
        self.mutex = threading.RLock()
        self.busy = 0  # the thread, as from threading.get_ident()
        self.shared = _is_shared(path)
        self._database = path
        self._workers: set[int] = set()
        self._reserve: list[int] = []  # descriptors, of the file `_reserved`
        self._reserved: tuple[int, int] | None = None
        self._me = _me()
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._settled = -float("inf")  # from then on (monotonic) nobody has yet to take his byte again
        self._ofd = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")

    def _lock(self, byte: int, wait: bool = False) -> bool:
        """Lock a byte; False if somebody else has it."""
        try:
            if self._ofd:
                how = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
                fcntl.fcntl(self._fd, how, _flock(fcntl.F_WRLCK, byte))
            else:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _unlock(self, byte: int) -> None:
        if self._ofd:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, byte))
        else:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)

    def _open(self, create: bool) -> None:
        """Open the file, made if need be with owner and mode of the database."""
        for how in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR)[: 3 if create else 1]:
            with contextlib.suppress(FileNotFoundError if how == os.O_RDWR else FileExistsError):
                self._fd = os.open(self.path, how | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
                break
        else:
            return
        with contextlib.suppress(OSError):  # up, where os.closerange() in `func` seldom reaches
            high = fcntl.fcntl(self._fd, fcntl.F_DUPFD_CLOEXEC, 500)
            low, self._fd = self._fd, high
            os.close(low)
        found = os.fstat(self._fd)
        self._identity = found.st_dev, found.st_ino
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if found.st_size == 0:
            with contextlib.suppress(OSError):  # the locks work without what is only for people
                os.write(self._fd, LOCKS_SENTENCE)
                database = os.stat(self._database)
                if os.geteuid() == 0:
                    os.fchown(self._fd, database.st_uid, database.st_gid)
                os.fchmod(self._fd, database.st_mode & 0o777)
        try:
            self._is_locked(QUEUE)
        except OSError as exc:
            if exc.errno in NO_LOCKS or not self._ofd:
                raise
            self._ofd = exc.errno != errno.EINVAL  # a kernel older than 3.15

    def _close(self) -> None:
        """Close the descriptor, unless `func` closed it and the number means another file by now."""
        if self._fd >= 0 and _identity(self._fd) == self._identity:
            os.close(self._fd)
        self._fd, self._identity = -1, None

    def _is_ours(self) -> bool:
        """Tell whether what we have open is the file at its path: somebody may have deleted it."""
        if self._fd < 0 or _identity(self._fd) != self._identity:
            return False
        try:
            found = os.lstat(self.path)
        except OSError as exc:
            return exc.errno not in (errno.ENOENT, errno.ENOTDIR)  # it cannot be seen for now
        return (found.st_dev, found.st_ino) == self._identity

    def _refresh(self, create: bool) -> None:
        """Make sure that we have the file that is at its path, and the bytes of our workers in it."""
        if fcntl is None or self._is_ours():
            return
        self._close()
        try:
            self._open(create or bool(self._workers))
            self._take_bytes()
        except FileNotFoundError:
            self._close()  # nor will there be a database
        except OSError as exc:
            self._close()
            if exc.errno in NO_LOCKS:
                raise self._no_locks(exc) from exc
            if create or self._workers:  # others would take us for dead
                raise NotWritable(
                    f"{self.path} cannot be opened ({exc}): every instance needs to write to it, as to the"
                    " database; give it the same owner and mode, and let it be a file"
                ) from exc

    def _take_bytes(self) -> None:
        for worker in self._workers if self._fd >= 0 else ():
            self._lock(1 + worker, wait=True)

    def make_sure(self) -> None:
        """Take the bytes of our workers again, where they may have been lost.

        In a transaction that has begun: while it waited for that, the server may have lost them.
        """
        if self.are_sure:
            return
        try:
            self._take_bytes()
        except OSError:  # EIO: the kernel knows that it has lost them, with what else we have open
            self._close()
            self._settled = time.monotonic() + SETTLE
            self._refresh(create=True)

    @contextlib.contextmanager
    def opened(self, create: bool) -> Iterator[None]:
        """Keep the other threads of this process out, and the file open."""
        with _attending(self), self.mutex:
            if self.busy:
                raise SpevalError(
                    f"a signal handler has interrupted a transaction on {self._database}, and cannot use it"
                    " before that is over: set a flag there, and look at it later"
                )
            pid = os.getpid()
            try:
                self.busy = threading.get_ident()
                self._refresh(create)
                yield
            finally:
                self.busy = 0
                if os.getpid() == pid:
                    self.fill_reserve()
                    if not self._workers:
                        self._close()

    @property
    def are_sure(self) -> bool:
        """The queue keeps the transactions of all instances apart, whatever `func` does meanwhile.

        SQLite's own locks do not: they are lost when `func` opens and closes the database as a file.
        """
        return fcntl is None or (self._ofd and not self.shared and self._fd >= 0)

    @property
    def may_repair(self) -> bool:
        """Who opens the database now may take its journal for what a dead process left, and roll it back."""
        return self._fd >= 0 or fcntl is None or not os.path.lexists(self.path)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for our turn among the transactions on this database, of all processes.

        A queue, in which the kernel wakes one after the other where SQLite polls with growing sleeps.
        Where `are_sure` it also is what keeps them apart.
        """
        queued = self._fd >= 0 and not self.shared and self._enqueue()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if queued and self._fd >= 0:  # not in a child
                    self._unlock(QUEUE)

    def _enqueue(self) -> bool:
        try:
            if not self._pass(wait=False):
                with _notice(lambda: f"waiting for {self.path}, which {self._holder()} holds"):
                    self._pass(wait=True)
        except OSError as exc:
            if self._ofd:
                raise NotWritable(f"{self.path} cannot be locked ({exc})") from exc
            return False  # two threads on two databases get EDEADLK, and SQLite's locks do there
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, self._me, HOLDER)
        return True

    def _pass(self, wait: bool) -> bool:
        """Pass the turnstile and take the queue."""
        if not self._lock(TURNSTILE, wait):
            return False
        try:
            return self._lock(QUEUE, wait)
        finally:
            self._unlock(TURNSTILE)

    def _holder(self) -> str:
        return visible(os.pread(self._fd, 100, HOLDER).decode(errors="replace").strip()) or "somebody"

    def add(self, worker: int) -> None:
        """Say that a worker of this process is alive, until `discard` or the end of the process."""
        _attend(self, 1)
        with self.mutex:
            self._workers.add(worker)
            try:
                self._refresh(create=True)
                self._take_bytes()
            except (SpevalError, OSError):  # the first transaction tries again, and says so
                self._close()
            self.fill_reserve()

    def discard(self, worker: int) -> None:
        with self.mutex:
            self._workers.discard(worker)
            with contextlib.suppress(OSError):
                if self._fd >= 0 and _identity(self._fd) == self._identity:
                    self._unlock(1 + worker)
            if not self._workers:
                self._close()
                self.spend_reserve()
        _attend(self, -1)

    def fill_reserve(self) -> None:
        """Hold descriptors back, for the case that `func` leaves none for what stores its result."""
        if self._workers and not self._reserve:
            with contextlib.suppress(OSError):
                self._reserve += os.pipe()  # by which nobody else's can be taken for them
                self._reserve.append(os.dup(self._reserve[0]))
                self._reserved = _identity(self._reserve[0])

    def spend_reserve(self) -> None:
        while self._reserve:
            fd = self._reserve.pop()
            if _identity(fd) == self._reserved:  # else `func` has closed it
                os.close(fd)

    def is_dead(self, worker: int) -> bool:
        """Tell whether a worker of any process is dead for sure."""
        if self._fd < 0 or worker in self._workers:
            return False
        if not 0 <= worker < 1 << 48:  # nobody has ever had such an id
            return True
        try:
            return not self._is_locked(1 + worker)
        except OSError:
            return False

    def _is_locked(self, byte: int) -> bool:
        if self._ofd:
            answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, byte))
            return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)
        if not self._lock(byte):
            return True
        self._unlock(byte)
        return False

    def are_settled(self, claims: bool) -> bool:
        """Tell whether every live worker has had the time to take its byte.

        False for some seconds after a server lost ours, or the file was made beside claims in progress,
        that is, after somebody deleted it. To be called in a write transaction or a look, `claims`: are
        there any?
        """
        if self._fd < 0:
            return True
        if time.monotonic() < self._settled:
            return False
        try:
            made = os.pread(self._fd, 20, MADE)
        except OSError:  # the kernel lost our locks, and says so now: the next transaction takes them again
            return False
        if not made:
            made = b"%d" % (time.time() if claims else 0)
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, made, MADE)
        return not made.isdigit() or abs(time.time() - int(made)) >= SETTLE

    def probe(self) -> None:
        """See whether there are locks here, when a wait is long: to SQLite, none are as good as taken ones.

        Raises
        ------
        NotWritable
            If there are none. For those who write, opening the file of locks has told it before.
        """
        if self._fd < 0 and fcntl is not None:
            import tempfile

            try:
                with tempfile.TemporaryFile(dir=os.path.dirname(self.path)) as file:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                if exc.errno in NO_LOCKS:
                    raise self._no_locks(exc) from exc

    def _no_locks(self, exc: OSError) -> NotWritable:
        return NotWritable(
            f"there are no locks on {self.path} ({exc}), without which no database can be used by several"
            " instances: mount it with locks, or use another directory"
        )

    def forget(self) -> None:
        """In a forked child: close the inherited descriptor, or the child would keep our workers alive."""
        self._close()
        self.spend_reserve()
        self._workers.clear()
        self._me = _me()
        self.busy = 0
        self.mutex = threading.RLock()  # of the old one, another thread may be the owner


def _flock(kind: int, byte: int) -> bytes:
    """Return a ``struct flock`` of Linux for one byte of a file."""
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0)


def _identity(file: int | str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _me() -> bytes:
    return f"process {os.getpid()} on {_host()}".ljust(100).encode()[:100]


def _host() -> str:
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "localhost")


def _mount_options(path: str, table: str = "/proc/self/mounts") -> tuple[str, list[str]]:
    """Return the kind of mount of `path`, ``""`` if it is not known, and its options."""
    best, kind, options = "", "", ""
    with contextlib.suppress(OSError), open(table, errors="surrogateescape") as lines:
        for line in lines:
            _, point, its_kind, its_options, *_ = line.split(" ")
            point = point.replace("\\040", " ").rstrip("/") + "/"
            if path.startswith(point) and len(point) >= len(best):
                best, kind, options = point, its_kind, its_options
    return kind, options.split(",")


def _mount(path: str, table: str = "/proc/self/mounts") -> tuple[str, bool, str]:
    """Return the kind of mount of `path`, whether it is a network's, and what keeps its locks local."""
    kind, options = _mount_options(path, table)
    network = kind == "fuse" or kind.startswith(NETWORK_MOUNTS)  # fuseblk is a disk
    return kind, network, next((o for o in options if network and o in LOCAL_LOCKS), "")


@functools.lru_cache(maxsize=1000)
def _is_shared(path: str) -> bool:
    """Tell whether `path` is on a network mount; warn, once, if its locks are none between hosts."""
    _, network, local = _mount(path)
    if local:
        log.warning(
            "%s is on a mount whose locks are local to each host (%s): instances on several hosts will"
            " take each other for dead. Mount it without that option, or run them on one host.",
            path,
            local,
        )
    return network


class Ticker:
    """A thread that calls `action` after some seconds, and again after as many as it says.

    Until `stop`; or until it says None and nobody has called `start` meanwhile.
    """

    def __init__(self, action: Callable[[], float | None]) -> None:
        self._action = action
        self._thread: threading.Thread | None = None
        self._over = (
            threading.Lock()
        )  # the thread ends when it gets it; an Event takes no signal handler inside
        self._starting = threading.RLock()
        self._starts = 0

    def start(self, pause: float) -> None:
        with self._starting:
            self._starts += 1
            _tickers.add(self)
            if self._thread is None or not self._thread.is_alive():
                self._over = over = threading.Lock()
                over.acquire()
                self._thread = threading.Thread(
                    target=self._run, args=(over, pause), name="speval", daemon=True
                )
                with contextlib.suppress(RuntimeError):  # no more threads are to be had: it does not tick
                    self._thread.start()

    def _run(self, over: Any, pause: float) -> None:
        if hasattr(signal, "pthread_sigmask"):  # they are to wake the main thread
            signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        while not over.acquire(timeout=max(pause, 0.0)):
            starts = self._starts
            again = self._action()
            if again is None:
                with self._starting:
                    if starts == self._starts and over is self._over and self._thread is not None:
                        self._thread = None
                        _tickers.discard(self)
                        return
            pause = again or 0.0

    def stop(self) -> None:
        """End the thread, and wait for what it does just now."""
        with self._starting:
            _tickers.discard(self)
        self.pause(None)

    def pause(self, patience: float | None) -> None:
        """End the thread until `go_on`; wait for what it does just now, at most `patience` seconds."""
        with self._starting:
            thread, self._thread = self._thread, None
            with contextlib.suppress(RuntimeError):  # a signal handler was quicker
                self._over.release()
        if thread is not None and thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # it has not begun
                thread.join(patience)

    def go_on(self) -> None:
        with self._starting:
            if self in _tickers:  # nobody has stopped it meanwhile
                self.start(0.0)


_tickers: set[Ticker] = set()  # that have been started and not stopped


class Wait:
    """Something that may take long: what to say of it, since when, and when to say it next."""

    def __init__(self, message: Callable[[], str]) -> None:
        self.message = message
        self.began = time.monotonic()
        self.due = self.began + LONG_WAIT


_waits: set[Wait] = set()


def _say_what_takes_long() -> float | None:
    now = time.monotonic()
    for wait in [wait for wait in list(_waits) if wait.due <= now]:
        wait.due = 2 * now - wait.began  # at twice the time, four times, and so on
        log.warning("%s: for %.0f s by now", wait.message(), now - wait.began)
    return min((wait.due - now for wait in list(_waits)), default=None)


_notices = Ticker(_say_what_takes_long)


@contextlib.contextmanager
def _notice(message: Callable[[], str]) -> Iterator[None]:
    """Say so when the block takes long; from another thread, because this one waits in the kernel.

    That stays for the next block, until there is none for some time: to start it takes 0.2 ms.
    """
    wait = Wait(message)
    _waits.add(wait)
    _notices.start(LONG_WAIT)
    try:
        yield
    finally:
        _waits.discard(wait)


_gate = threading.RLock()  # a fork holds it, and so does who begins or ends to use a database
_in_use: collections.Counter[Locks] = collections.Counter()  # by threads in transactions, and by workers
_all_locks: weakref.WeakValueDictionary[str, Locks] = weakref.WeakValueDictionary()


class _Fork(NamedTuple):
    """What a fork that is under way has held up."""

    mask: set[Any]
    tickers: list[Ticker]
    transactions: contextlib.ExitStack


_forks = threading.local()  # `stack`: those of this thread that are under way, the innermost last


def _is_in_transaction() -> bool:
    """Tell whether this thread is in a transaction: then a signal handler asks, which has interrupted it."""
    me = threading.get_ident()
    return any(locks.busy == me for locks in list(_in_use))


@contextlib.contextmanager
def _at_gate() -> Iterator[None]:
    with contextlib.nullcontext() if _is_in_transaction() else _gate:
        yield


def _attend(locks: Locks, number: int) -> None:
    with _at_gate():
        _in_use[locks] += number
        if _in_use[locks] <= 0:
            del _in_use[locks]


@contextlib.contextmanager
def _attending(locks: Locks) -> Iterator[None]:
    _attend(locks, 1)
    try:
        yield
    finally:
        _attend(locks, -1)


def _hold_up_transactions(held: contextlib.ExitStack) -> None:
    """Let no other thread of this process be in a transaction, nor begin one, until `held` is closed."""
    if _is_in_transaction():  # of a signal handler's: whoever forks elsewhere waits for that
        return
    held.enter_context(_gate)
    lacking: Any = _gate
    while lacking is not None:
        with lacking:  # and with no other in hand, which its owner may need in a signal handler
            pass
        with contextlib.ExitStack() as ours:
            mutexes = [locks.mutex for locks in list(_in_use)]
            lacking = next((mutex for mutex in mutexes if not _acquired(mutex, ours)), None)
            if lacking is None:
                held.push(ours.pop_all())


def _acquired(mutex: Any, held: contextlib.ExitStack) -> bool:
    got: bool = mutex.acquire(blocking=False)
    if got:
        held.callback(mutex.release)
    return got


def _before_fork() -> None:
    """Let no fork happen inside a transaction of another thread: the child would inherit it half done.

    Nor beside a thread of ours: a process with several threads is not to be forked. Signals wait too:
    what they raise here is lost, and one that reaches the child before that is ready, Python forgets.
    """
    fork = _Fork(signal.pthread_sigmask(signal.SIG_BLOCK, ()), [], contextlib.ExitStack())
    vars(_forks).setdefault("stack", []).append(fork)
    signal.pthread_sigmask(signal.SIG_BLOCK, [*HANDLED, signal.SIGCHLD])  # may raise: the old mask is kept
    for ticker in [ticker for ticker in list(_tickers) if ticker is not _notices]:
        fork.tickers.append(ticker)
        ticker.pause(1.0)  # not longer: it may wait for a log handler that forks
    _hold_up_transactions(fork.transactions)
    _notices.pause(1.0)  # last, for it may have to say what we have waited for


def _after_fork() -> None:
    stack: list[_Fork] = vars(_forks).get("stack", [])
    if not stack:  # the hooks were not there when it began
        return
    fork = stack.pop()
    fork.transactions.close()
    for ticker in fork.tickers:
        ticker.go_on()
    if hasattr(signal, "sigtimedwait"):
        # What their handlers raise would be lost here.
        for signum in signal.sigpending() & set(HANDLED) - fork.mask:
            if signal.sigtimedwait([signum], 0) is not None:
                _send_again(signum)
    signal.pthread_sigmask(signal.SIG_SETMASK, fork.mask)


def _after_fork_in_child() -> None:
    for locks in list(_in_use):
        locks.forget()
    _in_use.clear()
    _tickers.clear()
    for fork in vars(_forks).get("stack", ()):
        fork.tickers.clear()
    _give_up_handlers()
    _after_fork()


def _is_forking(frame: types.FrameType | None) -> bool:
    """Tell whether a signal has come in one of these hooks, where what its handler raises would be lost.

    Or in the warning of Python 3.12 that there are other threads, where it would be, too.
    """
    hooks = (_before_fork.__code__, _after_fork.__code__, _after_fork_in_child.__code__)
    while frame is not None and frame.f_code not in hooks and frame.f_globals is not vars(warnings):
        frame = frame.f_back
    return frame is not None


@functools.cache
def _watch_forks() -> None:
    """Have the hooks called from now on; a process that only imports this module needs none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
        )


EMPTY, OF_0_1_1, CURRENT = range(3)
MAX_PATH = 504  # bytes; SQLite takes 512, "-journal" included
DOUBTS = 5  # times in a row that a database on a network mount may look damaged before it is called so


class Database:
    """The evaluations in one sqlite3 file. Each transaction opens it and closes it again.

    So no connection is open while `func` runs, and nothing that `func` does to descriptors or by
    forking can hurt the database. But for that of a watchdog, which works only where `Locks.are_sure`.
    """

    def __init__(self, fname: str | os.PathLike[str]) -> None:
        name = os.fsdecode(fname)
        if not name:
            raise ValueError("the file name of the database is empty")
        self.path = os.path.realpath(name)
        length = len(os.fsencode(self.path))
        if length > MAX_PATH and os.name == "posix":
            raise ValueError(f"{self.path} has {length} bytes, SQLite takes {MAX_PATH}: use a shorter path")
        self._opened = False
        self._doubts = 0  # in a row, whether it is damaged
        _watch_forks()
        locks = Locks(self.path)
        with _at_gate():
            self.locks = _all_locks.setdefault(self.path, locks)

    def read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Open a transaction that reads. No file is made."""
        return self._transaction("BEGIN", "rw")

    @contextlib.contextmanager
    def glance(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that reads, without waiting for anybody: `SpevalError` if it cannot at once.

        It does not queue: so it must not take the journal of somebody at work for one to roll back.
        """
        with self.locks.opened(create=False), self._connected("ro") as conn:
            conn.execute("PRAGMA busy_timeout = 20")  # milliseconds: a commit takes one
            conn.execute("BEGIN")
            yield conn

    def write(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Open a transaction that writes. No file is made."""
        return self._transaction("BEGIN IMMEDIATE", "rw")

    def create(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Open a transaction that writes, in a new file if there is none."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        return self._transaction("BEGIN IMMEDIATE", "rwc")

    @contextlib.contextmanager
    def _transaction(self, begin: str, mode: str) -> Iterator[sqlite3.Connection]:
        writes = begin != "BEGIN"
        create = writes and (mode == "rwc" or os.path.exists(self.path))
        with self.locks.opened(create):
            mode = mode if writes or self.locks.may_repair else "ro"
            self.locks.spend_reserve()
            with self.locks.turn(), self._connected(mode) as conn:
                self._opened = True
                if writes:
                    self._patiently(conn, "PRAGMA journal_mode = TRUNCATE")
                    conn.execute("PRAGMA synchronous = FULL")
                    self._patiently(conn, begin)
                else:
                    conn.execute("PRAGMA query_only = ON")
                    conn.execute(begin)
                    self._patiently(conn, "PRAGMA user_version")  # it is the first read that locks
                self.locks.make_sure()
                yield conn
                self._patiently(conn, "COMMIT")
            self._doubts = 0

    @contextlib.contextmanager
    def _connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        pid, conn = os.getpid(), None
        try:
            conn = self._connect(mode)
            yield conn
        except (sqlite3.Error, UnicodeDecodeError) as exc:  # the latter for messages of the former
            raise self._explained(exc) from exc
        finally:
            if conn is not None:
                (_close if os.getpid() == pid else _keep_open)(conn)

    def _connect(self, mode: str) -> sqlite3.Connection:
        path = self.path.replace("\\", "/") if os.name == "nt" else self.path
        path = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        url = f"file://{path if path.startswith('/') else '/' + path}?mode={mode}"
        conn = sqlite3.connect(url, timeout=1.0, isolation_level=None, uri=True)
        conn.execute("PRAGMA trusted_schema = OFF")
        return conn

    def _patiently(self, conn: sqlite3.Connection, statement: str) -> None:
        """Execute what takes or gives up a lock of SQLite, and wait for as long as others keep it busy."""
        if _executed(conn, statement):
            return
        self.locks.probe()
        with _notice(lambda: "waiting for a process that keeps the database locked"):
            while not _executed(conn, statement):
                time.sleep(0.01)

    def format(self, conn: sqlite3.Connection) -> int:
        """Return EMPTY, OF_0_1_1 or CURRENT; `SpevalError` for a database of something else."""
        ((application,),) = conn.execute("PRAGMA application_id").fetchall()
        ((version,),) = conn.execute("PRAGMA user_version").fetchall()
        if application == APPLICATION_ID:
            if version == FORMAT:
                return CURRENT
            raise SpevalError(f"{self.path} has format {version}, this speval knows {FORMAT}: upgrade speval")
        if application or version:
            raise SpevalError(f"{self.path} is a database of something else: name another file")
        columns = [column for _, column, *_ in conn.execute("PRAGMA table_info(evals)").fetchall()]
        if columns == COLUMNS_0_1_1:
            return OF_0_1_1
        if columns or conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall():
            raise SpevalError(f"{self.path} is a database of something else: name another file")
        return EMPTY

    def _explained(self, exc: Exception) -> SpevalError:
        code = _code(exc)
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            if self._opened:
                return SpevalError(f"{self.path} was deleted while it was in use: start again")
            return NotWritable(f"{self.path} cannot be made ({exc}): may you write to its directory?")
        except OSError as reason:
            return NotWritable(f"{self.path} cannot be reached ({reason})")
        if stat.S_ISDIR(found.st_mode):
            return SpevalError(f"{self.path} is a directory, not a database")
        if code in (SQLITE_READONLY, SQLITE_CANTOPEN):
            return NotWritable(
                f"{self.path} cannot be opened ({exc}): that needs write permission for the file and its"
                " directory, also to read it after a worker was killed in the middle of a transaction;"
                " and a file descriptor"
            )
        if code in (SQLITE_FULL, SQLITE_IOERR):
            return NotWritable(f"{self.path} cannot be written ({exc}): is the disk full, or a quota?")
        if code == SQLITE_NOTADB:
            return SpevalError(f"{self.path} is not a database: name another file")
        self._doubts += 1
        if self.locks.shared and self._doubts <= DOUBTS:  # it may have read what others were writing
            return NotWritable(f"{self.path} looks damaged ({_message(exc)}): has its server lost our locks?")
        if code == SQLITE_CORRUPT:
            return SpevalError(
                f"{self.path} is damaged ({exc}): when no instance runs, `sqlite3 {self.path} .recover` saves"
                " what can be read"
            )
        return SpevalError(f"{self.path} is not as speval made it ({_message(exc)})")


def _executed(conn: sqlite3.Connection, statement: str) -> bool:
    try:
        conn.execute(statement).fetchall()
    except sqlite3.OperationalError as exc:
        if _code(exc) in (SQLITE_BUSY, SQLITE_PROTOCOL):
            return False
        raise
    return True


def _close(conn: sqlite3.Connection) -> None:
    """Close a connection; what was not committed is rolled back, if only by the next who opens it."""
    with contextlib.suppress(sqlite3.Error):
        if conn.in_transaction:
            conn.execute("ROLLBACK")
    conn.close()


def _keep_open(conn: sqlite3.Connection) -> None:
    """Never close what a child has inherited in mid transaction: its parent's would be rolled back."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))


def add_space(db: Database, space: Space, func: str) -> bool:
    """Make sure that the database has the evaluations of `space`; tell whether anything is left to do.

    Atomic: all or none is added. That it was seen is kept with its fingerprint, so that a further instance
    only has to compare that.

    Raises
    ------
    SpaceMismatch
        If an evaluation has other arguments in the database. Nothing is added then.
    """
    if os.path.exists(db.path):
        if os.path.isfile(db.path) and os.stat(db.path).st_nlink > 1:
            raise SpevalError(
                f"{db.path} has a second name, a hard link: locks do not work so, copy the file"
            )
        with Signals(), db.read() as conn:
            known = db.format(conn) == CURRENT and _is_known(conn, space)
            if known:
                first, left = conn.execute(FIRST_FUNC).fetchall(), any(_left(conn))
    else:
        known = False
    if not known:
        with Signals(), db.create() as conn:
            first, left = _add_space(db, conn, space, func), any(_left(conn))
    for (name,) in first:
        if name != func:
            log.warning("%s was made for the function %s, now comes %s", db.path, visible(name), func)
    return left


def _left(conn: sqlite3.Connection) -> tuple[bool, bool]:
    """Tell whether any evaluations are pending, and whether any are in progress."""
    ((pending, in_progress),) = conn.execute(LEFT).fetchall()
    return bool(pending), bool(in_progress)


def _is_known(conn: sqlite3.Connection, space: Space) -> bool:
    return bool(conn.execute(KNOW_SPACE, {"fingerprint": space.fingerprint}).fetchall())


def _bring_up_to_date(db: Database, conn: sqlite3.Connection) -> int:
    """Make the tables, or those of speval 0.1.1 into today's; return what was found."""
    found = db.format(conn)
    for statement in {EMPTY: CREATE, OF_0_1_1: UPGRADE_0_1_1, CURRENT: ()}[found]:
        conn.execute(statement)
    return found


def _add_space(db: Database, conn: sqlite3.Connection, space: Space, func: str) -> list[tuple[str]]:
    found = _bring_up_to_date(db, conn)
    first = conn.execute(FIRST_FUNC).fetchall()
    now = time.time()
    if not _is_known(conn, space):
        new = space if found == EMPTY else _new(db, conn, space)
        with _notice(lambda: f"adding to {db.path}, {space.position} of {space.size} evaluations so far"):
            conn.executemany(ADD_EVAL, ((name, now, args) for name, args in new))
        conn.execute(
            KEEP_SPACE,
            {"fingerprint": space.fingerprint, "size": space.size, "func": func, "now": now},
        )
    return first


def _new(db: Database, conn: sqlite3.Connection, space: Space) -> Iterator[tuple[str, str]]:
    """Yield the evaluations that are not in the database; the others must be as they are there."""
    for name, args in space:
        stored = conn.execute(LOOKUP_EVAL, {"name": name}).fetchall()
        if not stored:
            yield name, args
        elif stored[0][1] != args:
            was = _from_json(stored[0][1], f"the arguments of evaluation {name!r} of {db.path}")
            if _sorted(was) != _sorted(json.loads(args)):
                raise SpaceMismatch(db.path, name, was, json.loads(args))


def _sorted(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


class Claim(NamedTuple):
    """An evaluation that a worker holds; `id` and `attempt` together are given out once."""

    id: int
    name: str
    args: str
    attempt: int
    losses: int


class Outcome(NamedTuple):
    """How an evaluation ended: a result, as JSON, or an error; and when it was called and came back."""

    claim: Claim
    result: str | None
    error: str | None
    started: float
    ended: float


DIED, STALLED, UNKNOWN = "died", "ran past the timeout", "is unknown"


class Loss(NamedTuple):
    """A worker whose claims are to be taken from it, and why."""

    worker: int | None
    who: str
    why: str


def claim(conn: sqlite3.Connection, worker: int, room: int) -> list[tuple[Any, ...]]:
    """Claim up to `room` pending evaluations, the first of the space; one that was lost before alone.

    Return rows, of which a `Claim` each is made after the transaction.
    """
    claims: list[tuple[Any, ...]] = []
    size = 0
    room = min(room, _share(conn, room))
    with contextlib.closing(conn.execute(FIND_PENDING, {"room": room})) as cursor:
        for row in cursor:
            claims.append(row)
            _, _, args, _, losses = row
            size += len(args) if isinstance(args, str) else 0
            if losses or size > CHUNK_SIZE:
                break
    if len(claims) > 1 and losses:
        claims.pop()
    if claims:
        facts = {"last": claims[-1][0], "worker": worker, "now": time.time()}
        if conn.execute(CLAIM, facts).rowcount != len(claims):
            raise sqlite3.DatabaseError("its index of pending evaluations is not right")
    return claims


def _share(conn: sqlite3.Connection, room: int) -> int:
    """Return how many of `room` evaluations a worker may claim, for all workers to end together.

    Half of its part of what is left: guided self-scheduling (Polychronopoulos and Kuck, 1987).
    """
    pending = conn.execute(FIRST_PENDING).fetchall() if room > 1 else []
    if not pending:
        return room
    # Evaluations are claimed for the first time in the order of their ids: from a fresh one on all are.
    ((attempt, left, workers),) = pending
    if attempt:
        ((left,),) = conn.execute(COUNT_SOME_PENDING, {"room": 2 * workers * room}).fetchall()
    return int(max(1, left // max(1, 2 * workers)))


class Endings(NamedTuple):
    """Outcomes as rows of what completes or fails their evaluations, made before the transaction."""

    outcomes: list[Outcome]
    completed: list[tuple[Any, ...]]
    failed: list[tuple[Any, ...]]


def endings(worker: int, outcomes: list[Outcome]) -> Endings:
    completed, failed = [], []
    for (id, _, _, attempt, _), result, error, started, ended in outcomes:
        if error is None:
            completed.append((result, worker, started, ended, id, attempt))
        else:
            failed.append((error, worker, started, ended, id, attempt))
    return Endings(outcomes, completed, failed)


def finish(conn: sqlite3.Connection, worker: int, ended: Endings) -> list[bool]:
    """Complete or fail evaluations; False for each whose claim does not count any more.

    A late result, of a claim that was lost, is stored as long as there is no other result; a late
    error is not. After a reset neither is.
    """
    stored = conn.executemany(COMPLETE, ended.completed).rowcount if ended.completed else 0
    stored += conn.executemany(FAIL, ended.failed).rowcount if ended.failed else 0
    if stored == len(ended.outcomes):
        return [True] * stored
    return [_is_stored(conn, worker, outcome) for outcome in ended.outcomes]


def _is_stored(conn: sqlite3.Connection, worker: int, outcome: Outcome) -> bool:
    facts = {**outcome.claim._asdict(), "worker": worker, "started": outcome.started, "now": outcome.ended}
    if conn.execute(IS_HELD, facts).fetchall():  # we would wait for ourselves
        raise sqlite3.DatabaseError("it does not take the end of an evaluation")
    return bool(conn.execute(IS_STORED, facts).fetchall())


def reclaim(conn: sqlite3.Connection, lost: Iterable[Loss], max_attempts: int) -> list[str]:
    """Give the claims of lost workers back, or fail those lost too often; return what to say of it."""
    said = []
    now = time.time()
    for loss in lost:
        names = [name for (name,) in conn.execute(CLAIMS_OF, {"worker": loss.worker}).fetchall()]
        facts = {"worker": loss.worker, "now": now, "max_attempts": max_attempts}
        conn.execute(RECLAIM, facts)
        if conn.execute(CLAIMS_OF, facts).fetchall() or (loss.why == UNKNOWN and not names):
            raise sqlite3.DatabaseError("its index of evaluations in progress is not right")
        if loss.why == DIED:
            conn.execute(MARK_ENDED, {"worker": loss.worker, "ended": now})
        if names:
            said.append(f"reclaimed {_some(names)}: {loss.who} {loss.why}")
    return said


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"evaluation{'s' * (len(names) > 1)} {', '.join(map(visible, names[:3]))}{more}"


LOOK = 5.0  # seconds after which a busy worker looks after the others
QUICK = 0.001  # seconds in which no program runs
MOMENT, SHORT_MOMENT = 0.5, 0.2  # seconds, at most, until an interrupt that a program has got comes to us too
POLL = 0.1  # seconds, at most, between two looks of a waiting one
STILL_WAITING = 60.0  # seconds after which a waiting worker says for whom; doubled each time

# The evaluations that run now in this context, the innermost last: path of the database and claim.
_running: contextvars.ContextVar[tuple[tuple[str, Claim], ...]] = contextvars.ContextVar("speval", default=())
# What the main thread works on, and the threads that were there when it began.
_at_work: list[tuple[str, list[threading.Thread]]] = []


BATCH = 0.2  # seconds of work, at most, that a worker claims before the last evaluation of a batch
BATCH_ROOM = 2000  # evaluations, at most
ALONE = 0.1  # seconds; evaluations that take longer are claimed one by one, unless others queue
SHARE = 0.01  # of its time, that a worker would spend on transactions, and on waiting for interrupts


class Pace:
    """How many evaluations a worker claims at once: so many that transactions take little of its time.

    Attributes
    ----------
    room : int
        That number. It grows at most twofold from batch to batch.
    limit : float
        Seconds in which all of a batch should be done, or begun if they are long.
    old : float
        Seconds after which the rest of a batch is given back.
    stale : float
        Seconds after its claim from which on a batch may soon be somebody else's.
    long : float
        Seconds after which nothing is to wait for an evaluation any more.
    """

    def __init__(self, timeout: float | None) -> None:
        self.room = 1
        self.limit = BATCH if timeout is None else min(BATCH, timeout / 4)
        self.old, self.long = 1.25 * self.limit, 0.75 * self.limit
        self.stale = float("inf") if timeout is None else max(timeout / 2, BATCH)
        self._slowest = self._waiting = self._writing = 0.0

    def learn(self, number: int, seconds: float, waiting: float, writing: float) -> None:
        """Take in that `number` evaluations took `seconds`, and the transaction before them the others."""
        self._slowest = max(seconds / number, self._slowest / 2, 1e-9)  # of the recent batches
        self._waiting += (waiting - self._waiting) / 4
        self._writing += (writing - self._writing) / 4
        cost = self._waiting + (self._writing if self._slowest < ALONE else 0.0)
        wanted = 1 + int(cost / (SHARE * self._slowest))
        in_time = 1 + int(self.limit / self._slowest + 0.2) if self._slowest < self.long else 1
        self.room = min(wanted, 2 * self.room, BATCH_ROOM, in_time)


@contextlib.contextmanager
def _known_at_work(path: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _at_work.append((path, threading.enumerate()))
    try:
        yield
    finally:
        _at_work.pop()


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
        self._programs = _programs_ended()
        self._since = float("inf")  # when the evaluation of a batch began that runs now
        self._claimed = (0.0, 0.0)  # when the batch was claimed, by our clock and by the wall's
        self._exchanging = threading.Lock()  # the loop, or the watchdog
        self._watchdog = Ticker(self._watch)
        self._signals = Signals()
        self._pid = os.getpid()
        self._joined = False
        self._looked = -float("inf")
        self._seen: dict[int, tuple[object, float]] = {}  # worker: its oldest claim, first seen then

    def work(self, func: Callable[[Any], Any], max_failures: int | None, wait: bool) -> dict[str, int] | None:
        """Claim, evaluate and store until nothing is left; at the end, or when interrupted, leave."""
        with self._signals, _known_at_work(self._db.path):
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
            claimed = self._insist(lambda: self.exchange(self._room()))
            if not claimed and not (wait and self._wait()):
                return
            for outcome in self._evaluate_batch(func):
                evaluated += 1
                failed += outcome.error is not None
                if failed == evaluated == max_failures:
                    raise SpevalError(
                        f"the first {failed} evaluations of this instance all failed, the last with"
                        f" {_last_line(outcome.error)}: mend the cause, then reset_evals() and start"
                        " again; or set max_failures"
                    )

    def _room(self) -> int:
        """Return how many evaluations to claim; one, if the first loss is the last: it costs the batch."""
        return self._pace.room if self._max_attempts > 1 else 1

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
                self._running = claim = self.todo.popleft()
            except IndexError:  # the watchdog was quicker
                break
            started = ended
            result, error = self._evaluate(func, claim)
            ended = time.time()
            self._heed_interrupts(result, error)
            outcome = Outcome(claim, result, error, started, ended)
            self.done.append(outcome)
            self._since = self._clock()
            number += 1
            size += len(result or error or "")
            age = max(self._since - began, abs(ended - began_at))
            yield outcome
        self._since = float("inf")
        if number:
            self._pace.learn(number, self._clock() - began, *self._cost)

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
        running = _running.set((*_running.get(), (self._db.path, claim)))
        try:
            args = _from_json(claim.args, "the arguments")
            result = self._signals.let_through(func, args)
        except (KeyboardInterrupt, SystemExit, _Terminated):
            raise
        except BaseException as exc:  # noqa: BLE001 - asyncio.CancelledError and what extensions raise
            self._stay_out_of_children(exc)
            return None, _traceback(exc)
        finally:
            _running.reset(running)
        self._stay_out_of_children(None)
        try:
            return _to_json(result), None
        except TypeError as exc:
            return None, f"func returned {_repr(result)}\nTypeError: {exc}"

    def _heed_interrupts(self, result: str | None, error: str | None) -> None:
        """Let nothing be stored of an evaluation that ended by an interrupt, if only `func` caught that.

        Who interrupts all processes may have told a program of `func` before he tells us: so wait for that,
        longer if it looks so, by an error or a return code.
        """
        ran = self._clock() - self._since
        if ran > QUICK and self._signals.handlers:
            programs, self._programs = self._programs, _programs_ended()
            if self._programs != programs:
                bad = error or (result or "").lstrip("-").strip("0").isdigit()
                self._signals.let_through(self._sleep, MOMENT if bad else min(SHARE * ran, SHORT_MOMENT))
        if self._signals.interrupt is not None:
            raise self._signals.interrupt

    def _stay_out_of_children(self, exc: BaseException | None) -> None:
        if os.getpid() != self._pid:
            raise SpevalError("func came back in a process that it forked: end that with os._exit()") from exc

    def exchange(self, room: int, since: float | None = None) -> int:
        """Store what is done, release what is not started, and claim up to `room` evaluations, atomically.

        Return how many were claimed. Also called by the watchdog, with no room, and only for as long as
        the evaluation runs that began at `since`.

        After an error it may have been stored, or not: so what is not started is not evaluated, and who
        claims releases all that he holds first.
        """
        began = self._clock()
        said: list[str] = []
        with self._exchanging:
            if since not in (None, self._since):
                return 0
            outcomes, unstarted = self.done[:], self._unstarted()
            ended = endings(self.id, outcomes)
            with self._db.write() as conn:
                waiting = self._clock() - began
                self._check_in(conn)
                stored = finish(conn, self.id, ended)
                if room or unstarted:
                    self._release(conn, -(2**63) if room else unstarted[0].id)
                if self._clock() - self._looked >= min(LOOK, (self._timeout or LOOK) / 4):
                    said = reclaim(conn, self._lost(conn), self._max_attempts)
                    self._looked = self._clock()
                rows = claim(conn, self.id, room)
            self._joined = True
            del self.done[: len(outcomes)]
            claims = list(map(Claim._make, rows))
            self.todo.extend(claims)
            if room:
                self._claimed = self._clock(), time.time()
                self._cost = waiting, self._claimed[0] - began - waiting
        for line in said:
            log.warning("%s", line)
        self._log_finished(outcomes, stored)
        if log.isEnabledFor(logging.INFO):
            for taken in claims:
                log.info("claimed evaluation %s, attempt %s", taken.name, taken.attempt)
        return len(claims)

    def _unstarted(self) -> list[Claim]:
        """Take back what is not started. From the right: so the loop starts none behind the first of it."""
        claims: list[Claim] = []
        with contextlib.suppress(IndexError):
            while True:
                claims.append(self.todo.pop())
        return claims[::-1]

    def _release(self, conn: sqlite3.Connection, first: int) -> None:
        conn.execute(RELEASE, {"worker": self.id, "first": first, "now": time.time()})

    def leave(self) -> dict[str, int] | None:
        """Store what is done, release all other claims and mark the worker as ended, atomically.

        When everything is finished it marks all workers: the others only have to see that. Return the
        number of evaluations by status, None if it could not be done.
        """
        self._watchdog.stop()
        if not self._joined:
            return None
        try:
            if not self.done:
                with self._db.read() as conn:
                    if conn.execute(LOOKUP_WORKER, {"worker": self.id}).fetchall() not in ([], [(None,)]):
                        return _count(conn)
            with self._db.write() as conn:
                self._check_in(conn)
                stored = finish(conn, self.id, endings(self.id, self.done))
                said = self._give_up_claims(conn)
                conn.execute(MARK_ENDED, {"worker": self.id, "ended": time.time()})
                conn.execute(MARK_ALL_ENDED, {"now": time.time()})
                counts = _count(conn)
        except SpevalError as exc:
            log.error("%s", exc)
            for claim, result, error, _, _ in self.done:
                kept = _cut(result or error or "", MAX_ERROR)
                log.error("not stored: evaluation %s: %s", visible(claim.name), kept)
            return None
        for line in said:
            log.warning("%s", line)
        self._log_finished(self.done, stored)
        return counts

    def _give_up_claims(self, conn: sqlite3.Connection) -> list[str]:
        """Release all claims; but one that was interrupted only after the timeout is a loss."""
        ran = self._clock() - self._since
        if self._timeout is None or self._running is None or ran < self._timeout:
            self._release(conn, -(2**63))
            return []
        self._release(conn, self._running.id + 1)
        return reclaim(conn, [Loss(self.id, _me().decode().strip(), STALLED)], self._max_attempts)

    def _insist(self, action: Callable[[], T]) -> T:
        pause = 1.0
        while True:
            try:
                return action()
            except NotWritable as exc:
                if not self._joined:
                    raise
                log.warning(
                    "%s (%d finished evaluations are kept in memory, next try in %d s)",
                    exc,
                    len(self.done),
                    pause,
                )
            self._signals.let_through(self._sleep, pause)
            pause = min(2 * pause, 60.0)

    def _check_in(self, conn: sqlite3.Connection) -> None:
        """Enter the worker, once; after that it has to be there, or the database is another one."""
        if not self._joined and self._db.format(conn) == CURRENT:
            facts = {"worker": self.id, "host": _host(), "pid": self._pid, "now": time.time()}
            conn.execute(JOIN, facts)
            return
        try:
            found = conn.execute(LOOKUP_WORKER, {"worker": self.id}).fetchall()
        except sqlite3.OperationalError:  # no such table
            found = []
        if not found:
            raise SpevalError(f"{self._db.path} was replaced while it was in use: start again")
        if found[0][0] is not None:  # somebody took us for dead
            conn.execute(MARK_ENDED, {"worker": self.id, "ended": None})

    def _lost(self, conn: sqlite3.Connection) -> list[Loss]:
        """Return the workers that are dead, and those that are stalled.

        Stalled: the oldest claim has been the same for `timeout` seconds of our own monotonic clock,
        since we first saw it. Clocks of other hosts may say anything.
        """
        pending, in_progress = _left(conn)
        settled = self._db.locks.are_settled(in_progress)
        now = self._clock()
        seen, self._seen = self._seen, {}
        lost = []
        for worker, host, pid in conn.execute(LIVE_WORKERS, {"worker": self.id}).fetchall():
            if self._db.locks.is_dead(worker):
                if settled:
                    lost.append(Loss(worker, f"process {pid} on {host}", DIED))
            elif self._timeout is not None:
                oldest = conn.execute(OLDEST_CLAIM, {"worker": worker}).fetchall()
                before, since = seen.get(worker, (None, now))
                self._seen[worker] = (oldest, since if oldest == before else now)
                if oldest and now - self._seen[worker][1] >= self._timeout:
                    lost.append(Loss(worker, f"process {pid} on {host}", STALLED))
        if not pending:
            unknown = conn.execute(UNKNOWN_HOLDERS).fetchall()
            lost += [Loss(worker, f"worker {worker}", UNKNOWN) for (worker,) in unknown]
        return lost

    def _wait(self) -> bool:
        """Wait until there is something to claim or to reclaim; False if everything is finished."""
        began, pause, say = self._clock(), 0.02, STILL_WAITING
        while True:
            looking = self._clock()
            pending, in_progress, lost = self._insist(self._look)
            took = self._clock() - looking
            if pending or lost:
                self._looked = -float("inf")
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
            self._signals.let_through(self._sleep, max(pause, 2 * took))  # most of the time, if many look
            pause = min(2 * pause, POLL)

    def _look(self) -> tuple[bool, bool, list[Loss]]:
        with self._db.read() as conn:
            return (*_left(conn), self._lost(conn))

    def _whom(self) -> str:
        with self._db.read() as conn:
            rows = conn.execute(IN_PROGRESS).fetchall()
        return ", ".join(
            visible(f"evaluation {name}, for {time.time() - (started or 0):.0f} s on {host} (process {pid})")
            for name, started, host, pid in rows
        )

    def _log_finished(self, outcomes: list[Outcome], stored: list[bool]) -> None:
        told = log.isEnabledFor(logging.INFO)
        for (claim, _, error, started, ended), accepted in zip(outcomes, stored):
            if not accepted:
                log.warning(
                    "dropped what came late for evaluation %s, attempt %s", visible(claim.name), claim.attempt
                )
            elif error is not None:
                log.warning("evaluation %s failed: %s", visible(claim.name), _last_line(error))
            elif told:
                log.info("completed evaluation %s in %.3g s", claim.name, ended - started)


def _programs_ended() -> int:
    """Return a number that changes when a child process has ended and was waited for."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt


def _last_line(text: str | None) -> str:
    """Return the last line with a word in it: the traceback of an exception group ends with a rule."""
    lines = reversed((text or "").splitlines())
    return visible(_cut(next((line for line in lines if re.search(r"\w", line)), "")))


def _traceback(exc: BaseException) -> str:
    """Return the traceback of an exception from `func`, without our own frames, fit for UTF-8."""
    tb = exc.__traceback__
    while tb and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    try:
        text = "".join(traceback.format_exception(type(exc), exc, tb))
    except Exception as more:  # noqa: BLE001 - of a strange exception, any part may raise
        text = f"{type(exc).__name__}, whose traceback cannot be formatted: {_message(more)}\n"
    return _plain(text, MAX_ERROR)


def _repr(value: Any) -> str:
    try:
        return _plain(repr(value), 10_000)
    except Exception as exc:  # noqa: BLE001 - a repr may raise anything
        return f"a {type(value).__name__} whose repr raises {type(exc).__name__}"


def _func_name(func: Callable[[Any], Any]) -> str:
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", None)
    return name if isinstance(name, str) else type(func).__qualname__


def speval(
    func: Callable[[Any], Any],
    eval_space: Mapping[Any, Any] | Iterable[Any],
    evals_fname: str | os.PathLike[str],
    timeout: float | None = None,
    *,
    n_jobs: int = 1,
    max_attempts: int = 3,
    max_failures: int | None = 10,
    wait: bool = True,
    progress: bool = False,
) -> dict[str, int]:
    """Evaluate `func` for each of the arguments in `eval_space`, together with all other instances.

    Makes the database if there is none, adds what is new in `eval_space`, then claims pending
    evaluations, calls `func` for each and stores what it returns, until nothing is left. Start the
    same script as often as you like, at any time, on every host that mounts the directory.

    Parameters
    ----------
    func : callable
        Called with the arguments of one evaluation, as they are after a way through JSON (a tuple is
        a list then). What it returns is stored as JSON; NumPy scalars and arrays are converted.
        An exception that it raises is stored as the evaluation's error.
    eval_space : iterable or dict
        Arguments of each evaluation, anything that JSON has. The evaluations are called "0", "1", ...
        or by the keys of a dict. It may be longer than what is stored, or have new names: these are
        added. It is read once, before anything else, and not kept in memory.
    evals_fname : str or path-like
        File name of the sqlite3 database. Missing directories are made.
    timeout : float, optional
        Seconds, > 0, after which an evaluation is presumed stalled and given to another worker. By
        default none ever is: death of a process is noticed without it. A worker process of `n_jobs` that
        is past it is ended, by SIGTERM and 2 s later SIGKILL, and replaced.
    n_jobs : int
        Number of worker processes on this host, >= 1; -1: one for each CPU that this process may use, by
        its affinity and the quota of its cgroup. With 1, the default, this process evaluates; otherwise
        it only starts the others, by a fork on Linux, replaces those that die, and ends them all before
        it ends itself.
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
        at the start; if all of the first `max_failures` evaluations failed; inside `func`, if it is on
        the database whose evaluation runs; if worker processes cannot be started, or not be forked because
        this process has other threads: it says what to do.
    OSError
        If a directory or the temporary file for the space cannot be made.

    Notes
    -----
    Evaluations are finished in the same transaction in which the next are claimed; after that no crash
    takes their results back. Short ones are claimed in batches that begin within 0.2 s; a crash costs the
    batch, beside the evaluation that runs. KeyboardInterrupt, SystemExit, SIGTERM and SIGHUP store
    what is finished, release what is not, and then go their way.

    Examples
    --------
    >>> import tempfile
    >>> fname = tempfile.mkdtemp() + "/evals.db"
    >>> speval(lambda x: x**2, [1, 2, 3], fname)
    {'pending': 0, 'in_progress': 0, 'completed': 3, 'failed': 0}
    >>> [e["result"] for e in load_evals(fname)]
    [1, 4, 9]
    """
    _check(func, eval_space, timeout, n_jobs, max_attempts, max_failures)
    db = Database(evals_fname)
    _announce(db.path)
    if db.path in _waiting_for_this():
        raise SpevalError(f"speval() inside func on the same database would wait for itself: {db.path}")
    with contextlib.closing(Space(eval_space)) as space:
        left = add_space(db, space, _func_name(func))
    counts = None if left else count_evals(db.path)
    work = functools.partial(_work, db.path, func, timeout, max_attempts, max_failures, wait)
    with _shown(db, progress and left) as show:
        # Again, if somebody else extended the space at the very end; unless the database contradicts itself.
        while counts is None or (wait and _left_of(counts) and _left_of(counts := count_evals(db.path))):
            if n_jobs == 1:
                counts = _in_this_process(work, show) or count_evals(db.path)
            else:
                _in_processes(work, n_jobs, timeout, show)
                counts = count_evals(db.path)
    if counts["failed"]:
        log.warning(
            "%d of %d evaluations failed: load_evals(%r, 'failed') says why, reset_evals() tries again",
            counts["failed"],
            sum(counts.values()),
            os.fspath(evals_fname),
        )
    return counts


def _left_of(counts: dict[str, int]) -> int:
    return counts["pending"] + counts["in_progress"]


def _waiting_for_this() -> set[str]:
    """Return the paths of the databases on which an evaluation waits for what this thread does.

    `func` runs in this thread, or has started it: it is younger than the work of the main thread.
    """
    thread = threading.current_thread()
    return {path for path, _ in _running.get()} | {path for path, older in _at_work if thread not in older}


def _work(
    path: str,
    func: Callable[[Any], Any],
    timeout: float | None,
    max_attempts: int,
    max_failures: int | None,
    wait: bool,
    count: Any = None,
) -> dict[str, int] | None:
    """Work on the database; in a process that another one watches, `count` tells that what it has to know."""
    worker = Worker(Database(path), timeout, max_attempts)
    if count is None:
        return worker.work(func, max_failures, wait)
    pid = os.getpid()

    def counted(args: Any) -> Any:
        count.value += 1
        try:
            return func(args)
        finally:
            if os.getpid() == pid:  # not in a child that `func` has forked
                count.value += 1

    return worker.work(counted, max_failures, wait)


def _in_processes(
    work: Callable[..., Any], n_jobs: int, timeout: float | None, show: Callable[[], Any]
) -> None:
    jobs = _part("jobs", "n_jobs")
    with Signals() as signals:
        wait = functools.partial(signals.let_through, jobs.connection.wait)
        try:
            jobs.run(work, jobs.cpus() if n_jobs == -1 else n_jobs, timeout, wait, show)
        except jobs.JobError as exc:
            raise SpevalError(str(exc)) from exc


def _part(name: str, what: str) -> Any:
    """Import another module of the package, which the core does without where it stands alone."""
    try:
        return importlib.import_module(f".{name}", __package__)
    except (ImportError, TypeError) as exc:
        raise SpevalError(
            f"{what} needs the whole package, this is its core alone: pip install speval"
        ) from exc


@contextlib.contextmanager
def _shown(db: Database, progress: bool) -> Iterator[Callable[[], float | None]]:
    """Show in the block how far the sweep is, of all instances; yield what is to be called now and then."""
    if not progress:
        yield lambda: None
        return

    def show() -> float:
        with contextlib.suppress(SpevalError):  # a worker meets it too, and says so
            return float(line.show())
        return LOOK

    line = _part("progress", "progress=True").Progress(lambda: how_far(db))
    try:
        yield show
    finally:
        with contextlib.suppress(SpevalError):
            line.close()


def _in_this_process(
    work: Callable[[], dict[str, int] | None], show: Callable[[], float | None]
) -> dict[str, int] | None:
    ticker = Ticker(show)
    pause = show()
    if pause is not None:
        ticker.start(pause)
    try:
        return work()
    finally:
        ticker.stop()


ANNOUNCE = "SPEVAL_ANNOUNCE"  # in the environment: a file that takes the databases an instance uses


def _announce(path: str) -> None:
    name = os.environ.get(ANNOUNCE)
    if name and not _running.get():
        with contextlib.suppress(OSError), open(name, "a", encoding="utf-8") as file:
            file.write(json.dumps(path) + "\n")


def _check(
    func: object,
    eval_space: object,
    timeout: object,
    n_jobs: object,
    max_attempts: object,
    max_failures: object,
) -> None:
    if not callable(func):
        raise TypeError(f"func has to be callable, {func!r} is not")
    if isinstance(eval_space, (str, bytes)) or not isinstance(eval_space, Iterable):
        raise TypeError(
            f"eval_space has to be a list, an iterable or a dict, not {type(eval_space).__name__}"
        )
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"timeout has to be a number of seconds or None, not {timeout!r}")
        if not 0 < timeout <= (sys.float_info.max if isinstance(timeout, int) else float("inf")):
            raise ValueError(f"timeout has to be positive, or None for none, not {_cut(repr(timeout), 50)}")
    numbers = {"n_jobs": n_jobs, "max_attempts": max_attempts, "max_failures": max_failures}
    for name, number in numbers.items():
        if (name, number) in (("max_failures", None), ("n_jobs", -1)):
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} has to be an int, not {number!r}")
        if number < 1:
            also = ", or -1 for one per CPU" if name == "n_jobs" else ""
            raise ValueError(f"{name} has to be at least 1{also}; {number} is not")


def current_eval() -> dict[str, Any] | None:
    """Return the evaluation that runs now, inside `func`; None elsewhere.

    Returns
    -------
    dict or None
        ``"name"`` (str), ``"attempt"`` (int, > 0, grows with each claim of this evaluation) and
        ``"args"``: to name a directory for checkpoints, say.

    Examples
    --------
    >>> current_eval() is None
    True
    """
    running = _running.get()
    if not running:
        return None
    claim = running[-1][1]
    return {"name": claim.name, "attempt": claim.attempt, "args": _from_json(claim.args, "the arguments")}


def load_evals(evals_fname: str | os.PathLike[str], status: str | None = None) -> list[dict[str, Any]]:
    """Return the evaluations of a database, in the order of the space.

    Parameters
    ----------
    evals_fname : str or path-like
        File name of the sqlite3 database, also one of speval 0.1.1.
    status : {"pending", "in_progress", "completed", "failed"}, optional
        Only those with this status. By default all.

    Returns
    -------
    list of dict
        ``"name"`` (str); ``"status"``; ``"updated"`` (unix time of the last change, float, seconds;
        if finished, when `func` came back);
        ``"result"`` (what `func` returned, None unless completed); ``"args"``; ``"error"`` (traceback
        of a failed one, str or None); ``"attempt"`` (number of times it was claimed); ``"losses"`` (how
        often its worker died or ran past the timeout); ``"worker"`` (id of the last, or None);
        ``"started"`` (unix time of the last claim; if finished, when `func` was called; or None).

    Raises
    ------
    FileNotFoundError
        If there is no such file; none is made.
    SpevalError
        If it is no database of evaluations, or damaged.

    Notes
    -----
    Each evaluation is read atomically, not the whole: while workers run, later ones may be newer.

    Examples
    --------
    >>> import tempfile
    >>> fname = tempfile.mkdtemp() + "/evals.db"
    >>> counts = speval(len, {"short": "a", "long": "abc"}, fname)
    >>> [(e["name"], e["result"]) for e in load_evals(fname, "completed")]
    [('short', 1), ('long', 3)]
    """
    return list(iter_evals(evals_fname, status))


CHUNK, CHUNK_SIZE = 1000, 8_000_000  # evaluations, and characters, read in one transaction


def iter_evals(evals_fname: str | os.PathLike[str], status: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield what `load_evals` returns, with constant memory, however many there are."""
    if status is not None and status not in STATUSES:
        raise ValueError(f"there is no status {status!r}, but {', '.join(STATUSES)}")
    return _iter_evals(_existing(evals_fname), status)


def _existing(evals_fname: str | os.PathLike[str]) -> Database:
    db = Database(evals_fname)
    os.stat(db.path)  # FileNotFoundError
    return db


def _iter_evals(db: Database, status: str | None) -> Iterator[dict[str, Any]]:
    after: int | None = -(2**63)
    while after is not None:
        with Signals(), db.read() as conn:
            rows, after = _read_chunk(db.format(conn), conn, after, status)
        for row in rows:
            yield _as_dict(db.path, *row)


def _read_chunk(
    found: int, conn: sqlite3.Connection, after: int, status: str | None
) -> tuple[list[tuple[Any, ...]], int | None]:
    """Return some rows, and the id to go on after, None at the end."""
    if found == EMPTY:
        return [], None
    find_last, read = (LAST_OF_CHUNK, READ) if found == CURRENT else (LAST_OF_CHUNK_0_1_1, READ_0_1_1)
    ((last,),) = conn.execute(find_last, {"after": after, "room": CHUNK}).fetchall()
    if last is None:
        return [], None
    if not isinstance(last, int) or last <= after:
        raise sqlite3.DatabaseError("its rows are not in order")
    rows: list[tuple[Any, ...]] = []
    size = 0
    facts = {"after": after, "last": last, "status": status}
    with contextlib.closing(conn.execute(read, facts)) as cursor:  # an open one would keep its lock
        for row in cursor:
            if not isinstance(row[0], int) or row[0] <= after:
                raise sqlite3.DatabaseError("its rows are not in order")
            after = row[0]
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, str))
            if size > CHUNK_SIZE:
                return rows, after
    if last < after:
        raise sqlite3.DatabaseError("its rows are not in order")
    return rows, last


def _as_dict(
    path: str, id: int, name: str, status: str, updated: float, result: Any, args: Any, *more: Any
) -> dict[str, Any]:
    what = f"of evaluation {name!r} of {path}"
    error, attempt, losses, worker, started = more
    return {
        "name": name,
        "status": status,
        "updated": updated,
        "result": _from_json(result, f"the result {what}"),
        "args": _from_json(args, f"the arguments {what}"),
        "error": error,
        "attempt": attempt,
        "losses": losses,
        "worker": worker,
        "started": started,
    }


def count_evals(evals_fname: str | os.PathLike[str]) -> dict[str, int]:
    """Return the number of evaluations by status, all four of them, atomically.

    Raises
    ------
    FileNotFoundError, SpevalError
        As from `load_evals`.
    """
    db = _existing(evals_fname)
    with Signals(), db.read() as conn:
        return _count_any(conn, db.format(conn))


def _count_any(conn: sqlite3.Connection, found: int) -> dict[str, int]:
    if found == CURRENT:
        numbers = _count(conn)
        if (numbers["pending"] > 0, numbers["in_progress"] > 0) != _left(conn):
            raise sqlite3.DatabaseError("its indexes are not right")
        return numbers
    counts = dict(conn.execute(COUNT_0_1_1).fetchall()) if found == OF_0_1_1 else {}
    return {status: counts.get(status, 0) for status in STATUSES}


def how_far(db: Database) -> tuple[dict[str, int], int]:
    """Return the number of evaluations by status, and of workers that live; do not wait to know it."""
    with Signals(), db.glance() as conn:
        found = db.format(conn)
        if found != CURRENT:
            return _count_any(conn, found), 0
        workers = [row[0] for row in conn.execute(LIVE_WORKERS, {"worker": -1}).fetchall()]
        return _count(conn), sum(not db.locks.is_dead(worker) for worker in workers)


def _count(conn: sqlite3.Connection) -> dict[str, int]:
    ((total, last, in_progress, failed),) = conn.execute(COUNT).fetchall()
    pending = _count_pending(conn, total, last or 0)
    completed = total - pending - in_progress - failed
    return dict(zip(STATUSES, (pending, in_progress, completed, failed)))


def _count_pending(conn: sqlite3.Connection, total: int, last: int) -> int:
    """Count what is pending without a look at each, which would take 40 ms for a million.

    Evaluations are claimed for the first time in the order of their ids. So behind some id all are
    fresh, but for those that somebody changed by hand, and there are as many as there are ids.
    """
    fresh = _first_fresh(conn, total, last)
    ((pending,),) = conn.execute(COUNT_PENDING, {"id": fresh - 1}).fetchall()
    ((by_hand,),) = conn.execute(COUNT_BY_HAND, {"id": fresh - 1}).fetchall()
    return int(pending + (last + 1 - fresh) - by_hand)


def _first_fresh(conn: sqlite3.Connection, total: int, last: int) -> int:
    """Return the id from which on nothing was ever claimed."""
    reached, fresh = 0, last
    if conn.execute(IS_FRESH, {"id": last}).fetchall() != [(1,)]:
        reached, fresh = last, last + 1
    while total == last and reached + 1 < fresh:  # else rows were deleted, and ids prove nothing
        middle = (reached + fresh) // 2
        if conn.execute(IS_FRESH, {"id": middle}).fetchall() == [(1,)]:
            fresh = middle
        else:
            reached = middle
    return fresh


def reset_evals(
    evals_fname: str | os.PathLike[str],
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
    if status is not None and status not in STATUSES:
        raise ValueError(f"there is no status {status!r}, but {', '.join(STATUSES)}")
    if isinstance(names, str):
        raise TypeError(f"names has to be a list of names, not the str {names!r}")
    names = None if names is None else list(names)  # which may be a generator of the user's
    db = _existing(evals_fname)
    with Signals(), db.read() as conn:
        db.format(conn)  # before anything is made beside a database of something else
    with Signals(), db.write() as conn:
        _bring_up_to_date(db, conn)
        number = 0
        for first, last in _ids(db, conn, names):
            facts = {"first": first, "last": last, "status": status, "now": time.time()}
            ((more,),) = conn.execute(COUNT_FINISHED, facts).fetchall()
            number += int(more)
            conn.execute(RESET, facts)
        return number


def _ids(db: Database, conn: sqlite3.Connection, names: Iterable[str] | None) -> list[tuple[int, int]]:
    """Return ranges of ids: of each name, or of all."""
    if names is None:
        return [(-(2**63), 2**63 - 1)]
    found = {name: conn.execute(LOOKUP_EVAL, {"name": str(name)}).fetchall() for name in names}
    missing = [name for name, rows in found.items() if not rows]
    if missing:
        raise ValueError(f"{db.path} has no evaluation {missing[0]!r}")
    return [(rows[0][0], rows[0][0]) for rows in found.values()]
