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

__all__ = ["TAIL", "Output", "Relay", "Shown", "fate"]

LINE = 8192  # bytes of a line that are kept until its end comes
TAIL = 16_000  # bytes of what a process has written that are kept: with what Python says of a fault
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


class Relay:
    """What processes write to stderr, one after another: passed on to our own, as it is.

    Attributes
    ----------
    pipe : Connection or None
        From which it comes. None when nothing more does.
    rest : bytes
        What has come and has to be passed on.
    tail : bytes
        The last that has come from this process.
    """

    def __init__(self) -> None:
        self.pipe: Any = None
        self.rest = b""
        self.tail = b""

    def begin(self, pipe: Any) -> None:
        """Take in, from now on, what comes from another process."""
        self.close()
        self.pipe = pipe
        self.tail = b""
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> None:
        """Take in what has come."""
        if self.pipe is None:
            return
        with contextlib.suppress(BlockingIOError):
            more = os.read(self.pipe.fileno(), 65536)
            self.tail = (self.tail + more)[-TAIL:]
            self.rest += more
            if not more:
                self.close()

    def pass_on(self, line: Shown | None) -> None:
        """Write what can be written without waiting for who reads it: lines, as others write some too."""
        if self.rest and line is not None:
            line.clear()
        try:
            while self.rest and select.select([], [2], [], 0)[1]:
                end = self.rest.rfind(b"\n", 0, select.PIPE_BUF) + 1 or select.PIPE_BUF
                self.rest = self.rest[os.write(2, self.rest[:end]) :]
        except BlockingIOError:
            pass
        except OSError:  # it was closed, or nobody reads it
            self.rest = b""

    def close(self) -> None:
        if self.pipe is not None:
            self.pipe.close()
            self.pipe = None


class Output:
    """What an instance writes to one of its streams.

    Of a line that is rewritten after carriage returns, as a bar of progress is, the last state counts.

    Parameters
    ----------
    number : int
        Of the instance; it stands before each line that is shown.
    pipe : binary file
        From which it comes. It is closed at the end.
    stream : binary file or None
        Where it is to be shown.
    log : binary file or None
        Where it is kept, with the headings of evaluations, which are not shown.

    Attributes
    ----------
    tail : bytes
        The last that has come, as it was.
    interrupted : bool
        Ctrl-C has come: the tracebacks of that are not shown, one for each instance and process.
    """

    def __init__(
        self,
        number: int,
        pipe: IO[bytes],
        stream: IO[bytes] | None,
        log: IO[bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pipe = pipe
        self.stream = stream
        self.tail = b""
        self.interrupted = False
        self._log = log
        self._clock = clock
        self._prefix = b"[%d] " % number
        self._rest = b""
        self._due = -float("inf")  # when a line that is rewritten may be shown
        self._traceback: list[bytes] = []  # that has not yet come to its end, or is chained perhaps
        self._is_told = False  # which exception it is of
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> bytes | None:
        """Take in what has come; return what to show of it, None at the end.

        A line that is too long comes in pieces, one that is rewritten now and then.
        """
        try:
            more = os.read(self.pipe.fileno(), 65536)
        except BlockingIOError:
            return b""
        if not more:
            return None
        self.tail = (self.tail + more)[-TAIL:]
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
        return b"" if self.stream is None else b"".join(self._prefix + line + b"\n" for line in lines)


def _last(line: bytes) -> bytes:
    """Return the last state of a line with carriage returns in it."""
    return next((state for state in reversed(line.split(b"\r")) if state), b"")
