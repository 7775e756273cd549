"""How far a sweep is, in one line: rewritten in place on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

__all__ = ["Progress", "Rate", "bar", "duration", "line", "speed"]

OFTEN, SELDOM = 0.5, 60.0  # seconds between two lines, on a terminal and elsewhere
FIRST = 10.0  # seconds until the first one elsewhere
WINDOW = 30.0  # seconds, at least, over which a rate is taken
ENOUGH = 10  # finished evaluations, at least
COST = 0.02  # of the time, at most, that goes into looking
UNWRITABLE = (OSError, ValueError, AttributeError)  # a stream that is full, closed, or None


class Rate:
    """How many evaluations are finished per second, of late: in the last 30 s, or the time of the last 10."""

    def __init__(self) -> None:
        self._samples: collections.deque[tuple[float, int]] = collections.deque()

    def learn(self, now: float, finished: int) -> float | None:
        """Take in that so many are finished by now; return how many there are per second, None at first."""
        samples = self._samples
        if samples and finished < samples[-1][1]:  # some were reset
            samples.clear()
        if not samples or finished > samples[-1][1]:
            samples.append((now, finished))
        while len(samples) > 2 and now - samples[1][0] >= WINDOW and finished - samples[1][1] >= ENOUGH:
            samples.popleft()
        began, before = samples[0]
        return (finished - before) / (now - began) if finished > before and now > began else None


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


def line(counts: Mapping[str, int], workers: int, rate: float | None, columns: int) -> str:
    """Return bar, done/total, failed, workers, rate and time left; without the bar if there is no room."""
    total = sum(counts.values())
    finished = counts["completed"] + counts["failed"]
    words = [f"{finished}/{total}"]
    if counts["failed"]:
        words.append(f"{counts['failed']} failed")
    words.append(f"{workers} worker{'s' * (workers != 1)}")
    if rate:
        words.append(speed(rate))
        if finished < total:
            words.append(f"{duration((total - finished) / rate)} left")
    text = ", ".join(words)
    room = min(columns - len(text) - 4, 40)
    if room >= 5:
        text = f"{bar(finished, total, room)} {text}"
    return text[: max(columns - 1, 1)]


class Progress:
    """The line of one sweep, on stderr.

    Parameters
    ----------
    look : callable
        Returns the number of evaluations by status, and of live workers.
    """

    def __init__(
        self,
        look: Callable[[], tuple[Mapping[str, int], int]],
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._stream = stream or sys.stderr  # which may be None
        self._pid = os.getpid()
        self._clock = clock
        self._rate = Rate()
        self._width = 0  # of what stands in the line of the terminal now
        with contextlib.suppress(Exception):  # a notebook rewrites a line too, though it says otherwise
            self._is_terminal = self._stream.isatty() or type(self._stream).__module__.startswith("ipykernel")
        self._due = clock() + (0.0 if self._is_terminal else FIRST)
        self._pause = OFTEN
        self._next = clock()
        logging.getLogger("speval").addFilter(self._make_room)

    _is_terminal = False

    def show(self) -> float:
        """Look, and write the line, if it is time; return the seconds until it is again."""
        now = self._clock()
        if now >= self._next:
            self._update(now)
            took = self._clock() - now
            self._next = now + max(OFTEN, took / COST)
        return max(self._next - self._clock(), 0.0)

    def _update(self, now: float) -> None:
        counts, workers = self._look()
        rate = self._rate.learn(now, counts["completed"] + counts["failed"])
        if now >= self._due:
            self._write(line(counts, workers, rate, self._columns()))
            self._due = now + (0.0 if self._is_terminal else SELDOM)

    def _columns(self) -> int:
        if not self._is_terminal:
            return 100
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        with contextlib.suppress(*UNWRITABLE):  # closed, or full
            if self._is_terminal:
                self._stream.write("\r" + text.ljust(self._width))
                self._width = len(text)
            else:
                self._stream.write(text + "\n")
            self._stream.flush()

    def _make_room(self, record: Any) -> bool:
        """Clear the line for what is logged; a forked process does not know how long it is by now."""
        if os.getpid() != self._pid and self._is_terminal:
            self._width = self._columns() - 1
        self.clear()
        return True

    def clear(self) -> None:
        """Take the line away, for something else to be written."""
        if self._width:
            with contextlib.suppress(*UNWRITABLE):
                self._stream.write("\r" + " " * self._width + "\r")
                self._stream.flush()
            self._width = 0

    def close(self) -> None:
        """Write how it stands at the end, and let it stand there."""
        logging.getLogger("speval").removeFilter(self._make_room)
        self._due = self._clock()
        self._update(self._due)
        if self._is_terminal:
            with contextlib.suppress(*UNWRITABLE):
                self._stream.write("\n")
                self._stream.flush()
