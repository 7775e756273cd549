"""What a process writes: shown as it is, or line by line with its number; kept in a file; its last words."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Protocol

from .launcher import HEADING

__all__ = ["MOST", "TAIL", "Outlet", "Output", "Relay", "Shown", "fate", "is_writable"]

LINE = 8192  # bytes of a line that are kept until its end comes
TAIL = 16_000  # bytes of what a process has written that are kept: with what Python says of a fault
MOST = 1_000_000  # bytes that wait for the reader of a stream: what comes beyond them is not shown
WORDS = 2000  # characters of that, to say why it died
FAULT, AT_FAULT = "Fatal Python error: ", "Current thread "
FAULTS = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
OURS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
REWRITTEN = 10.0  # seconds between two times that a line is shown which is rewritten over and over
TRACEBACK = b"Traceback (most recent call last):"
CHAINED = (TRACEBACK, b"During handling of the above exception", b"The above exception was the direct cause")


class Shown(Protocol):
    """A line that says how far it is, below what processes write."""

    def show(self) -> object: ...
    def clear(self) -> object: ...
    def close(self) -> object: ...


def fate(how: str, tail: bytes) -> str:
    """Return how a process ended, with the last of what it wrote; of a fault, where, down to `func`."""
    said = tail.decode(errors="replace").strip()
    before, fault, rest = said.rpartition(FAULT)
    if fault and how.endswith(FAULTS):
        kind, _, stack = rest.partition("\n")
        _, thread, stack = stack.rpartition(AT_FAULT)
        where = itertools.takewhile(lambda line: OURS not in line, (thread + stack).splitlines())
        said = before[-WORDS // 4 :] + "\n".join([fault + kind, *where])[: WORDS * 3 // 4]
    return f"{how}\n{said[-WORDS:]}" if said else how


def is_writable(stream: int | IO[Any], seconds: float | None = 0.0) -> bool:
    """Return True if a short text can be written to a stream without waiting for its reader.

    Wait for so many seconds until it can, or for as long as it takes (None).

    Also where nothing can say so: of a stream in memory, or a closed one. Neither lets a writer wait.
    """
    try:
        return bool(select.select([], [stream], [], seconds)[1])
    except (OSError, ValueError, TypeError):
        return True


class Outlet:
    """A stream that is written without waiting for its reader.

    Parameters
    ----------
    to : int or binary file
        Descriptor, or a stream in memory.

    Attributes
    ----------
    rest : bytes
        What waits for the reader.
    """

    def __init__(self, to: int | IO[bytes]) -> None:
        self.to = to
        self.rest = b""

    def add(self, text: bytes) -> None:
        """Write `text` later; drop it if too much waits for the reader already."""
        if len(self.rest) < MOST:
            self.rest += text

    def write(self, line: Shown | None) -> None:
        """Write as much as the reader has room for: whole lines, as other processes may write lines too.

        Raises
        ------
        OSError
            If the stream is closed, has lost its reader, or is full.
        """
        if not self.rest or not is_writable(self.to):
            return
        if line is not None:
            line.clear()
        if not isinstance(self.to, int):
            self.to.write(self.rest)
            self.rest = b""
            return
        with contextlib.suppress(BlockingIOError), _unblocked(self.to) as fd:
            while self.rest and is_writable(fd):
                end = self.rest.rfind(b"\n", 0, select.PIPE_BUF) + 1 or select.PIPE_BUF
                self.rest = self.rest[os.write(fd, self.rest[:end]) :]


@contextlib.contextmanager
def _unblocked(fd: int) -> Iterator[int]:
    """Yield a descriptor of the same stream that does not block when it is ready to be written.

    A pipe that is ready has room for a line. A terminal may have room for one character: so it is opened
    again, because a flag of `fd` itself would be that of all processes that have the stream.
    """
    try:
        own = os.open(os.ttyname(fd), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        yield fd
        return
    try:
        yield own
    finally:
        os.close(own)


class Inlet:
    """What a process writes to a pipe, read without waiting for more.

    Attributes
    ----------
    pipe : Connection, binary file or None
        From which it comes.
    tail : bytes
        The last that has come from this process, as it was.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe: Any = None
        self.tail = b""
        if pipe is not None:
            self.begin(pipe)

    def begin(self, pipe: Any) -> None:
        """Read, from now on, what comes from another process."""
        self.pipe = pipe
        self.tail = b""
        os.set_blocking(pipe.fileno(), False)

    def take(self) -> bytes | None:
        """Return what has come; None at the end."""
        try:
            more = os.read(self.pipe.fileno(), 65536)
        except BlockingIOError:
            return b""
        self.tail = (self.tail + more)[-TAIL:]
        return more or None


class Relay(Inlet):
    """What processes write to stderr, one after another: passed on to our own, as it is.

    `pipe` is None when nothing more comes.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self._stderr = Outlet(2)

    @property
    def rest(self) -> bytes:
        """What has come and has to be passed on."""
        return self._stderr.rest

    def begin(self, pipe: Any) -> None:
        """Take in, from now on, what comes from another process."""
        self.close()
        super().begin(pipe)

    def read(self) -> None:
        """Take in what has come."""
        if self.pipe is not None:
            more = self.take()
            if more is None:
                self.close()
            else:
                self._stderr.add(more)

    def pass_on(self, line: Shown | None) -> None:
        """Write what can be written without waiting for the reader."""
        try:
            self._stderr.write(line)
        except OSError:  # it was closed, or nobody reads it
            self._stderr.rest = b""

    def close(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None


class Output(Inlet):
    """What an instance writes to one of its streams.

    Of a line that is rewritten after carriage returns, as a bar of progress is, the last state counts.

    Parameters
    ----------
    number : int
        Of the instance; it stands before each line that is shown.
    pipe : binary file
        From which it comes. It is closed at the end.
    outlet : Outlet or None
        Where it is to be shown.
    log : binary file or None
        Where it is kept, with the headings of evaluations, which are not shown.

    Attributes
    ----------
    reads : int
        Number of reads that do not wait for the reader of the outlet.
    interrupted : bool
        Ctrl-C has come: the tracebacks of that are not shown, one for each instance and process.
    """

    def __init__(
        self,
        number: int,
        pipe: IO[bytes],
        outlet: Outlet | None,
        log: IO[bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(pipe)
        self.outlet = outlet
        self.reads = 0
        self.interrupted = False
        self._log = log
        self._clock = clock
        self._prefix = b"[%d] " % number
        self._rest = b""
        self._due = -float("inf")  # when a line that is rewritten may be shown
        self._traceback: list[bytes] = []  # that has not yet come to its end, or is chained perhaps
        self._is_told = False  # which exception it is of

    def read(self) -> bytes | None:
        """Take in what has come; return what to show of it, None at the end.

        A line that is too long comes in pieces, one that is rewritten now and then.
        """
        more = self.take()
        if not more:
            return more
        *lines, self._rest = (self._rest + more).split(b"\n")
        lines = [line.rstrip(b"\r") for line in lines]
        if b"\r" in self._rest:
            end = b"\r" * self._rest.endswith(b"\r")
            self._rest = (b"" if end else b"\r") + _last(self._rest) + end
        shown = self._kept([*lines, *self._pieces()])
        if b"\r" in self._rest and self._clock() >= self._due:
            self._due = self._clock() + REWRITTEN
            shown.append(_last(self._rest))
        return self._numbered(shown)

    def _pieces(self) -> Iterator[bytes]:
        while len(self._rest) > LINE:
            end = LINE
            while end > LINE - 4 and self._rest[end] & 0xC0 == 0x80:  # not inside a character
                end -= 1
            yield self._rest[:end]
            self._rest = self._rest[end:]

    def close(self) -> bytes:
        """Return what is to be shown of a line without end."""
        rest, self._rest = _last(self._rest), b""
        self.pipe.close()
        shown = self._kept([rest] if rest else [])
        return self._numbered([*shown, *self._traceback])

    def _kept(self, lines: Iterable[bytes]) -> list[bytes]:
        """Keep whole lines; return those to show."""
        lines = list(map(_last, lines))
        if self._log is None:
            return list(self._without_interrupts(lines))
        with contextlib.suppress(OSError):  # the disk is full: the evaluations are more important
            self._log.write(b"".join(line + b"\n" for line in lines))
        return list(self._without_interrupts(line for line in lines if not line.startswith(HEADING.encode())))

    def _without_interrupts(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Leave out the tracebacks of Ctrl-C, with those that Python chains them to."""
        for line in lines:
            if not self.interrupted or not (self._traceback or line == TRACEBACK):
                yield line
                continue
            if self._is_told and line.strip() and not line.startswith(CHAINED):
                yield from self._traceback
                self._traceback = []
                yield line
            elif line.startswith(b"KeyboardInterrupt"):
                self._traceback = []
            else:
                self._traceback.append(line)
            self._is_told = bool(self._traceback) and not line.startswith((b" ", TRACEBACK))

    def _numbered(self, lines: Iterable[bytes]) -> bytes:
        return b"" if self.outlet is None else b"".join(self._prefix + line + b"\n" for line in lines)


def _last(line: bytes) -> bytes:
    """Return the last state of a line with carriage returns in it."""
    return next((state for state in reversed(line.split(b"\r")) if state), b"")
