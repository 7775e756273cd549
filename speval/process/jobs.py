"""Processes on this machine that all do the same: started, watched, ended in time, replaced, no orphans.

Knows nothing of what they do::

         supervisor                                           process, one of n
        +----------------------------------+                 +---------------------------------+
        | start, replace ------------------|---------------->| work(count)                     |
        | how did it end?  <---------------|--- a pipe ------| returned, or what it raised     |
        | pass on, and keep its last words |<--- a pipe ------| stderr                          |
        | is a piece of it overdue?  <-----|- shared memory -| count.value += 1, at the start  |
        | SIGTERM, and later SIGKILL ------|---------------->| and at the end of each piece    |
        +----------------------------------+                 +---------------------------------+
         ends in any way: the kernel kills the process, or a thread of it that waits at a pipe
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import mmap
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..errors import NotWritable, SpevalError
from .launcher import log_of, redirect
from .machine import cpu_seconds, duplicate_high, identity, waits_locally
from .output import TAIL, Relay, Shown, fate
from .signals import INTERRUPTS
from .threads import limit_threads

__all__ = ["MOMENT", "STEP", "TICK", "Stint", "apart", "descendants", "die_with_parent", "run"]

log = logging.getLogger("speval")

TICK = 0.1  # seconds between two looks at the processes
STEP = 1.0  # seconds, at most, that count between two looks: the supervisor may have been stopped
MOMENT = 2.0  # seconds from SIGTERM to SIGKILL for one that is overdue, and from its last word to SIGTERM
GRACE = 10.0  # the same at the end, when each may have something to store; halved from level to level
EARLY = 3  # deaths in a row, before anything began, after which it is no use
READY = 2  # the count of a process that is past its first piece
HUNG = 5.0  # seconds that what is forked may take until then; doubled with each in a row that takes longer
APART = 10  # seconds that what is done in a process of its own may take: it, too, may hang so
LONGEST = 60.0  # seconds between two that do not begin, at most
SETTLED = 5.0  # seconds after which a process is not one of those
STUCK = 30.0  # seconds of the first evaluation, without progress, after which a warning is logged
IDLE = 0.1  # seconds of CPU time that background threads of a stuck process may use meanwhile
# What to say when there is no use in going on.
NO_START = "a worker process {}"
NO_BEGINNING = (
    "worker processes end before they begin, the last: {}. If they are not forked, the script has to say"
    " `if __name__ == '__main__':` before it does anything, and func has to be defined at the top of a"
    " script or module"
)
HANGS = (
    "worker process {}, and so did those before it: one of them keeps something locked that every process"
    " needs. Start that thread later; or call multiprocessing.set_start_method('spawn') first, if func can be"
    " imported"
)
IS_STUCK = (
    "worker process %s has used no CPU for %g s in its first evaluation: it seems to hang. The likely reason:"
    " a library has started threads before speval() was called, as scikit-learn does to fit a model. A forked"
    " process has no such threads, and the library waits for them for ever. Use the library in func only; or"
    " start the script by `speval run` in place of n_jobs; or call multiprocessing.set_start_method('spawn')"
    " first, if func can be imported"
)
PR_SET_PDEATHSIG = 1

_level = 0  # of this process: how many above it have started it so


def run(
    work: Callable[[Any], None],
    n: int,
    limit: float | None = None,
    let_through: Callable[..., Any] = lambda func, *args: func(*args),
    line: Shown | None = None,
    tell: Callable[[int, str], None] = lambda pid, how: None,
    copied: str | None = None,
) -> None:
    """Call ``work(count)`` in `n` processes, until it has returned in each.

    One that dies is replaced, and so is one that raises `NotWritable` after any process has begun a piece of
    its work. When one raises anything else, or a signal does, all are ended and that is raised here.

    Parameters
    ----------
    work : callable
        It adds 1 to ``count.value`` when it begins a piece of its work and 1 when that is over. The first
        is to use whatever another thread may have held when the process was forked: one that hangs there is
        replaced. On SIGTERM it should end soon; as on SIGINT and SIGHUP, which a terminal sends to all.
    n : int
        Number of processes, >= 1.
    limit : float, optional
        Seconds, > 0, that a piece may take, by the clock of this process, before its process is ended.
    let_through : callable
        Called with a function and its arguments, calls it; there signals may interrupt, not elsewhere.
    line : Shown, optional
        Shown some times a second, and taken away before something is written that comes from a process.
    tell : callable
        Called with the number of a process that has died, and how it did.
    copied : str, optional
        A warning about objects that every forked process has a copy of: logged if the processes are forked.

    Raises
    ------
    SpevalError
        If the processes cannot be started, or do not get as far as to begin.
    """
    context = _context(work)
    if copied and context.get_start_method() == "fork":
        log.warning("%s", copied)
    logs = [log_of(number) if _level == 0 else None for number in range(1, n + 1)]
    jobs = [Job(context, functools.partial(_limited, n, work), limit, tell, log) for log in logs]
    is_said = False
    try:
        before = time.monotonic()
        while any(not job.done for job in jobs):
            now = time.monotonic()
            passed, before = min(now - before, STEP), now
            has_begun = any(job.has_begun for job in jobs)
            for job in jobs:
                job.look(passed, has_begun)
            _check(jobs)
            is_said = is_said or _warn_if_stuck(jobs, passed)
            if line is not None:
                line.show()
            _wait(jobs, let_through, TICK if limit is None else min(TICK, limit / 4), line)
        _pass_on(jobs, let_through, line)
    except BaseException:
        _end(jobs, let_through, line)
        raise
    finally:
        for job in jobs:
            job.close()


def _context(work: object) -> BaseContext:
    """Return the user's way to start a process, if one was chosen; on Linux that is a fork otherwise."""
    if multiprocessing.current_process().daemon:
        raise SpevalError("a daemonic process may not start others: call it elsewhere, or with n_jobs=1")
    known = multiprocessing.get_all_start_methods()
    method: str | None = multiprocessing.get_start_method(allow_none=True)
    # Only joblib's workers know other methods. And whatever uses multiprocessing, a bar of tqdm for example,
    # sets the default, which is the first: from Python 3.14 on "forkserver", with which few functions work.
    if method not in known or (method == known[0] and not _is_chosen()):
        method = None
    if method is None and sys.platform == "linux":
        method = "fork"
    context = multiprocessing.get_context(method or known[0])
    if context.get_start_method() != "fork":
        try:
            ForkingPickler.dumps(work)
        except Exception as exc:
            raise SpevalError(
                f"func cannot be sent to another process ({exc}): define it with def, at the top of a script"
                " or module; or call multiprocessing.set_start_method('fork') first, where there is that"
            ) from exc
    return context


def _is_chosen() -> bool:
    """Return True if the script, or a function that calls this one, sets the start method.

    multiprocessing itself keeps no difference between a default that was used and the same as a choice.
    """
    if any("set_start_method" in frame.f_code.co_names for frame, _ in traceback.walk_stack(None)):
        return True
    script = getattr(sys.modules.get("__main__"), "__file__", None) or os.devnull
    with contextlib.suppress(OSError), open(script, "rb") as file:
        return b"set_start_method" in file.read()
    return False


class Stint:
    """How long a piece of work goes on, by a count that is odd while one does."""

    def __init__(self) -> None:
        self._seen = 0
        self._ran = 0.0

    def goes_on(self, count: int, passed: float) -> float:
        """Take in the count, `passed` seconds after the last time; return how many the piece goes on."""
        if count != self._seen or count % 2 == 0:
            self._seen, self._ran = count, 0.0
        else:
            self._ran += passed
        return self._ran


class Job:
    """One process after another that does the work.

    Attributes
    ----------
    done : bool
        The work has returned.
    has_begun : bool
        Any process has begun a piece of the work.
    early : int
        How many in a row died before they had begun anything.
    problem : str
        What it would mean if all ended as the last did, and what to do then.
    pipe : Connection
        Where the process says how its work ended.
    relay : Relay
        For what it writes to stderr, unless that is kept in a file.
    """

    def __init__(
        self,
        context: BaseContext,
        work: Callable[[Any], None],
        limit: float | None,
        tell: Callable[[int, str], None],
        log: str | None,
    ) -> None:
        self.done = False
        self._has_begun = False  # any process before this one
        self.early = 0
        self._refused = 0  # in a row that could not use the database
        self.problem = ""
        self.pipe: Any = None
        self._context = context
        self._work = work
        self._limit = limit
        self._tell = tell
        self._log = log
        self._process: BaseProcess | None = None  # none between two
        self._is_forked = context.get_start_method() == "fork"
        self.relay = Relay()
        # Else the number of stderr is that of another file, or will be.
        has_stderr = sys.__stderr__ is not None and identity(2) is not None
        self._is_relayed = log is None and has_stderr and hasattr(os, "fork")
        self._pause = 0.0  # seconds until the next one is started

    @property
    def has_begun(self) -> bool:
        return self._has_begun or (self._process is not None and self._count.value > READY)

    def look(self, passed: float, has_begun: bool) -> None:
        """See how the process does, `passed` seconds after the last time; start one if there is none.

        `has_begun`: of any job.
        """
        if self.done:
            return
        if self._process is None:
            self._pause -= passed
            if self._pause <= 0:
                self._start()
        elif self.is_over():
            self._replace(self._process, has_begun)
        else:
            self._age += passed
            self._time(self._process, passed)

    def _start(self) -> None:
        self._beside = _other_threads()
        self._how = ""  # it ended, if we know better than by its exit code
        self._meaning = NO_BEGINNING
        self._said: bytes | None = None  # by the process, of its end; nothing if it closed the pipe
        self._stint = Stint()
        self._age = 0.0  # seconds, of the process
        self._quiet = self._used = 0.0  # seconds of its first evaluation so far; of CPU time before
        self._ending: float | None = None  # seconds since it was told to end
        self._idle = 0.0  # seconds since it said how its work ended
        self._logged = 0  # bytes that were in the file before
        with contextlib.suppress(OSError):
            self._logged = os.path.getsize(self._log or "")
        try:
            memory = _memory(self._is_forked)
            self._count = _number(memory)
            self.pipe, theirs = self._context.Pipe(duplex=False)
        except OSError as exc:
            self._fall(f"cannot be started ({exc})")
            return
        stderr = self._stderr()
        with theirs, stderr or contextlib.nullcontext(), _blocked() as mask, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, those of a BLAS say
            process = self._context.Process(  # type: ignore[attr-defined]
                target=_main,
                args=(self._work, memory, theirs, stderr, self._log, os.getpid(), mask),
                daemon=False,
            )
            try:
                process.start()
            except OSError as exc:  # also if stdout cannot be flushed before
                self.pipe.close()
                self._fall(f"cannot be started ({exc})")
            else:
                self._process = process

    def _stderr(self) -> Any:
        """Return what the process is to have as its stderr; None if that stays as it is."""
        if not self._is_relayed:
            return None
        try:
            pipe, theirs = self._context.Pipe(duplex=False)
        except OSError:
            return None
        self.relay.begin(pipe)
        return theirs

    @property
    def is_at_work(self) -> bool:
        """It has begun something, or lives long enough to be on its way."""
        return self._process is not None and (self._count.value > READY or self._age > SETTLED)

    @property
    def pid(self) -> int:
        return (self._process.pid if self._process else None) or 0

    def is_stuck(self, passed: float) -> bool:
        """Return True if the first evaluation has used no CPU for `STUCK` seconds.

        It is `passed` seconds since the last look. An evaluation that sleeps, waits for the network or has
        started a process is not stuck.
        """
        if self._process is None or not self._is_forked or self._count.value != READY + 1:
            return False
        pid = self.pid
        if not self._quiet:
            self._used = cpu_seconds(pid)
        self._quiet += passed
        if self._quiet < STUCK:
            return False
        self._quiet = 0.0
        return cpu_seconds(pid) - self._used < IDLE and waits_locally(pid) and not any(descendants(pid))

    @property
    def is_heard(self) -> bool:
        """Nothing more comes through its pipe."""
        return self._process is None or self._said is not None

    def hear(self) -> None:
        """Take in what the process says of its end, if it says something."""
        if not self.is_heard and self.pipe.poll():
            try:
                self._said = self.pipe.recv_bytes()
            except (EOFError, OSError):
                self._said = b""

    def is_over(self) -> bool:
        """Tell whether the process has ended. (Its pipe does not tell: the work may have closed it.)"""
        if self._process is None or self._process.exitcode is not None:
            return True
        if hasattr(os, "fork"):
            try:
                os.kill(self._process.pid or 0, 0)
            except ProcessLookupError:  # if SIGCHLD is ignored, there is no exit code
                return True
        return False

    def _replace(self, process: BaseProcess, has_begun: bool) -> None:
        self.hear()
        began = self._count.value > READY
        self._has_begun = self._has_begun or began
        self._process = None
        self.pipe.close()
        if self._said:
            exc = pickle.loads(self._said)
            if has_begun and isinstance(exc, NotWritable):  # others have results, which are not to be lost
                self._refused += 1
                self._pause = min(2.0 ** (self._refused - 1), LONGEST)
                log.warning(
                    "worker process %s cannot begin: %s (next try in %d s)", process.pid, exc, self._pause
                )
                return
            if exc is not None:
                raise exc
            self.done = True
        else:
            how = self._how or _how(process.exitcode)
            self._tell(process.pid or 0, fate(how, self._tail()))
            self._fall(f"{process.pid} {how}", self._meaning, began)

    def _tail(self) -> bytes:
        """Return the last of what the process has written to stderr."""
        if self._log is None:
            self.relay.read()
            return self.relay.tail
        with contextlib.suppress(OSError), open(self._log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._logged, end - TAIL))
            return file.read()
        return b""

    def _fall(self, why: str, meaning: str = NO_START, began: bool = False) -> None:
        self.problem = meaning.format(why)
        self.early = 0 if began else self.early + 1
        self._refused = 0
        self._pause = min(2.0 ** (self.early - 2), LONGEST) if self.early > 1 else 0.0
        log.warning("worker process %s; another one takes its place", why)

    def _time(self, process: BaseProcess, passed: float) -> None:
        """End the process if its piece of work is overdue, or something in it goes on after that."""
        if self._ending is not None:
            self._ending += passed
            if self._ending >= MOMENT:
                _kill(process)
        elif self._count.value < READY:
            if self._beside and self._is_forked and self._age >= HUNG * 2**self.early:
                beside = f"beside other threads ({', '.join(self._beside[:5])})"
                self._how, self._meaning = f"hangs since it was forked {beside}", HANGS
                _kill(process)
        elif self._said:
            self._idle += passed
            if self._idle >= MOMENT:
                _kill(process)
        elif self._limit is not None and self._stint.goes_on(self._count.value, passed) >= self._limit:
            self._how = f"was ended past {self._limit:g} s"
            self._ending = 0.0
            process.terminate()
            log.warning("worker process %s has run past %g s and is ended", process.pid, self._limit)

    def terminate(self) -> None:
        """Tell the process to end, if it has not been told."""
        if self._process is not None and self._ending is None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process now."""
        if self._process is not None:
            _kill(self._process)
            self._process.join(GRACE)
            self._process = None
            self.pipe.close()

    def close(self) -> None:
        self.relay.close()


def _memory(is_forked: bool) -> Any:
    """Return 8 bytes that this process has in common with one that it starts.

    On Linux, `multiprocessing.RawValue` has them in a file in /dev/shm, where a container may allow no files.
    """
    if is_forked:
        return mmap.mmap(-1, 8)
    from multiprocessing.heap import Arena

    if not hasattr(os, "memfd_create"):  # not Linux
        return Arena(8)
    fd = os.memfd_create("speval")
    os.ftruncate(fd, 8)
    arena = Arena(8, fd)
    weakref.finalize(arena, os.close, fd)  # what is mapped stays
    return arena


def _number(memory: Any) -> Any:
    import ctypes

    return ctypes.c_uint64.from_buffer(getattr(memory, "buffer", memory))


def _other_threads() -> list[str]:
    threads = [t for t in threading.enumerate() if t is not threading.current_thread()]
    return [t.name for t in threads if t.name != "speval"]


def apart(action: Callable[..., Any], *args: Any) -> None:
    """Do something in a process of its own that nobody waits for; nothing if none is to be had."""
    if not hasattr(os, "fork"):
        return
    with contextlib.suppress(OSError), _blocked(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: what hangs beside them is ended
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        try:
            if os.fork() == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(APART)
                action(*args)
        finally:
            os._exit(0)


def _kill(process: BaseProcess) -> None:
    """Kill a process, and what it has started, as far as the kernel tells."""
    below = list(descendants(process.pid or 0)) if process.exitcode is None else []
    process.kill()
    for pid in below:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes below one, but for those that tidy up after it (Linux, elsewhere none)."""
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children = file.read().split()
            for child in map(int, children):
                with open(f"/proc/{child}/cmdline", "rb") as file:
                    if b"resource_tracker" not in file.read():
                        yield from descendants(child)
                        yield child


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"died of {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _check(jobs: list[Job]) -> None:
    """Give up when processes die as soon as they are started, and none is at work."""
    early = next((job for job in jobs if job.early >= EARLY and not job.done and job.is_over()), None)
    if early is None or any(job.is_at_work for job in jobs):
        return
    if any(job.done for job in jobs):  # it could only do what the others have done
        early.done = True
    else:
        raise SpevalError(early.problem)


def _warn_if_stuck(jobs: list[Job], passed: float) -> bool:
    """Log a warning if a process waits for ever, as it seems; return True if it does."""
    for job in jobs:
        if job.is_stuck(passed):
            log.warning(IS_STUCK, job.pid, STUCK)
            return True
    return False


def _wait(
    jobs: list[Job], let_through: Callable[..., Any], seconds: float, line: Shown | None = None
) -> None:
    """Wait until a process says something, or writes; shortly if one has said it, which ends just now."""
    unheard = [job for job in jobs if not job.is_heard]
    relays = [job.relay for job in jobs]
    pipes = [relay.pipe for relay in relays if relay.pipe is not None and not relay.rest]
    if any(relay.rest for relay in relays) or any(job.is_heard and not job.is_over() for job in jobs):
        seconds = min(seconds, 0.01)
    ready = let_through(connection.wait, [*(job.pipe for job in unheard), *pipes], seconds)
    for job in unheard:
        job.hear()
    for relay in relays:
        if relay.pipe in ready:
            relay.read()
        relay.pass_on(line)


def _pass_on(
    jobs: list[Job], let_through: Callable[..., Any], line: Shown | None, seconds: float = float("inf")
) -> None:
    """Write the last that processes have written, for as long as somebody reads it now and then."""
    relays = [job.relay for job in jobs]
    for relay in relays:
        relay.read()
    end = time.monotonic() + seconds
    while any(relay.rest for relay in relays) and time.monotonic() < end:
        with contextlib.suppress(OSError):  # it was closed
            let_through(select.select, [], [2], [], TICK)
        for relay in relays:
            relay.pass_on(line)


def _end(jobs: list[Job], let_through: Callable[..., Any], line: Shown | None) -> None:
    """End all processes: ask them, and kill those left after some time, or when interrupted again."""
    try:
        for job in jobs:
            job.terminate()
        end = time.monotonic() + GRACE / 2**_level
        while not all(job.is_over() for job in jobs) and time.monotonic() < end:
            _wait(jobs, let_through, TICK, line)
    finally:
        for job in jobs:
            job.kill()
    _pass_on(jobs, let_through, line, STEP)


@contextlib.contextmanager
def _blocked() -> Iterator[set[Any] | None]:
    """Block interrupts in this thread, and in a process that is started: until it can deal with them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield None
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _main(
    work: Callable[[Any], None],
    memory: Any,
    pipe: Any,
    stderr: Any,
    log_file: str | None,
    parent: int,
    mask: Any,
) -> None:
    """Do the work, in its process, and say how it ended."""
    global _level  # noqa: PLW0603 - it is that of the process
    _level += 1
    _tie_to(parent)
    with contextlib.suppress(ValueError):  # that of the parent's event loop, which would get our signals
        signal.set_wakeup_fd(-1)
    for signum in INTERRUPTS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
            signal.signal(signum, signal.SIG_DFL)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if log_file is not None:
        redirect(log_file)
    if stderr is not None:
        os.dup2(stderr.fileno(), 2)
        stderr.close()
    _note_faults()
    if "numpy.random" in sys.modules:  # as Python does with its own: else all would draw the same numbers
        sys.modules["numpy.random"].seed()
    _flush_all()
    said: bytes = pickle.dumps(None)
    pid, ours = os.getpid(), identity(pipe.fileno())
    try:
        work(_number(memory))
    except BaseException as exc:
        if os.getpid() != pid:  # a child that it has forked, which is not ours
            raise
        said = _pickled(exc)  # the parent raises it
    if identity(pipe.fileno()) == ours:  # else `func` has closed it, and the number may be a file of his
        with contextlib.suppress(OSError):
            pipe.send_bytes(said)


def _limited(n: int, work: Callable[[Any], None], count: Any) -> None:
    """Do the work of one of `n` processes, with its share of the threads."""
    limit_threads(n)
    work(count)


def _note_faults() -> None:
    """Let Python say on stderr where this process dies of a fault, also if `func` has closed number 2."""
    fd = 2
    with contextlib.suppress(ImportError, OSError, ValueError):  # fewer descriptors are to be had
        fd = duplicate_high(2)
    with contextlib.suppress(OSError):  # it is closed
        faulthandler.enable(fd, all_threads=False)


def _flush_all() -> None:
    """Use what is written to: if another thread has held it when we were forked, we hang here, and now."""
    handlers = [*log.handlers, *logging.getLogger().handlers]
    streams: list[Any] = [sys.stdout, sys.stderr, *(getattr(handler, "stream", None) for handler in handlers)]
    for stream in streams:
        with contextlib.suppress(Exception):
            stream.flush()


def _pickled(exc: BaseException) -> bytes:
    try:
        said = pickle.dumps(exc)
        pickle.loads(said)
    except Exception:  # noqa: BLE001 - whatever is special about it
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))[-10_000:]
        kinds = [kind for kind in (KeyboardInterrupt, SystemExit) if isinstance(exc, kind)]
        said = pickle.dumps((*kinds, RuntimeError)[0](text))
    return said


def _tie_to(parent: int) -> None:
    """Let this process not outlive its parent, however that ends, and whatever this one is doing."""
    if os.getppid() == parent and die_with_parent(signal.SIGKILL) and os.getppid() == parent:
        return
    threading.Thread(target=_end_with_parent, name="speval", daemon=True).start()


def die_with_parent(signum: int = signal.SIGTERM) -> bool:
    """Have the kernel send a signal when the thread ends that has started this process; tell if it will."""
    if sys.platform != "linux":
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
