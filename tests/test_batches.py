"""How many evaluations a worker claims at once, and what becomes of them when something goes wrong."""

from __future__ import annotations

import collections
import os
import pathlib
import signal
import time
from typing import Any

import pytest
from conftest import Sandbox, until

from speval import count_evals, load_evals, reading, speval
from speval.pace import BATCH, BATCH_ROOM, Pace

ONE_IS_LONG = """
def func(x):
    note(x, os.getpid())
    if x == LONG:
        wait_for("go")
    else:
        time.sleep(0.0001)

space = range(3000)
speval(func, space, "evals.db")
"""


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("long", [0, 700, 2998])
def test_nothing_waits_behind_a_long_evaluation_and_nothing_is_evaluated_twice(
    sandbox: Sandbox, workers: int, long: int
) -> None:
    script = ONE_IS_LONG.replace("LONG", str(long))
    instances = [sandbox.start(script) for _ in range(workers)]
    done = {"pending": 0, "in_progress": 1, "completed": 2999, "failed": 0}
    until(lambda: os.path.exists(sandbox.db) and count_evals(sandbox.db) == done)
    sandbox.touch("go")
    for instance in instances:
        sandbox.end(instance)
    assert sorted(int(call.split()[0]) for call in sandbox.calls()) == list(range(3000))
    assert sandbox.column("status") == ["completed"] * 3000


def test_a_worker_that_was_stopped_in_mid_batch_does_not_call_what_others_took_over(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x, os.getpid())
    if x == 700 and not os.path.exists("stopped"):
        open("stopped", "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.001)
    return x

speval(func, range(2000), "evals.db", timeout=1)
"""
    stopped = sandbox.start(script)
    until((sandbox.path / "stopped").exists)
    before = sandbox.calls()
    sandbox.run(script)
    stopped.send_signal(signal.SIGCONT)
    sandbox.end(stopped)
    assert [call for call in sandbox.calls() if call.endswith(f" {stopped.pid}")] == before
    assert sandbox.column("result") == list(range(2000))
    assert sandbox.column("losses").count(1) > 1  # it was a batch that was taken over


SHORT = """
def func(x):
    note(x)
    time.sleep(0.001)
    return x

speval(func, range(1500), "evals.db")
"""


def test_a_killed_worker_loses_its_batch_at_most_and_no_stored_result(sandbox: Sandbox) -> None:
    doomed = sandbox.start(SHORT)
    until(lambda: len(sandbox.calls()) > 700)
    sandbox.end_by(doomed, signal.SIGKILL)
    stored = {row["name"]: row for row in load_evals(sandbox.db, "completed")}
    lost = collections.Counter(sandbox.calls()) - collections.Counter(list(stored))
    assert sum(lost.values()) <= 1 + BATCH / 0.001
    sandbox.run(SHORT)
    rows = {row["name"]: row for row in load_evals(sandbox.db, "completed")}
    assert stored.items() <= rows.items()
    assert collections.Counter(sandbox.calls()) == collections.Counter(list(rows)) + lost


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_worker_stores_what_is_finished_of_a_batch_and_releases_the_rest(
    sandbox: Sandbox, how: signal.Signals
) -> None:
    interrupted = sandbox.start(SHORT, measured=False)
    until(lambda: len(sandbox.calls()) > 700)
    sandbox.end_by(interrupted, how)
    counts = count_evals(sandbox.db)
    assert counts["in_progress"] == counts["failed"] == 0
    assert counts["completed"] >= len(sandbox.calls()) - 1
    assert set(sandbox.column("losses")) == {0}


@pytest.mark.parametrize(("max_attempts", "deaths"), [(3, 3), (1, 1)])
def test_arguments_that_kill_a_worker_fail_alone_among_short_evaluations(
    sandbox: Sandbox, max_attempts: int, deaths: int
) -> None:
    script = f"""
def func(x):
    if x == 400:
        note("died")
        os._exit(3)
    return x

speval(func, range(600), "evals.db", max_attempts={max_attempts})
"""
    for _ in range(deaths):
        sandbox.end(sandbox.start(script), 3)
    sandbox.run(script)
    assert len(sandbox.calls()) == deaths
    rows = load_evals(sandbox.db)
    assert [row["name"] for row in rows if row["status"] == "failed"] == ["400"]
    assert rows[400]["losses"] == deaths
    assert max(row["losses"] for row in rows if row["status"] == "completed") == (0 if deaths == 1 else 1)


def test_long_evaluations_are_claimed_one_at_a_time(tmp_path: pathlib.Path) -> None:
    def func(seconds: float) -> int:
        time.sleep(seconds)
        return count_evals(tmp_path / "evals.db")["in_progress"]

    speval(func, [0.0] * 8 + [0.21] * 5, tmp_path / "evals.db")
    assert [row["result"] for row in load_evals(tmp_path / "evals.db")][-4:] == [1] * 4


def test_the_times_of_an_evaluation_are_its_own_not_those_of_its_batch(tmp_path: pathlib.Path) -> None:
    speval(lambda x: time.sleep(0.001), range(100), tmp_path / "evals.db")
    rows = load_evals(tmp_path / "evals.db")
    assert all(row["updated"] - row["started"] >= 0.001 for row in rows)
    assert all(row["updated"] <= after["started"] for row, after in zip(rows, rows[1:]))


@pytest.mark.parametrize("large", ["arguments", "results"])
def test_a_batch_of_large_arguments_or_results_is_small(tmp_path: pathlib.Path, large: str) -> None:
    megabyte = "x" * 1_000_000
    before: list[int] = []

    def func(args: Any) -> Any:
        counts = count_evals(tmp_path / "evals.db")
        before.append(counts["in_progress"] if large == "arguments" else len(before) - counts["completed"])
        return megabyte if large == "results" else None

    speval(func, [megabyte if large == "arguments" else i for i in range(60)], tmp_path / "evals.db")
    assert max(before) <= reading.CHUNK_SIZE / len(megabyte) + 2


def learned(pace: Any, *batches: tuple[float, float, float], watched: bool = False) -> list[int]:
    """Return the rooms of a worker whose evaluations, waits and transactions take so many seconds."""
    rooms = []
    for seconds, waiting, writing in batches:
        pace.learn(pace.room, seconds * pace.room, waiting, writing, watched)
        rooms.append(pace.room)
    return rooms


def test_batches_grow_twofold_at_most_up_to_a_cap_in_number_and_in_time() -> None:
    rooms = learned(Pace(None), *[(1e-6, 0.0, 0.001)] * 15)
    assert rooms == [min(2**n, BATCH_ROOM) for n in range(1, 16)]
    assert learned(Pace(None), *[(0.001, 0.1, 0.1)] * 15)[-1] == 1 + BATCH / 0.001
    assert learned(Pace(0.4), *[(0.001, 0.1, 0.1)] * 15)[-1] == 1 + 0.4 / 4 / 0.001


def test_batches_that_a_watchdog_gives_back_reach_the_cap_in_a_few_transactions() -> None:
    assert learned(Pace(None), *[(1e-6, 0.0, 0.001)] * 4, watched=True) == [
        64,
        BATCH_ROOM,
        BATCH_ROOM,
        BATCH_ROOM,
    ]
    assert learned(Pace(None), *[(0.001, 0.1, 0.1)] * 4, watched=True)[-1] == 1 + BATCH / 0.001
    assert set(learned(Pace(None), *[(1.0, 0.5, 0.001)] * 4, watched=True)) == {1}


def test_batches_shrink_at_once_when_evaluations_take_longer() -> None:
    mine = Pace(None)
    learned(mine, *[(0.0001, 0.0, 0.001)] * 15)
    assert mine.room > 100
    assert learned(mine, (10.0, 0.0, 0.001)) == [1]


def test_evaluations_that_outweigh_a_transaction_go_one_by_one_unless_others_queue() -> None:
    assert set(learned(Pace(None), *[(0.12, 0.001, 0.05)] * 15)) == {1}
    assert learned(Pace(None), *[(0.1, 0.1, 0.001)] * 15)[-1] == 3
    assert set(learned(Pace(None), *[(1.0, 0.5, 0.001)] * 15)) == {1}


def test_a_worker_that_was_stopped_before_its_batch_began_asks_first(sandbox: Sandbox) -> None:
    script = """
import logging

class Handler(logging.Handler):
    def emit(self, record):
        claimed = record.getMessage().startswith("claimed evaluation")
        if claimed and int(record.args[0]) > 500 and not os.path.exists("stopped"):
            open("stopped", "w").close()
            os.kill(os.getpid(), signal.SIGSTOP)

if sys.argv[1] == "stop":
    logging.getLogger("speval").addHandler(Handler())
    logging.getLogger("speval").setLevel(logging.INFO)

def func(x):
    note(x)
    time.sleep(0.001)

speval(func, range(1000), "evals.db", timeout=1)
"""
    stopped = sandbox.start(script, "stop")
    until((sandbox.path / "stopped").exists)
    sandbox.end(sandbox.start(script, "go"))
    stopped.send_signal(signal.SIGCONT)
    sandbox.end(stopped)
    assert sandbox.column("losses").count(1) > 1  # it was a batch that was taken over
    assert set(collections.Counter(sandbox.calls()).values()) == {1}


def test_a_log_filter_that_raises_does_not_end_the_watchdog_for_good(sandbox: Sandbox) -> None:
    script = """
import logging

class Filter(logging.Filter):
    def filter(self, record):
        if threading.current_thread() is not threading.main_thread() and not os.path.exists("raised"):
            open("raised", "w").close()
            raise RuntimeError("the log server is away")
        return False

logging.getLogger("speval").addFilter(Filter())

def func(x):
    note(x)
    if x % 20 in (10, 11) and not os.path.exists("raised"):  # some two are in one batch
        time.sleep(0.4 * (x % 20 - 10))
        raise ValueError(x)
    if x == 500:
        wait_for("go")
    time.sleep(0.001)

speval(func, range(600), "evals.db")
"""
    instance = sandbox.start(script)
    until(lambda: "500" in sandbox.calls())
    until(lambda: count_evals(sandbox.db)["in_progress"] == 1)
    assert (sandbox.path / "raised").exists()
    sandbox.touch("go")
    assert "the log server is away" in sandbox.end(instance)
