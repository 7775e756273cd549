"""n instances of a script: started, watched, restarted when they are killed, and their output kept apart."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple, TextIO

from .jobs import MOMENT, STEP, TICK, Stint, descendants, die_with_parent
from .launcher import Board, environment
from .machine import cpus, identity, is_stopped
from .output import Outlet, Output, Shown, fate, is_writable
from .signals import INTERRUPTS, Stop
from .threads import environment as threads_environment

__all__ = ["Ended", "Instance", "run"]

RESTARTS = 10  # of one instance, each within HEALTHY seconds, at most
HEALTHY = 60.0
GRACE = 10.0  # seconds from SIGTERM to SIGKILL, if something is wrong here
LEFT = 1000  # pieces of output that are written after the end, at most: what an instance started may go on
LAST = 3  # pieces of output that are read when an instance has ended, though nobody reads ours
STOPS = 0.5  # seconds that they have to stop when they like, after Ctrl-Z
# Not epoll, which takes no files. Where there is no poll, as on some systems of Apple, there is select.
SELECTOR: Any = getattr(selectors, "PollSelector", selectors.SelectSelector)
KILLS = 3  # the how manyth Ctrl-C does not ask any more


class Ended(NamedTuple):
    """How instances have ended: each with 0; and the signals that came meanwhile, for the caller to heed."""

    well: bool
    came: list[int]


def run(
    command: Sequence[str],
    n: int,
    line: Shown,
    folder: str,
    threads: int | None = None,
    logs: str | None = None,
    quiet: bool = False,
    tell: Callable[[int, str], None] = lambda pid, how: None,
) -> Ended:
    """Run `n` instances of a command until each has ended.

    Those that are killed are started again, up to 10 times within a minute each. One that is in one piece of
    work for longer than it has said is ended, and started again. What they write goes to stdout and stderr,
    line by line, with their number before it. SIGINT, SIGTERM and SIGHUP go to them.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    n : int
        Number of instances, >= 1, or -1 for one per CPU.
    line : Shown
        What is shown of their progress.
    folder : str
        In which they tell what they use and do: an empty one, of this process alone.
    threads : int, optional
        Number of threads, >= 1, that libraries like NumPy may use in an instance. By default, if the
        environment does not say it, the number of CPUs over `n`, at least 1.
    logs : str, optional
        A folder, made if need be, for a file of each instance, ``<number>.txt``, that gets what it writes, in
        order: so all of that goes to stdout.
    quiet : bool
        Do not show what they write.
    tell : callable
        Called with the number of a process that has ended otherwise than with 0, and how.
    """
    n = cpus() if n == -1 else n
    env = {"PYTHONFAULTHANDLER": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
    env.update(threads_environment(n, threads))
    instances = [
        Instance(number, command, env, folder, board, logs, quiet, tell)
        for number, board in enumerate(Board.make(folder, n), 1)
    ]
    with _Forwarding() as forwarding:
        Watch(instances, line, forwarding).until_over()
        line.close()
    return Ended(all(instance.good for instance in instances), forwarding.came)


class Instance:
    """One run after another of the command.

    Attributes
    ----------
    number : int
        From 1; it stands before what the instance writes.
    over, good : bool
        It has ended for good; and with 0.
    due : float
        When it is started, by the monotonic clock, s.
    pid : int or None
        Its process, if it runs.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: str,
        board: Board,
        logs: str | None = None,
        quiet: bool = False,
        tell: Callable[[int, str], None] = lambda pid, how: None,
    ) -> None:
        self.number = number
        self.over = self.good = False
        self._command = command
        self._env = {**env, **environment(folder, str(number), logs)}
        self._log = _log(logs, number) if logs is not None else None
        self._quiet = quiet
        self._tell = tell
        self._board = board
        self._process: subprocess.Popen[bytes] | None = None
        self.due = 0.0
        self._kills = 0  # in a row, each within HEALTHY seconds

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, stdout: Outlet | None = None, stderr: Outlet | None = None) -> list[Output]:
        """Start it if it is time; return what it writes, which is to be shown on these."""
        if self.over or self._process is not None or time.monotonic() < self.due:
            return []
        self._began = time.monotonic()
        self._board.limit = self._board.value = 0
        self._stint = Stint()
        self._ending: float | None = None  # seconds since it was told to end, because it hangs
        self._process = subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if self._log is None else subprocess.STDOUT,  # in order
            start_new_session=True,  # so that a terminal tells us alone, and we them, once
            preexec_fn=functools.partial(_tie_to, os.getpid(), self._board),  # noqa: PLW1509 - there are no threads
        )
        pairs = (self._process.stdout, stdout), (self._process.stderr, stderr)
        self._outputs = [
            Output(self.number, pipe, None if self._quiet else outlet, self._log)
            for pipe, outlet in pairs
            if pipe is not None
        ]
        self._is_read = False  # all that it has written
        return self._outputs

    def look(self, ending: bool, passed: float = 0.0) -> str | None:
        """See how it does, `passed` seconds after the last time; return what to say of that, if anything."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            return self._time(self._process.pid, passed)
        if not self._is_read:  # by the next look it is
            self._is_read = True
            for output in self._outputs:
                output.reads = LAST
            return None
        code, pid, self._process = self._process.returncode, self._process.pid, None
        if code != 0:
            self._tell(pid, self._fate(code))
        if self._ending is not None and not ending:  # a loss is counted: it comes to an end
            return f"instance {self.number} is started again"
        if code >= 0 or ending:
            self.over, self.good = True, code == 0
            return f"instance {self.number} ended with exit code {code}" if code > 0 else None
        return self._fall(code)

    def _time(self, pid: int, passed: float) -> str | None:
        """End it if its piece of work is overdue; but for the time in which it was stopped."""
        limit = self._board.limit
        if self._ending is not None:
            self._ending += passed
            if self._ending >= MOMENT:
                self._kill(pid)
        elif limit and self._stint.goes_on(self._board.value, 0.0 if is_stopped(pid) else passed) >= limit:
            self._ending = 0.0
            self.end(signal.SIGTERM)
            return f"instance {self.number} has run past {limit:g} s in one evaluation and is ended"
        return None

    def _kill(self, pid: int) -> None:
        """Kill it, and what it has started."""
        below = list(descendants(pid))
        for kill, victim in (os.killpg, pid), *((os.kill, child) for child in below):
            with contextlib.suppress(OSError):
                kill(victim, signal.SIGKILL)

    def _fate(self, code: int) -> str:
        """Return how it ended, with the last of what it wrote."""
        if self._ending is not None:
            how = f"was ended past {self._board.limit:g} s"
        else:
            how = f"died of {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
        return fate(how, self._outputs[-1].tail)

    def _fall(self, code: int) -> str:
        healthy = time.monotonic() - self._began >= HEALTHY
        self._kills = 1 if healthy else self._kills + 1
        how = f"instance {self.number} was killed by {_signal(-code)}"
        if self._kills > RESTARTS:
            self.over = True
            return f"{how}, for the {self._kills}th time in a row: it is not started again"
        pause = 0.0 if healthy else min(2.0 ** (self._kills - 1), HEALTHY)
        self.due = time.monotonic() + pause
        return f"{how}: it is started again{f' in {pause:.0f} s' if pause else ''}"

    def end(self, signum: int) -> None:
        """Pass on a signal that is to end it; it is not started again if that was to come."""
        self.over = self.over or self._process is None
        self.send(signum)

    def send(self, signum: int) -> None:
        """Pass a signal on: Ctrl-C to all that it has started too, as a terminal does."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                (os.kill if signum == signal.SIGTERM else os.killpg)(self._process.pid, signum)


def _log(folder: str, number: int) -> IO[bytes]:
    os.makedirs(folder, exist_ok=True)
    return open(os.path.join(folder, f"{number}.txt"), "ab", 0)


def _tie_to(parent: int, board: Board) -> None:
    """Let an instance get SIGTERM when we are gone: from the kernel, or from a thread of its own."""
    board.is_untied = not die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Forwarding:
    """Keep the signals that come in the block, to pass them on; behind it the default stands for them.

    Attributes
    ----------
    came : list of int
        Those that are to end all.
    stop : Stop
        Ctrl-Z.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self.stop = Stop()
        self._kept: list[int] = []

    def __enter__(self) -> _Forwarding:
        for signum in [*INTERRUPTS, signal.SIGTSTP, signal.SIGCONT]:
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
                signal.signal(signum, self._handle)
                self._kept.append(signum)
        return self

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if signum == signal.SIGCONT:
            self.stop.cancel()
        elif signum == signal.SIGTSTP:
            self.stop.ask()
        else:
            self.came.append(signum)

    def __exit__(self, *exc_info: object) -> None:
        for signum in self._kept:
            signal.signal(signum, signal.SIG_DFL)


class Watch:
    """Watches over instances: starts them, shows what they write, and passes signals on."""

    def __init__(self, instances: list[Instance], line: Shown, forwarding: _Forwarding) -> None:
        self._instances = instances
        self._line = line
        self._forwarding = forwarding
        self._came = forwarding.came
        self._passed_on = 0
        self._outputs: list[Output] = []  # the one that was read last stands last
        self._stdout, self._stderr = Outlet(_target(sys.stdout)), Outlet(_target(sys.stderr))
        files = [
            isinstance(outlet.to, int) and identity(outlet.to) for outlet in (self._stdout, self._stderr)
        ]
        if files[0] and files[0] == files[1]:  # one stream, whose lines stay whole and in order
            self._stderr = self._stdout
        self._looked = time.monotonic()

    def until_over(self) -> None:
        try:
            while not all(instance.over for instance in self._instances):
                self._step()
            self._finish()
        finally:
            self._end()

    def _finish(self) -> None:
        """Write the last output, as long as it is read now and then; another signal ends that too.

        After an interrupt, the reader has a second for each piece.
        """
        came, left, read = len(self._came), LEFT, time.monotonic()
        while len(self._came) == came and (self._outputs or self._is_waiting()):
            waited = self._unwritten()
            found = self._copy(TICK if self._is_waiting() else 0.0)
            left -= found
            if left <= 0 or not (found or self._unwritten()):
                self._close()
            if self._forwarding.stop.is_wanted:
                self._stop()
            if found or self._unwritten() < waited:
                read = time.monotonic()
            elif came and time.monotonic() - read >= STEP:
                break
        self._close()

    def _unwritten(self) -> int:
        return len(self._stdout.rest) + len(self._stderr.rest)

    def _is_waiting(self) -> bool:
        """Return True if the reader has to read before all is written, the line of progress too."""
        return bool(self._unwritten()) or not is_writable(self._stderr.to)

    def _close(self) -> None:
        """Read what is left, for the logs at least, and close the pipes."""
        for output in list(self._outputs):
            for _ in range(LAST):
                if output in self._outputs:
                    self._read(output)
        for output in self._outputs:
            self._show(output, output.close())
        self._outputs = []

    def _end(self) -> None:
        """End instances that are left because something is wrong here: nobody reads what they write, say."""
        for instance in self._instances:
            instance.end(signal.SIGTERM)
        end = time.monotonic() + GRACE
        while not all(instance.over for instance in self._instances):
            for instance in self._instances:
                instance.look(ending=True)
                if time.monotonic() > end:
                    instance.end(signal.SIGKILL)
            time.sleep(0.01)

    def _step(self) -> None:
        for instance in self._instances if not self._came else ():
            self._outputs += instance.start(self._stdout, self._stderr)
        self._copy(TICK)
        if self._forwarding.stop.is_wanted:
            self._stop()
        for signum in self._came[self._passed_on :]:
            self._passed_on += 1
            for instance in self._instances:
                instance.end(signal.SIGKILL if self._passed_on >= KILLS else signum)
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, STEP), now
        for instance in self._instances:
            said = instance.look(bool(self._came), passed)
            if said is not None:
                self._stderr.add(f"speval: {said}\n".encode())
        if not self._stderr.rest:
            self._line.show()

    def _stop(self) -> None:
        """Stop with all instances, which are in sessions of their own, until somebody continues us.

        They are asked first: so they stop in no transaction, for which others would have to wait.
        """
        self._line.clear()
        for instance in self._instances:
            instance.send(signal.SIGTSTP)
        end = time.monotonic() + STOPS
        while any(i.pid and not is_stopped(i.pid) for i in self._instances) and time.monotonic() < end:
            time.sleep(0.01)
        if self._forwarding.stop.is_wanted:
            for instance in self._instances:
                instance.send(signal.SIGSTOP)
            handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, handler)
            self._forwarding.stop.end()
        for instance in self._instances:
            instance.send(signal.SIGCONT)

    def _copy(self, seconds: float) -> int:
        """Read from instances and write it, as far as our reader has room; return the number of pieces.

        While nobody reads, what would be shown stays in the pipes: there instances wait, and memory is
        bounded. After an interrupt, and of an instance that has ended, it is read nevertheless.
        """
        self._write()
        with SELECTOR() as selector:
            for output in self._outputs:
                if self._is_wanted(output):
                    selector.register(output.pipe, selectors.EVENT_READ, output)
            for outlet in {self._stdout, self._stderr}:
                if outlet.rest:
                    selector.register(outlet.to, selectors.EVENT_WRITE)
            ready = {key.data for key, _ in selector.select(seconds)}
        found = 0
        for output in [output for output in self._outputs if output in ready]:
            if self._is_wanted(output):
                found += self._read(output)
                self._write()
        return found

    def _write(self) -> None:
        for outlet in self._stdout, self._stderr:
            outlet.write(self._line)

    def _is_wanted(self, output: Output) -> bool:
        return output.outlet is None or not output.outlet.rest or output.reads > 0 or bool(self._came)

    def _read(self, output: Output) -> bool:
        """Read what an instance has written; return False if there was nothing."""
        output.interrupted = signal.SIGINT in self._came
        text = output.read()
        self._outputs.remove(output)
        if text is None:
            self._show(output, output.close())
            return False
        output.reads -= 1
        self._outputs.append(output)
        self._show(output, text)
        return True

    @staticmethod
    def _show(output: Output, text: bytes) -> None:
        if output.outlet is not None:
            output.outlet.add(text)


def _target(stream: TextIO) -> int | IO[bytes]:
    """Return the descriptor of a stream; the stream itself if it is in memory."""
    try:
        return stream.fileno()
    except OSError:
        return stream.buffer
