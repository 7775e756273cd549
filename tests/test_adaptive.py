"""Adaptive spaces and reports, by processes that are killed, interrupted, forked, and start again."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from conftest import Sandbox, until

from speval import count_evals, load_evals

# Whoever is killed while it thinks, evaluates, reports or stores.
SPACE = """
import random

class Space:
    maximize = False

    def __len__(self):
        return 60

    def suggest(self, history):
        time.sleep(random.uniform(0, 0.004))
        return {"x": len(history)}

"""
STORM = (
    SPACE
    + """
def func(args):
    for step in range(4):
        time.sleep(random.uniform(0, 0.002))
        report(args["x"] + step)
    return args["x"]

number = int(sys.argv[2])
if number < 12:
    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.01, 0.2))  # whose signal kills
speval(func, Space(), sys.argv[1], max_attempts=1000)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
)


@pytest.fixture(params=["sqlite", "postgres"])
def name(request: pytest.FixtureRequest, sandbox: Sandbox) -> Any:
    return request.getfixturevalue("table") if request.param == "postgres" else str(sandbox.db)


class TestSuggestions:
    def test_as_many_are_made_as_there_are_to_be_whoever_is_killed(self, sandbox: Sandbox, name: str) -> None:
        running = [sandbox.start(STORM, name, str(number), measured=False) for number in range(4)]
        until(lambda: _have_ended(sandbox, name, running))
        rows = load_evals(name, reports=True)
        assert [(row["name"], row["args"]["x"], row["result"]) for row in rows] == [
            (str(x), x, x) for x in range(60)
        ]
        assert all(row["reports"] == {step: row["result"] + step for step in range(4)} for row in rows)

    def test_local_processes_make_them_too(self, sandbox: Sandbox, name: str) -> None:
        script = (
            f"{SPACE}print(speval(lambda args: args['x'], Space(), sys.argv[1], n_jobs=3, progress=True))"
        )
        output = sandbox.run(script, name)
        assert "'completed': 60" in output
        assert "60/60" in output
        assert sorted(row["args"]["x"] for row in load_evals(name)) == list(range(60))

    def test_what_suggest_raises_is_raised_by_local_processes_and_claims_are_given_back(
        self, sandbox: Sandbox, name: str
    ) -> None:
        script = (
            SPACE
            + """
class Broken(Space):
    def suggest(self, history):
        if len(history) == 10:
            raise ZeroDivisionError("no idea")
        return super().suggest(history)

try:
    speval(lambda args: time.sleep(0.01), Broken(), sys.argv[1], n_jobs=2)
except ZeroDivisionError as exc:
    print(exc)
"""
        )
        assert "no idea" in sandbox.run(script, name)
        counts = count_evals(name)
        assert sum(counts.values()) == 10
        assert counts["in_progress"] == 0

    def test_who_is_interrupted_while_it_thinks_has_stored_what_it_has(
        self, sandbox: Sandbox, name: str
    ) -> None:
        script = (
            SPACE
            + """
class Slow(Space):
    def suggest(self, history):
        if len(history) == 2:
            note("thinks")
            wait_for("for ever")
        return len(history)

speval(abs, Slow(), sys.argv[1])
"""
        )
        instance = sandbox.start(script, name)
        until(sandbox.calls)
        sandbox.end_by(instance, signal.SIGTERM)
        assert count_evals(name) == {"pending": 0, "in_progress": 0, "completed": 2, "failed": 0}

    @pytest.mark.parametrize("end", ["return len(history)", "raise ValueError"])
    def test_an_interrupt_that_suggest_swallows_ends_the_instance_before_func_is_called(
        self, sandbox: Sandbox, name: str, end: str
    ) -> None:
        script = f"""
class Swallowing:
    def __len__(self):
        return 5

    def suggest(self, history):
        try:
            note("thinks")
            wait_for("for ever")
        except BaseException:
            {end}

speval(note, Swallowing(), sys.argv[1])
"""
        instance = sandbox.start(script, name)
        until(sandbox.calls)
        sandbox.end_by(instance, signal.SIGINT)
        assert sandbox.calls() == ["thinks"]
        assert sum(count_evals(name).values()) == 0

    def test_a_child_that_comes_back_out_of_suggest_claims_nothing(self, sandbox: Sandbox, name: str) -> None:
        script = (
            SPACE
            + """
class Forking(Space):
    def suggest(self, history):
        if len(history) == 2:
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1]
        return super().suggest(history)

speval(lambda args: note(args["x"]), Forking(), sys.argv[1])
"""
        )
        assert "came back in a process that was forked in it" in sandbox.run(script, name)
        assert sandbox.calls() == [str(x) for x in range(60)]

    def test_nobody_waits_for_who_thinks(self, sandbox: Sandbox, name: str) -> None:
        script = (
            SPACE
            + """
class Slow(Space):
    def suggest(self, history):
        if sys.argv[2] == "slow":
            note("thinks")
            wait_for("go")
        return super().suggest(history)

speval(lambda args: note(sys.argv[2], args["x"]), Slow(), sys.argv[1])
"""
        )
        slow = sandbox.start(script, name, "slow")
        until(sandbox.calls)
        sandbox.run(script, name, "quick")
        sandbox.touch("go")
        sandbox.end(slow)
        assert sandbox.calls() == ["thinks", *(f"quick {x}" for x in range(60))]


def _have_ended(sandbox: Sandbox, name: str, running: list[Any]) -> bool:
    """Start again those that were killed; tell whether all have ended well."""
    ended = [instance.poll() for instance in running]
    assert set(ended) <= {None, 0, -signal.SIGALRM}
    for index, code in enumerate(ended):
        if code == -signal.SIGALRM:
            number = len(sandbox.instances)
            running[index] = sandbox.start(STORM, name, str(number), measured=False)
    return ended == [0] * len(ended)


class TestReports:
    def test_a_child_that_func_forks_reports_nothing(self, sandbox: Sandbox, name: str) -> None:
        script = """
def func(x):
    report(1)
    pid = os.fork()
    if pid == 0:
        os._exit(report(2, step=1) or report(3, step=2))
    return os.waitpid(pid, 0)[1], report(4, step=3)

print(speval(func, [0], sys.argv[1]))
"""
        sandbox.run(script, name)
        (row,) = load_evals(name, reports=True)
        assert (row["result"], row["reports"]) == ([0, False], {0: 1, 3: 4})

    def test_on_two_levels_each_has_its_own(self, sandbox: Sandbox, name: str) -> None:
        script = """
def func(x):
    report(1)
    speval(lambda y: report(y), [5, 6], "inner.db")
    report(2)

speval(func, [0], sys.argv[1])
"""
        sandbox.run(script, name)
        assert [row["reports"] for row in load_evals(name, reports=True)] == [{0: 1, 1: 2}]
        rows = load_evals(sandbox.path / "inner.db", reports=True)
        assert [row["reports"] for row in rows] == [{0: 5}, {0: 6}]

    def test_many_take_few_transactions(self, sandbox: Sandbox) -> None:
        script = """
from speval import reports

def store(conn, new):
    note(len(new))
    stored(conn, new)

stored, reports.store = reports.store, store

def func(x):
    end = time.monotonic() + 1
    number = 0
    while time.monotonic() < end:
        report(number)
        number += 1
    return number

speval(func, [0], "evals.db")
"""
        sandbox.run(script)
        (row,) = load_evals(sandbox.db, reports=True)
        assert list(row["reports"]) == list(range(row["result"]))
        assert len(sandbox.calls()) < row["result"] / 10

    def test_a_handler_of_a_signal_may_report_in_the_middle_of_a_report(
        self, sandbox: Sandbox, name: str
    ) -> None:
        script = """
from speval import reports
reports.SHARE = 1e9  # each is stored at once

def func(x):
    signal.signal(signal.SIGALRM, lambda *args: report(7, 10**6))
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    end = time.monotonic() + 0.5
    number = 0
    while time.monotonic() < end:
        report(number)
        report(number, number)
        number += 1
    signal.setitimer(signal.ITIMER_REAL, 0)

print(speval(func, [0], sys.argv[1])["completed"])
"""
        assert sandbox.run(script, name) == "1\n"
        (row,) = load_evals(name, reports=True)
        assert row["reports"][10**6] == 7

    def test_those_of_a_killed_worker_stay_and_its_heir_goes_on_from_them(
        self, sandbox: Sandbox, name: str
    ) -> None:
        script = """
from speval import reports
reports.SHARE = 1e9  # each is stored at once

def func(x):
    known = load_evals(sys.argv[1], reports=True)[0]["reports"]
    for step in range(len(known), 6):
        report(step, step)
        if step == 3 and not known:
            os.kill(os.getpid(), signal.SIGKILL)
    return list(known)

speval(func, [0], sys.argv[1])
"""
        sandbox.end(sandbox.start(script, name, measured=False), -signal.SIGKILL)
        sandbox.run(script, name)
        (row,) = load_evals(name, reports=True)
        assert (row["result"], list(row["reports"])) == ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5])

    def test_nothing_is_reported_to_a_database_that_was_made_anew(self, sandbox: Sandbox) -> None:
        script = """
from speval import reports
reports.SHARE = 1e9

def func(x):
    report(1)
    os.remove("evals.db")
    note("removed")
    wait_for("go")
    report(2)

speval(func, [0], "evals.db")
"""
        first = sandbox.start(script)
        until(sandbox.calls)
        sandbox.run("speval(lambda x: report(5), [0], 'evals.db')")
        sandbox.touch("go")
        assert "replaced" in sandbox.end(first, 1)
        assert load_evals(sandbox.db, reports=True)[0]["reports"] == {0: 5}
