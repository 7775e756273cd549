"""Advisory locks on bytes of a file beside a database: the queue of its transactions, and who is alive."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import struct
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import INTERRUPTED, NotWritable, SpevalError, visible
from ..process.background import Ticker, notice, weakly
from ..process.forks import Section, at_gate
from ..process.machine import (
    duplicate_high,
    host,
    identity,
    is_alive,
    make_room_for_high,
    mount_of,
    process,
)

if TYPE_CHECKING:
    from .interface import Connection

try:
    import fcntl
except ImportError:  # Windows: no queue and no liveness, only `timeout` reclaims
    fcntl = None  # type: ignore[assignment]

__all__ = ["Deaths", "Locks"]

log = logging.getLogger("speval")

LOCKS_SENTENCE = b"Locks of the speval database beside this file; do not delete it while instances run.\n"
HOLDER, MADE = 128, 256  # offsets in that file: who holds the queue, when it was made beside claims
# Byte 0 is the queue of writers, byte 1 + id says that a worker is alive. Who leaves the queue and comes
# again would be back before the one that was woken meanwhile: so he passes a turnstile, where that one is.
QUEUE, TURNSTILE = 0, 1 << 60
SETTLE = 10.0  # seconds in which the workers take their bytes of a new file again
TRIES = 100  # to take a byte, a millisecond apart
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
# Seconds. A live worker takes its POSIX lock again every KEEP seconds, because `func` may have lost the lock:
# so a lock that is free for GONE seconds tells of a death. C code may silence the thread that does so. While
# a process of this host has the worker's number, the worker is given LIVES seconds. Not for ever: the number
# may be that of another process by now, and a process may have left its worker behind.
KEEP, GONE, LIVES = 0.5, 1.5, 600.0
SELDOM = 10.0  # seconds between two looks, at most, when there is no doubt
PROCESS_OF = "SELECT host, pid FROM workers WHERE id = :worker"


class Ofd(NamedTuple):
    """How a system is asked for locks of an open file description: numbers of `fcntl`, and `struct flock`."""

    get: int
    set: int
    set_wait: int
    layout: str  # for the module struct
    fields: tuple[str, ...]

    def flock(self, kind: int, byte: int) -> bytes:
        """Return the structure for one byte of a file."""
        values = {"type": kind, "whence": os.SEEK_SET, "start": byte, "len": 1, "pid": 0}
        return struct.pack(self.layout, *(values[name] for name in self.fields))

    def kind(self, flock: bytes) -> int:
        """Return the kind of lock that the structure tells of."""
        return int(struct.unpack(self.layout, flock)[self.fields.index("type")])


# Python names the numbers on Linux only. Old systems do not know them, and say EINVAL.
OFD = {
    "linux": Ofd(36, 37, 38, "hhqqi0q", ("type", "whence", "start", "len", "pid")),
    "darwin": Ofd(92, 90, 91, "qqihh", ("start", "len", "pid", "type", "whence")),
}


class Deaths:
    """Workers that are dead because their locks were free at each look for some time.

    Attributes
    ----------
    doubt : bool
        A lock is free, and will tell soon whether its worker is dead.
    """

    def __init__(self) -> None:
        self.doubt = False
        self._free: dict[int, float] = {}  # worker: for so many seconds its lock was free at each look
        self._looked = 0.0

    def confirmed(self, free: Mapping[int, float]) -> set[int]:
        """Record which locks are free; return the workers of those that were for the seconds given here."""
        now = time.monotonic()  # not all of it counts: a process that was stopped has not looked
        passed, self._looked = min(now - self._looked, KEEP if self.doubt else SELDOM), now
        before = self._free
        self._free = {worker: before[worker] + passed if worker in before else 0.0 for worker in free}
        dead = {worker for worker, seconds in self._free.items() if seconds >= free[worker]}
        self.doubt = any(free[worker] <= GONE for worker in free.keys() - dead)
        return dead

    def renew(self) -> None:
        """Begin again: what has cut our connection may have cut those of live workers."""
        self._free.clear()


class Locks:
    """Advisory locks of this process on bytes of the file beside a database, ``<database>-lock``.

    The kernel drops them when the process ends, however it ends: so they tell without any clock which
    workers live. Open-file-description locks where there are some (Linux, macOS), because POSIX locks are
    lost as soon as anything in the process opens and closes the file; POSIX locks elsewhere; none on Windows.

    A server of a network mount may lose them while we live. So there, and where they are POSIX locks,
    each transaction takes the bytes of our workers again, in the file opened anew if need be. A thread does
    so with POSIX locks while `func` runs. And a death is believed only after several looks.

    `Locks.of` has one object a database and process, which keeps the transactions of its threads apart.
    """

    blind = fcntl is None

    @staticmethod
    def of(path: str) -> Locks:
        with at_gate():
            locks = _all.get(path)
            if locks is None:
                locks = _all[path] = Locks(path)
            return locks

    def __init__(self, path: str) -> None:
        self.path = path + "-lock"
        self.shared = _is_on_network(path)
        self._section = Section(self._forget)
        self._database = path
        self._workers: set[int] = set()
        self._reserve: list[int] = []  # descriptors, of the file `_reserved`
        self._reserved: tuple[int, int] | None = None
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._settled = -float("inf")  # from then on (monotonic) nobody has yet to take his byte again
        self._ofd = None if fcntl is None else OFD.get(sys.platform)
        self._deaths = Deaths()
        self._keeper = Ticker(weakly(self._keep))
        make_room_for_high()

    def _lock(self, byte: int, wait: bool = False) -> bool:
        """Lock a byte; False if somebody else has it."""
        try:
            if self._ofd:
                how = self._ofd.set_wait if wait else self._ofd.set
                fcntl.fcntl(self._fd, how, self._ofd.flock(fcntl.F_WRLCK, byte))
            else:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, byte)
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _unlock(self, byte: int) -> None:
        if self._ofd:
            fcntl.fcntl(self._fd, self._ofd.set, self._ofd.flock(fcntl.F_UNLCK, byte))
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
            high = duplicate_high(self._fd)
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
            if exc.errno == errno.EINVAL:  # Linux before 3.15, say
                self._ofd = None

    def _close(self) -> None:
        """Close the descriptor, unless `func` closed it and the number means another file by now."""
        if self._fd >= 0 and identity(self._fd) == self._identity:
            with contextlib.suppress(OSError):  # of a mount over a network, whose disk is full
                os.close(self._fd)
        self._fd, self._identity = -1, None

    def _is_ours(self) -> bool:
        """Tell whether what we have open is the file at its path: somebody may have deleted it."""
        if self._fd < 0 or identity(self._fd) != self._identity:
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
        """Take the bytes of our workers. One that somebody has counts as well: so nobody is waited for.

        That is who tries it, for a moment, or a server that did not hear of an unlock.
        """
        for worker in self._workers if self._fd >= 0 else ():
            for _ in range(TRIES):
                if self._lock(1 + worker):
                    break
                time.sleep(0.001)

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
        with self._section.entered() as free:
            if not free:
                raise SpevalError(INTERRUPTED.format(path=self._database))
            pid = os.getpid()
            try:
                self._refresh(create)
                yield
            finally:
                if os.getpid() == pid:
                    self.fill_reserve()
                    if not self._workers:
                        self._close()

    @property
    def are_sure(self) -> bool:
        """The queue keeps the transactions of all instances apart, whatever `func` does meanwhile.

        SQLite's own locks do not: they are lost when `func` opens and closes the database as a file.
        Elsewhere than on Linux it is not known whether the file is on a network mount.
        """
        if fcntl is None:
            return True
        return sys.platform == "linux" and self._ofd is not None and not self.shared and self._fd >= 0

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
                with notice(lambda: f"waiting for {self.path}, which {self._holder()} holds"):
                    self._pass(wait=True)
        except OSError as exc:
            if self._ofd:
                raise NotWritable(f"{self.path} cannot be locked ({exc}): is its server away?") from exc
            return False  # two threads on two databases get EDEADLK, and SQLite's locks do there
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, _me(), HOLDER)
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
        self._section.attend(1)
        with self._section.lock:
            self._workers.add(worker)
            try:
                self._refresh(create=True)
                self._take_bytes()
            except (SpevalError, OSError):  # the first transaction tries again, and says so
                self._close()
            self.fill_reserve()
        if fcntl is not None and self._ofd is None:
            self._keeper.start(KEEP)

    def _keep(self) -> float:
        """Take the bytes of our workers again, unless a transaction is about to do so."""
        with self._section.tried() as free, contextlib.suppress(SpevalError, OSError):
            if free:
                self._refresh(create=False)
                self._take_bytes()
        return KEEP

    def discard(self, worker: int) -> None:
        with self._section.lock:
            self._workers.discard(worker)
            with contextlib.suppress(OSError):
                if self._fd >= 0 and identity(self._fd) == self._identity:
                    self._unlock(1 + worker)
            if not self._workers:
                self._close()
                self.spend_reserve()
        if not self._workers:
            self._keeper.stop()
        self._section.attend(-1)

    def fill_reserve(self) -> None:
        """Hold descriptors back, for the case that `func` leaves none for what stores its result."""
        if self._workers and not self._reserve:
            with contextlib.suppress(OSError):
                self._reserve += os.pipe()  # by which nobody else's can be taken for them
                self._reserve.append(os.dup(self._reserve[0]))
                self._reserved = identity(self._reserve[0])

    def spend_reserve(self) -> None:
        while self._reserve:
            fd = self._reserve.pop()
            if identity(fd) == self._reserved:  # else `func` has closed it
                os.close(fd)

    @property
    def see_all(self) -> bool:
        return self.is_dead(-1) and not mount_of(self._database).local_locks

    @property
    def doubt(self) -> bool:
        return self._deaths.doubt

    def dead(self, conn: Connection, workers: Iterable[int], surely: bool = True) -> set[int]:
        """Return those workers, of any process, that are dead."""
        free = set(filter(self.is_dead, workers))
        if self.are_sure or not surely:
            return free
        return self._deaths.confirmed({worker: self._time(conn, worker) for worker in free})

    @staticmethod
    def _time(conn: Connection, worker: int) -> float:
        """Return for how many seconds the worker's lock has to be free until the worker is dead."""
        for where, pid in conn.execute(PROCESS_OF, {"worker": worker}):
            if where == host() and pid != os.getpid() and is_alive(pid):
                return LIVES
        return GONE

    def is_dead(self, worker: int) -> bool:
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
            answer = fcntl.fcntl(self._fd, self._ofd.get, self._ofd.flock(fcntl.F_WRLCK, byte))
            return self._ofd.kind(answer) != fcntl.F_UNLCK
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
            import tempfile  # here, because it takes milliseconds

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

    def _forget(self) -> None:
        """In a forked child: close the inherited descriptor, or the child would keep our workers alive."""
        self._close()
        self.spend_reserve()
        self._workers.clear()


def _me() -> bytes:
    return process().ljust(100).encode()[:100]


@functools.lru_cache(maxsize=1000)
def _is_on_network(path: str) -> bool:
    """Tell whether `path` is on a network mount; warn, once, if its locks are none between hosts."""
    mount = mount_of(path)
    if mount.local_locks:
        log.warning(
            "%s is on a mount whose locks are local to each host (%s): instances on several hosts will"
            " take each other for dead. Mount it without that option, or run them on one host.",
            path,
            mount.local_locks,
        )
    return mount.is_network


_all: weakref.WeakValueDictionary[str, Locks] = weakref.WeakValueDictionary()
