"""How far a sweep is, in one line: rewritten in place on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TextIO

from ..errors import NotWritable, SpevalError
from ..process.output import is_writable

__all__ = ["Progress", "Rate", "bar", "duration", "line", "speed"]

OFTEN, SELDOM = 0.5, 60.0  # seconds between two lines, on a terminal and elsewhere
SOON = 0.1  # seconds between two looks before anything is known: a rate is taken from the first on
TRIES = 50  # to look at the end, when a database is locked
FIRST = 10.0  # seconds until the first one elsewhere
WINDOW = 30.0  # seconds, at least, over which a rate is taken
ENOUGH = 10  # finished evaluations, at least
COST = 0.02  # of the time, at most, that goes into looking
UNWRITABLE = (OSError, ValueError, AttributeError)  # a stream that is full, closed, or None


class Sample(NamedTuple):
    """When some were finished: how many since the first look, in how many seconds of all workers together.

    Of these, those under way then, one for each of `busy` workers, had had `begun`.
    """

    at: float
    gained: int
    spent: float
    begun: float
    busy: int


class Rate:
    """How many evaluations are finished per second, as many as work now, by what one takes a worker of late.

    Of late: in the last 30 s, or the time of the last 10, in which each worker has finished as many. What
    was finished before the first look does not count. A rate is known when each worker has finished one, on
    average: the first of those that take an hour say nothing of the others that began with them.

    Attributes
    ----------
    gained : int
        How many were finished since the first look.
    takes : float or None
        Seconds that an evaluation takes a worker of late.
    begun : float
        Seconds that workers together have had for what is under way.
    """

    def __init__(self) -> None:
        self.gained = 0
        self.takes: float | None = None
        self._spent = 0.0
        self._samples: collections.deque[Sample] = collections.deque()
        self._at: float | None = None
        self._finished = self._busy = 0
        self._known = False

    def learn(self, now: float, finished: int, busy: int = 1) -> float | None:
        """Take in that so many are finished by now, and work; return how many there are per second."""
        passed, gained = (0.0, 0) if self._at is None else (now - self._at, max(finished - self._finished, 0))
        self.gained += gained  # what was reset is not lost
        self._spent += passed * max(busy, self._busy, gained > 0)
        if gained or self._at is None:
            busy_then = max(busy, self._busy)
            begun = self._begun(now, busy_then - gained)
            self._samples.append(Sample(now, self.gained, self._spent, begun, busy_then))
        self._at, self._finished, self._busy = now, finished, busy
        self._forget(now)
        self.takes = self._estimate(max(busy, 1))
        return busy / self.takes if self.takes and busy else None

    def _forget(self, now: float) -> None:
        samples = self._samples
        busy = max(1, *(sample.busy for sample in samples))
        enough = self.gained - -(-ENOUGH // busy) * busy  # as many of each worker: all may end at once
        while len(samples) > 2 and samples[1].at <= now - WINDOW and samples[1].gained <= enough:
            samples.popleft()

    def _begun(self, now: float, busy: int) -> float:
        """Return the seconds that so many have had together: each began when another was finished."""
        seconds = 0.0
        samples = list(self._samples)[::-1]
        for later, earlier in zip(samples, samples[1:]):
            number = min(later.gained - earlier.gained, busy)
            if number <= 0:
                return seconds
            seconds += number * (now - later.at)
            busy -= number
        return seconds + max(busy, 0) * (now - samples[-1].at if samples else 0.0)

    def _estimate(self, busy: int) -> float | None:
        first, last = self._samples[0], self._samples[-1]
        number = last.gained - first.gained
        self._known = self._known or number >= busy
        if not self._known:
            return None
        # Of what those under way have had, nothing counts if all are alike, and all if they are random.
        spent = last.spent - first.spent - (last.begun - first.begun) / 2
        # Not less than if those under way were finished now: they may take longer than all before them.
        return max(spent / number, (self._spent - first.spent) / (number + busy))

    @property
    def begun(self) -> float:
        return self._spent - self._samples[-1].spent + self._samples[-1].begun / 2 if self._samples else 0.0

    @property
    def ended(self) -> float | None:
        """When the last was finished; None if none was."""
        return self._samples[-1].at if self.gained else None


def duration(seconds: float) -> str:
    """Return `seconds` as a person would say it: two units at most."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def speed(rate: float) -> str:
    """Return a number per second, or per hour where that says more."""
    if rate >= 100:
        return f"{rate:,.0f}/s"
    return f"{rate:.3g}/s" if rate >= 0.1 else f"{rate * 3600:.3g}/h"


def bar(finished: int, total: int, room: int) -> str:
    """Return a bar of `room` characters between brackets."""
    full = room * finished // total if total else room
    return f"[{'#' * full}{'.' * (room - full)}]"


def line(
    counts: Mapping[str, int], workers: int, rate: float | None, left: float | None, columns: int
) -> str:
    """Return bar, done/total, failed, workers, rate and time left; without the bar if there is no room."""
    total = sum(counts.values())
    if not total:
        return "no evaluations yet"[: max(columns - 1, 1)]
    finished = counts["completed"] + counts["failed"]
    words = [f"{finished}/{total}"]
    if counts["failed"]:
        words.append(f"{counts['failed']} failed")
    words.append(f"{workers} worker{'s' * (workers != 1)}")
    if rate:
        words.append(speed(rate))
    if left:
        words.append(f"{duration(left)} left")
    text = ", ".join(words)
    room = min(columns - len(text) - 4, 40)
    if room >= 5:
        text = f"{bar(finished, total, room)} {text}"
    return text[: max(columns - 1, 1)]


class Part:
    """One database of a sweep, as it was when it was seen last.

    Attributes
    ----------
    counts : Counter
        The number of evaluations by status; none before it was seen.
    workers : int
        Number of those that live.
    speed, left : float or None
        Evaluations per second, and seconds until all are finished, as far as they are known.
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.workers = 0
        self.rate = Rate()
        self.speed: float | None = None
        self.left: float | None = None
        self.began: float | None = None
        self._dry: float | None = None  # since when nothing is pending

    def learn(self, now: float, counts: Mapping[str, int], workers: int) -> None:
        self.began = now if self.began is None else self.began
        self.counts, self.workers = collections.Counter(counts), workers
        self._dry = None if counts["pending"] else now if self._dry is None else self._dry
        left = counts["pending"] + counts["in_progress"]
        self.speed = self.rate.learn(now, counts["completed"] + counts["failed"], min(workers, left))
        self.left = self._time_left(now, left, min(workers, left)) if left else 0.0

    def _time_left(self, now: float, left: int, busy: int) -> float | None:
        takes = self.rate.takes
        if takes is None or not busy:
            return None
        work = left * takes - self.rate.begun
        seconds = work / busy if self._dry is None else takes - (now - self._dry)
        return seconds if seconds > 0 else None  # they take longer than others did

    def vanish(self) -> None:
        """It was deleted: what was done in it is done, the rest is not needed any more."""
        self.counts["pending"] = self.counts["in_progress"] = self.workers = 0
        self.speed, self.left = None, 0.0


class Progress:
    """The line of one sweep, on stderr.

    Parameters
    ----------
    look : callable
        Returns, of a database by its name, the number of evaluations by status, and of live workers. If it
        raises `SpevalError` or `OSError`, what was seen last stands; `FileNotFoundError`: there is none.
    names : callable
        Returns the names of the databases, of which more may come.
    """

    def __init__(
        self,
        look: Callable[[str], tuple[Mapping[str, int], int]],
        names: Callable[[], Iterable[str]],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._names = names
        self._parts: dict[str, Part] = {}
        self._stream = stream or sys.stderr  # which may be None
        self._pid = os.getpid()
        self._clock = clock
        self._width = 0  # of what stands in the line of the terminal now
        with contextlib.suppress(Exception):  # a notebook rewrites a line too, though it says otherwise
            self._is_terminal = self._stream.isatty() or type(self._stream).__module__.startswith("ipykernel")
        self._due = clock() + (0.0 if self._is_terminal else FIRST)
        self._next = clock()
        logging.getLogger("speval").addFilter(self._make_room)

    _is_terminal = False

    def __enter__(self) -> Progress:
        self.show()  # before anything is done: the rate is that of what comes after
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info == (None, None, None):  # else an interrupt may be what has ended it
            is_writable(self._stream, None)
        self.close()

    def show(self) -> float:
        """Look, and write the line, if it is time; return the seconds until it is again."""
        now = self._clock()
        if now >= self._next:
            self._update(now)
            took = self._clock() - now
            self._next = now + max(OFTEN if self.counts else SOON, took / COST)
        return max(self._next - self._clock(), 0.0)

    def _update(self, now: float, tries: int = 1) -> None:
        for name in self._names():
            self._see(self._parts.setdefault(name, Part()), name, tries)
        if now >= self._due:
            self._write(self._text())
            self._due = now + (0.0 if self._is_terminal else SELDOM)

    def _see(self, part: Part, name: str, tries: int) -> None:
        for _ in range(tries):
            try:
                seen = self._look(name)
            except FileNotFoundError:
                part.vanish()
            except NotWritable:
                continue
            except (SpevalError, OSError):  # the instances meet it too, and say so
                pass
            else:
                part.learn(self._clock(), *seen)
            return

    @property
    def counts(self) -> collections.Counter[str]:
        """The number of evaluations by status in all databases together, empty if there are none."""
        return sum((part.counts for part in self._parts.values()), collections.Counter())

    def _text(self) -> str:
        parts, counts = self._parts.values(), self.counts
        lefts = [part.left for part in parts if part.left != 0.0]
        known = [left for left in lefts if left is not None]
        left = max(known) if known and len(known) == len(lefts) else None
        rate = sum(part.speed or 0.0 for part in parts) if lefts else self._mean()
        return line(counts, sum(part.workers for part in parts), rate, left, self._columns())

    def _mean(self) -> float | None:
        """Return how many evaluations were finished per second from the first look to the last of them."""
        parts = self._parts.values()
        ends = [part.rate.ended for part in parts if part.rate.ended is not None]
        seconds = max(ends) - min(part.began for part in parts if part.began is not None) if ends else 0.0
        return sum(part.rate.gained for part in parts) / seconds if seconds else None

    def _columns(self) -> int:
        if not self._is_terminal:
            return 100
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if not is_writable(self._stream):  # the terminal is stopped by Ctrl-S, say: the next line will do
            return
        with contextlib.suppress(*UNWRITABLE):  # closed, or full
            if self._is_terminal:
                self._stream.write("\r" + text.ljust(self._width))
                self._width = len(text)
            else:
                self._stream.write(text + "\n")
            self._stream.flush()

    def _make_room(self, record: Any) -> bool:
        """Clear the line for what is logged; in a forked process that is not ours to do."""
        if os.getpid() == self._pid:
            self.clear()
        return True

    def clear(self) -> None:
        """Take the line away, for something else to be written."""
        if self._width and is_writable(self._stream):
            with contextlib.suppress(*UNWRITABLE):
                self._stream.write("\r" + " " * self._width + "\r")
                self._stream.flush()
            self._width = 0

    def close(self) -> None:
        """Write how it stands at the end, and let it stand there; nothing if there are no evaluations."""
        logging.getLogger("speval").removeFilter(self._make_room)
        self._due = math.inf
        self._update(self._clock(), TRIES)
        if not self.counts:
            self.clear()
            return
        self._write(self._text() + "\n" * self._is_terminal)
