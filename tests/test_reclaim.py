"""Workers that die or stall, and what becomes of their evaluations."""

import os
import signal
import sqlite3

import pytest
from conftest import Sandbox, until

from speval import count_evals, load_evals, reset_evals

# The first attempt of an evaluation waits for a file that never comes, a later one returns.
HANGS_ONCE = """
def func(x):
    attempt = current_eval()["attempt"]
    note(x, attempt)
    if attempt == 1:
        wait_for("go")
    return attempt

"""


def test_an_evaluation_of_a_killed_worker_is_done_by_another_without_any_timeout(sandbox: Sandbox) -> None:
    script = HANGS_ONCE + 'speval(func, [7], "evals.db")'
    first = sandbox.start(script)
    until(sandbox.calls)
    second = sandbox.start(script)
    first.kill()
    assert f"reclaimed evaluation 0: process {first.pid} on" in sandbox.end(second)
    (row,) = load_evals(sandbox.db)
    assert (row["status"], row["result"], row["attempt"], row["losses"]) == ("completed", 2, 2, 1)
    assert sandbox.calls() == ["7 1", "7 2"]


def test_a_stopped_worker_loses_its_evaluation_after_the_timeout_and_its_late_result(
    sandbox: Sandbox,
) -> None:
    script = HANGS_ONCE + 'speval(func, [7], "evals.db", timeout=0.3)'
    first = sandbox.start(script)
    until(sandbox.calls)
    first.send_signal(signal.SIGSTOP)
    output = sandbox.run(script)
    assert "reclaimed evaluation 0" in output
    assert "ran past the timeout" in output
    sandbox.touch("go")
    first.send_signal(signal.SIGCONT)
    assert "dropped what came late for evaluation 0, attempt 1" in sandbox.end(first)
    assert sandbox.column("result") == [2]


def test_a_late_result_is_kept_while_there_is_no_other(sandbox: Sandbox) -> None:
    script = """
def func(x):
    attempt = current_eval()["attempt"]
    note(attempt)
    wait_for(f"go {attempt}")
    return attempt

print(speval(func, [7], "evals.db", timeout=0.3, max_attempts=2))
"""
    first = sandbox.start(script)
    until(sandbox.calls)
    second = sandbox.start(script)
    until(lambda: len(sandbox.calls()) == 2)
    sandbox.touch("go 1")
    sandbox.end(first)
    assert sandbox.column("result") == [1]
    sandbox.touch("go 2")
    assert "dropped what came late for evaluation 0, attempt 2" in sandbox.end(second)
    assert sandbox.column("result") == [1]


def test_a_late_result_is_kept_over_a_failure_by_losses_but_not_after_a_reset(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x)
    wait_for(f"go {x}")
    return x

speval(func, {"a": "a"} if sys.argv[1] == "a" else {"a": "a", "b": "b"}, "evals.db", timeout=0.3,
    max_attempts=1)
"""
    one = sandbox.start(script, "a")
    until(lambda: "a" in sandbox.calls())
    two = sandbox.start(script, "b")
    until(lambda: "b" in sandbox.calls())
    # Each is lost by the eyes of a third, which does not call func: both have had their one attempt.
    sandbox.run(script, "b")
    assert sandbox.column("status") == ["failed", "failed"]
    assert "lost 1 times" in sandbox.column("error")[0]
    assert reset_evals(sandbox.db, names=["b"]) == 1
    for x in "ab":
        sandbox.touch(f"go {x}")
    sandbox.end(one)
    assert "dropped what came late for evaluation b, attempt 1" in sandbox.end(two)
    assert sandbox.column("result") == ["a", "b"]
    assert sandbox.calls() == ["a", "b", "b"]


def test_a_wall_clock_ten_minutes_ahead_takes_nothing_from_anybody(sandbox: Sandbox) -> None:
    first = sandbox.start(HANGS_ONCE + 'speval(func, [7], "evals.db", timeout=30)')
    until(sandbox.calls)
    ahead = "now = time.time\ntime.time = lambda: now() + 600\n"
    sandbox.run(ahead + HANGS_ONCE + 'speval(func, [7], "evals.db", timeout=30, wait=False)')
    sandbox.touch("go")
    sandbox.end(first)
    assert sandbox.calls() == ["7 1"]


def test_without_a_timeout_a_stopped_worker_keeps_its_evaluation(sandbox: Sandbox) -> None:
    first = sandbox.start(HANGS_ONCE + 'speval(func, [7], "evals.db")')
    until(sandbox.calls)
    first.send_signal(signal.SIGSTOP)
    sandbox.run(HANGS_ONCE + 'speval(func, [7], "evals.db", wait=False)')
    assert count_evals(sandbox.db)["in_progress"] == 1
    sandbox.touch("go")
    first.send_signal(signal.SIGCONT)
    sandbox.end(first)
    assert sandbox.calls() == ["7 1"]


def test_arguments_that_kill_every_worker_fail_in_the_end_and_take_nothing_along(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x)
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

speval(func, range(5), "evals.db")
"""
    for _ in range(3):
        sandbox.end(sandbox.start(script), -signal.SIGKILL)
    sandbox.run(script)
    assert sandbox.column("status") == ["completed"] * 2 + ["failed"] + ["completed"] * 2
    assert sandbox.column("losses")[2] == 3
    assert max(sandbox.column("losses")[:2] + sandbox.column("losses")[3:]) <= 1  # in a batch with it, once
    assert "lost 3 times" in sandbox.column("error")[2]
    assert sandbox.calls().count("2") == 3


def test_a_claim_by_nobody_known_is_taken_over(sandbox: Sandbox) -> None:
    sandbox.run('speval(lambda x: x, [1, 2], "evals.db")')
    with sqlite3.connect(sandbox.db) as conn:
        conn.execute("UPDATE evals SET status = 'in_progress', worker = NULL WHERE id = 1")
        conn.execute("UPDATE evals SET status = 'in_progress', worker = 5 WHERE id = 2")
    conn.close()
    sandbox.run('speval(lambda x: x, [1, 2], "evals.db")')
    assert sandbox.column("status") == ["completed"] * 2


def test_who_is_marked_as_ended_at_the_end_and_gets_new_evaluations_keeps_them(sandbox: Sandbox) -> None:
    script = """
import importlib
from speval.database import database
job = importlib.import_module("speval.speval")
speval(lambda x: x, range(2), "evals.db")

db = database("evals.db")
workers = [job.Worker(db, None, 3) for _ in range(3)]
for worker in workers:
    db.locks.add(worker.id)
    worker.exchange(1)
workers[0].leave()
reset_evals("evals.db", "completed")
workers[1].exchange(1)
workers[2].exchange(2)
print([claim.name for claim in workers[2].todo])
print([e["status"] for e in load_evals("evals.db")])
"""
    assert sandbox.run(script).splitlines() == ["['1']", str(["in_progress"] * 2)]
    conn = sqlite3.connect(sandbox.db)
    assert conn.execute("SELECT count(*) FROM workers WHERE ended IS NULL").fetchall() == [(2,)]
    conn.close()


def test_a_waiting_worker_says_for_whom(sandbox: Sandbox) -> None:
    first = sandbox.start(HANGS_ONCE + 'speval(func, [7], "evals.db")')
    until(sandbox.calls)
    impatient = "import importlib\nimportlib.import_module('speval.speval').STILL_WAITING = 0.01\n"
    second = sandbox.start(impatient + HANGS_ONCE + 'speval(func, [7], "evals.db")')
    assert second.stdout is not None
    line = second.stdout.readline()
    assert line.startswith("waiting for evaluation 0, for ")
    assert f"(process {first.pid})" in line
    sandbox.touch("go")
    sandbox.end(first)
    sandbox.end(second)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_however_a_process_ends_its_claim_is_free(sandbox: Sandbox, how: signal.Signals) -> None:
    script = HANGS_ONCE + 'speval(func, [7], "evals.db")'
    first = sandbox.start(script)
    until(sandbox.calls)
    os.kill(first.pid, how)
    sandbox.run(script)
    assert sandbox.column("losses") == [1]
