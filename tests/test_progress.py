"""The line of progress, by a clock that is simulated: its rate and time left beside the true ones."""

from __future__ import annotations

import heapq
import io
import random
from collections.abc import Callable, Sequence

import pytest
from conftest import Sandbox

from speval import speval
from speval.database import database
from speval.errors import NotWritable
from speval.view.progress import Progress
from speval.workers import how_far

HOUR = 3600.0


class Sweep:
    """Evaluations of so many seconds each, by workers who begin together, after others that were done."""

    def __init__(self, takes: Sequence[float], workers: int, done: int = 0) -> None:
        self.now = 0.0
        self.left = list(takes)[::-1]
        self.done, self.workers = done, workers
        self.ends: list[float] = []  # of those under way, the next one first
        self._claim()

    def _claim(self) -> None:
        while self.left and len(self.ends) < self.workers:
            heapq.heappush(self.ends, self.now + self.left.pop())

    def go_on(self, until: float) -> None:
        while self.ends and self.ends[0] <= until:
            self.now = heapq.heappop(self.ends)
            self.done += 1
            self._claim()
        self.now = until

    def look(self, name: str = "") -> tuple[dict[str, int], int]:
        counts = {"pending": len(self.left), "in_progress": len(self.ends), "completed": self.done}
        return {**counts, "failed": 0}, self.workers


class Line:
    """The line of some sweeps as it is shown from second to second, or as rarely as it is told."""

    def __init__(self, step: float = 1.0, **looks: Callable[[str], tuple[dict[str, int], int]]) -> None:
        self.now, self._step, self._looks = 0.0, step, looks
        self._stream = io.StringIO()
        self._stream.isatty = lambda: True  # type: ignore[method-assign]
        self._progress = Progress(self._look, lambda: self._looks, self._stream, lambda: self.now)
        self._progress.show()

    def _look(self, name: str) -> tuple[dict[str, int], int]:
        return self._looks[name](name)

    def at(self, second: float, *sweeps: Sweep) -> str:
        """Let time pass; return what stands there then."""
        while self.now < second:
            self.now = min(self.now + self._step, second)
            for sweep in sweeps:
                sweep.go_on(self.now)
            self._progress.show()
        return self._stream.getvalue().split("\r")[-1].strip()

    def at_end(self) -> str:
        self._progress.close()
        return self._stream.getvalue().split("\r")[-1].strip(" ")


def rate(line: str) -> float | None:
    """Return evaluations per hour as a line says them."""
    words = [word for word in line.split(", ") if word.endswith(("/s", "/h"))]
    return float(words[0][:-2].replace(",", "")) * (3600 if words[0][-1] == "s" else 1) if words else None


def left(line: str) -> float | None:
    """Return the seconds that are left as a line says them."""
    words = line.rsplit(", ", maxsplit=1)[-1].split()
    if words[-1] != "left":
        return None
    return sum(int(n) * {"s": 1, "min": 60, "h": 3600}[u] for n, u in zip(words[0::2], words[1::2]))


def jittered(seconds: float, share: float, number: int) -> list[float]:
    chance = random.Random(number)  # one of each test: the same whichever runs before
    return [seconds * chance.uniform(1 - share, 1 + share) for _ in range(number)]


def test_what_was_done_before_a_sweep_is_resumed_is_not_new() -> None:
    sweep = Sweep([6.0] * 20, 2, done=5000)
    line = Line(0.5, db=sweep.look)
    for second in 0.0, 1.0, 5.5:
        assert line.at(second, sweep).endswith("] 5000/5020, 2 workers")
    for second in 6.5, 20.0, 59.0:
        shown = line.at(second, sweep)
        assert rate(shown) == pytest.approx(2 / 6 * HOUR, rel=0.1)
        assert left(shown) == pytest.approx(60 - second, abs=2)
    line.at(60.0, sweep)
    assert line.at_end().endswith("] 5020/5020, 2 workers, 0.333/s\n")


@pytest.mark.parametrize(("workers", "share", "error"), [(8, 0.01, 0.1), (8, 0.3, 1.0), (100, 0.1, 0.3)])
def test_evaluations_of_an_hour_tell_nothing_before_each_worker_has_finished_one(
    workers: int, share: float, error: float
) -> None:
    takes = jittered(HOUR, share, 5 * workers)
    sweep, other = Sweep(takes, workers), Sweep(takes, workers)
    while other.ends:
        other.go_on(other.ends[0])
    line = Line(20.0, db=sweep.look)
    while sweep.done < workers:
        assert rate(line.at(line.now)) is None
        line.at(line.now + 20.0, sweep)
    for second in range(int(1.4 * HOUR), int(4.3 * HOUR), 1000):
        shown = line.at(second, sweep)
        assert rate(shown) == pytest.approx(workers, rel=0.25)
        assert left(shown) == pytest.approx(other.now - second, abs=error * HOUR)


@pytest.mark.parametrize("workers", [1, 8])
def test_evaluations_of_a_millisecond_are_right_at_once(workers: int) -> None:
    sweep = Sweep([0.001] * 40_000, workers)
    line = Line(0.5, db=sweep.look)
    total = 40.0 / workers
    for second in 0.5, 1.0, total / 2, total - 0.5:
        shown = line.at(second, sweep)
        assert rate(shown) == pytest.approx(workers * 1000 * HOUR, rel=0.05)
        assert left(shown) == pytest.approx(total - second, abs=1.1)


def test_when_three_of_four_die_a_quarter_is_left_of_the_rate() -> None:
    sweep = Sweep(jittered(600.0, 0.2, 100), 4)
    line = Line(10.0, db=sweep.look)
    assert rate(line.at(7200.0, sweep)) == pytest.approx(24, rel=0.1)
    sweep.left += [600.0] * 3
    sweep.ends, sweep.workers = sweep.ends[:1], 1
    assert rate(line.at(7201.0, sweep)) == pytest.approx(6, rel=0.1)


def test_some_that_fail_at_once_are_soon_forgotten() -> None:
    sweep = Sweep([0.0] * 8 + jittered(HOUR, 0.1, 80), 8)
    line = Line(10.0, db=sweep.look)
    assert (left(line.at(HOUR / 2, sweep)) or HOUR) >= HOUR  # and not "0 s left"
    assert rate(line.at(3 * HOUR, sweep)) == pytest.approx(8, rel=0.2)


def test_who_hangs_slows_the_rate_and_is_not_said_to_be_done_soon() -> None:
    sweep = Sweep([0.001] * 20_000 + [10_000.0] * 8 + [0.001] * 10_000, 8)
    line = Line(0.5, db=sweep.look)
    assert (rate(line.at(2.0, sweep)) or 0) > 7000 * HOUR
    assert (rate(line.at(100.0, sweep)) or 0) < 100 * HOUR
    assert left(line.at(100.0, sweep)) != 0


def test_a_look_that_fails_leaves_what_was_seen_last() -> None:
    sweep = Sweep([1.0] * 200, 2)
    fails = False

    def look(name: str) -> tuple[dict[str, int], int]:
        if fails:
            raise NotWritable("is locked by another process just now")
        return sweep.look()

    line = Line(0.5, db=look)
    before = line.at(40.0, sweep)
    fails = True
    assert line.at(45.0, sweep) == before
    fails = False
    assert rate(line.at(46.0, sweep)) == pytest.approx(2 * HOUR, rel=0.05)


def test_a_database_that_is_new_resumed_or_deleted_leaves_the_rate_of_the_others_right() -> None:
    sweeps = {
        "old": Sweep([2.0] * 100, 2, done=1000),
        "new": Sweep([1.0] * 50, 1),
        "temporary": Sweep([], 0, 7),
    }
    gone: set[str] = {"new"}

    def look(name: str) -> tuple[dict[str, int], int]:
        if name in gone:
            raise FileNotFoundError(name)
        return sweeps[name].look()

    line = Line(0.5, old=look, new=look, temporary=look)
    shown = line.at(10.0, sweeps["old"])
    assert "1017/1107, 2 workers" in shown
    assert rate(shown) == pytest.approx(HOUR, rel=0.05)
    gone ^= {"new", "temporary"}
    sweeps["new"].now = 10.0
    sweeps["new"].ends = [11.0]
    shown = line.at(20.0, *sweeps.values())
    assert "1037/1157, 3 workers" in shown
    assert rate(shown) == pytest.approx(2 * HOUR, rel=0.1)
    assert left(shown) == pytest.approx(80, abs=3)


def test_nothing_known_is_said_and_leaves_no_bar() -> None:
    line = Line()
    assert line.at(5.0) == "no evaluations yet"
    assert line.at_end() == ""


def test_reset_evaluations_do_not_start_the_rate_anew() -> None:
    sweep = Sweep([1.0] * 200, 2)
    line = Line(0.5, db=sweep.look)
    line.at(20.0, sweep)
    sweep.done -= 30
    sweep.left += [1.0] * 30
    assert rate(line.at(21.0, sweep)) == pytest.approx(2 * HOUR, rel=0.1)


def test_a_database_that_is_locked_is_busy_and_shown_as_it_was(sandbox: Sandbox) -> None:
    speval(abs, [1, 2, 3], sandbox.db)
    line = Line(db=lambda name: how_far(database(sandbox.db)))
    before = line.at(1.0)
    assert before.endswith("] 3/3, 0 workers")
    with sandbox.locked():
        assert line.at(5.0) == before
        with pytest.raises(NotWritable, match="is locked by another process just now"):
            how_far(database(sandbox.db))
