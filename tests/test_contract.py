"""What every database has to do: an evaluation's whole life, by workers that die, stall and come late."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import logging
import math
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from memory import Memory

from speval import (
    SpaceMismatch,
    SpevalError,
    count_evals,
    current_eval,
    history,
    iter_evals,
    load_evals,
    report,
    reports,
    reset_evals,
    speval,
)
from speval.database import Database, database
from speval.errors import NotWritable
from speval.history import History
from speval.view import survey
from speval.workers import how_far

job = importlib.import_module("speval.speval")

DATABASES = ["sqlite", "memory", "postgres"]


@pytest.fixture(params=DATABASES)
def db(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Database]:
    """A database that is not there yet. (The next one has only to be added here.)"""
    if request.param == "memory":
        with contextlib.closing(Memory()) as memory:
            yield memory
    elif request.param == "postgres":
        from speval.database import postgres

        request.getfixturevalue("monkeypatch").setattr(postgres, "GONE", 0.0)
        yield database(request.getfixturevalue("table"))
    else:
        yield database(tmp_path / "evals.db")


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Workers:
    """Workers of as many instances, whose loops the test goes through."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self.db, self.clock = db, clock
        self.all: list[Any] = []

    def join(self, timeout: float | None = None, max_attempts: int = 3) -> Any:
        worker = job.Worker(self.db, timeout, max_attempts, clock=self.clock, sleep=self.clock.pass_by)
        self.db.locks.add(worker.id)
        self.all.append(worker)
        return worker

    def die(self, worker: Any) -> None:
        """End as kill -9 does: what keeps it alive is gone, and nothing is said."""
        self.db.locks.discard(worker.id)
        self.all.remove(worker)


@pytest.fixture
def workers(db: Database, clock: Clock) -> Iterator[Workers]:
    workers = Workers(db, clock)
    yield workers
    for worker in list(workers.all):
        workers.die(worker)


def fill(db: Database, space: Any) -> None:
    with job.Space(space) as text:
        job.populate(db, text, "func")


def claim(worker: Any, room: int = 1) -> list[Any]:
    """Let a worker claim, and begin with all of it; return the claims."""
    worker.exchange(room)
    claims = list(worker.todo)
    worker.todo.clear()
    return claims


def end(worker: Any, claim: Any, result: str | None = None, error: str | None = None) -> None:
    """Let a worker store the end of an evaluation, and claim nothing more."""
    worker.done.append(job.Outcome(claim, result, error, 1.0, 2.0))
    worker.exchange(0)


def statuses(db: Database) -> list[str]:
    return [row["status"] for row in load_evals(db)]


class TestSpace:
    def test_what_was_evaluated_is_read_as_it_was_stored(self, db: Database) -> None:
        counts = speval(lambda x: {"twice": [2 * x]}, {"a": 1, "b": 2.5, "ä\n": 3}, db)
        assert counts == count_evals(db) == {"pending": 0, "in_progress": 0, "completed": 3, "failed": 0}
        rows = load_evals(db)
        assert [(row["name"], row["args"]) for row in rows] == [("a", 1), ("b", 2.5), ("ä\n", 3)]
        assert [row["result"] for row in rows] == [{"twice": [2]}, {"twice": [5.0]}, {"twice": [6]}]
        assert [(row["error"], row["attempt"], row["losses"]) for row in rows] == [(None, 1, 0)] * 3
        assert all(row["started"] <= row["updated"] for row in rows)

    def test_it_is_extended_and_nothing_is_evaluated_twice(self, db: Database) -> None:
        calls: list[int] = []
        for size in (3, 5, 2, 5):
            speval(calls.append, range(size), db)
        assert calls == list(range(5))

    def test_other_arguments_under_a_name_are_refused_and_nothing_is_added(self, db: Database) -> None:
        fill(db, {"a": 1})
        with pytest.raises(SpaceMismatch) as caught:
            fill(db, {"new": 0, "a": 2})
        assert (caught.value.name, caught.value.stored, caught.value.given) == ("a", 1, 2)
        assert [row["name"] for row in load_evals(db)] == ["a"]

    def test_an_empty_space_is_finished_at_once(self, db: Database) -> None:
        assert sum(speval(abs, [], db).values()) == 0
        assert load_evals(db) == []

    @pytest.mark.parametrize("ask", [load_evals, count_evals, reset_evals, iter_evals])
    def test_what_is_not_there_is_not_found_and_not_made(self, db: Database, ask: Any) -> None:
        with pytest.raises(FileNotFoundError):
            ask(db)
        assert not db.exists()

    def test_a_transaction_that_raises_changes_nothing(self, db: Database) -> None:
        fill(db, range(3))
        with contextlib.suppress(ZeroDivisionError), db.write() as conn:
            job.reset(conn, 1, 3, None)
            conn.execute("UPDATE evals SET status = 'failed'")
            raise ZeroDivisionError
        assert statuses(db) == ["pending"] * 3

    def test_a_statement_that_fails_is_an_error_of_speval(self, db: Database) -> None:
        fill(db, range(3))
        with pytest.raises(SpevalError), db.write() as conn:
            conn.execute("SELECT nothing FROM nowhere")
        assert statuses(db) == ["pending"] * 3

    def test_what_contradicts_itself_is_not_tried_again_and_again(self, db: Database) -> None:
        fill(db, range(3))
        with pytest.raises(SpevalError) as caught, db.write() as conn:
            raise conn.DatabaseError("its rows are not in order")
        assert not isinstance(caught.value, NotWritable)


class TestClaims:
    def test_no_two_workers_hold_one_evaluation(self, db: Database, workers: Workers) -> None:
        fill(db, range(40))
        some = [claim(workers.join(), 3) for _ in range(4)]
        names = [int(c.name) for claims in some for c in claims]
        assert names == sorted(set(names))
        assert count_evals(db)["in_progress"] == len(names)

    def test_each_claim_has_a_higher_number(self, db: Database, workers: Workers) -> None:
        fill(db, [0])
        worker, attempts = workers.join(), []
        for _ in range(3):
            (held,) = claim(worker)
            attempts.append(held.attempt)
            worker.leave()
            worker = workers.join()
        assert attempts == [1, 2, 3]

    def test_completed_and_failed_are_what_is_stored(self, db: Database, workers: Workers) -> None:
        fill(db, range(2))
        worker = workers.join()
        (first,) = claim(worker)
        end(worker, first, result="17")
        (second,) = claim(worker)
        end(worker, second, error="it broke")
        rows = load_evals(db)
        assert [(row["status"], row["result"], row["error"]) for row in rows] == [
            ("completed", 17, None),
            ("failed", None, "it broke"),
        ]
        assert {row["worker"] for row in rows} == {worker.id}

    def test_who_leaves_stores_what_is_done_and_releases_the_rest(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, range(8))
        worker = workers.join()
        claims = claim(worker, 3)
        worker.done.append(job.Outcome(claims[0], "1", None, 1.0, 2.0))
        counts = worker.leave()
        assert counts == {"pending": 7, "in_progress": 0, "completed": 1, "failed": 0}
        assert [row["losses"] for row in load_evals(db)] == [0] * 8

    def test_who_is_kept_from_leaving_has_stored_nothing(
        self, db: Database, workers: Workers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(db, range(4))
        worker = workers.join()
        (held,) = claim(worker)
        worker.done.append(job.Outcome(held, "1", None, 1.0, 2.0))

        def fail(*args: Any) -> None:
            raise SpevalError("the disk is gone")

        monkeypatch.setattr(job.workers, "mark_all_ended", fail)
        assert worker.leave() is None
        assert statuses(db) == ["in_progress"] + ["pending"] * 3

    def test_what_is_not_started_is_given_back_in_the_next_exchange(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, range(8))
        worker = workers.join()
        worker.exchange(3)
        begun = worker.todo.popleft()
        worker.exchange(0)
        assert statuses(db) == ["in_progress"] + ["pending"] * 7
        end(worker, begun, result="0")
        assert statuses(db) == ["completed"] + ["pending"] * 7


class TestLosses:
    def test_claims_of_the_dead_are_reclaimed_at_once(self, db: Database, workers: Workers) -> None:
        fill(db, range(2))
        dead = workers.join()
        claim(dead)
        workers.die(dead)
        heir = workers.join()
        assert [(c.name, c.attempt) for c in claim(heir)] == [("0", 2)]
        assert [row["losses"] for row in load_evals(db)] == [1, 0]

    def test_a_failure_after_a_loss_tells_of_both(self, db: Database, workers: Workers) -> None:
        fill(db, [0])
        dead = workers.join()
        claim(dead)
        workers.die(dead)
        heir = workers.join()
        (begun,) = claim(heir)
        end(heir, begun, error="ValueError: 1")
        (row,) = load_evals(db)
        assert re.fullmatch(r".* process \d+ on .* died\nValueError: 1", row["error"])

    def test_why_it_was_lost_is_known_after_the_next_attempt_completes(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, [0])
        dead = workers.join()
        claim(dead)
        workers.die(dead)
        heir = workers.join()
        (begun,) = claim(heir)
        end(heir, begun, result="1")
        (row,) = load_evals(db)
        assert (row["status"], row["result"], row["losses"]) == ("completed", 1, 1)
        assert re.fullmatch(r".* process \d+ on .* died\n", row["error"])
        assert survey.error_of(db, "0") == ("completed", row["error"])
        assert survey.failures(db) == []
        assert count_evals(db)["failed"] == 0
        assert reset_evals(db, "completed") == 1
        assert load_evals(db)[0]["error"] is None

    def test_claims_of_the_living_are_not_however_long_they_take(
        self, db: Database, workers: Workers, clock: Clock
    ) -> None:
        fill(db, range(2))
        claim(workers.join())
        other = workers.join()
        for _ in range(10):
            clock.pass_by(1e6)
            other.exchange(0)
        assert [row["losses"] for row in load_evals(db)] == [0, 0]

    def test_claims_of_the_stalled_are_reclaimed_a_timeout_after_they_were_first_seen(
        self, db: Database, workers: Workers, clock: Clock
    ) -> None:
        fill(db, [0])
        claim(workers.join(timeout=60))
        other = workers.join(timeout=60)
        clock.pass_by(1e6)  # nobody has seen them yet
        assert claim(other) == []
        clock.pass_by(59)
        assert claim(other) == []
        clock.pass_by(61)
        assert [c.attempt for c in claim(other)] == [2]

    def test_one_that_is_lost_too_often_is_failed(self, db: Database, workers: Workers) -> None:
        fill(db, [0])
        for _ in range(3):
            doomed = workers.join()
            assert len(claim(doomed)) == 1
            workers.die(doomed)
        workers.join().exchange(0)
        (row,) = load_evals(db)
        assert (row["status"], row["losses"]) == ("failed", 3)
        *losses, end = row["error"].splitlines()
        when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert len(losses) == 3
        assert all(re.fullmatch(rf"{when} process {os.getpid()} on .+ died", loss) for loss in losses)
        assert end.startswith("lost 3 times")

    def test_what_was_lost_is_claimed_alone(self, db: Database, workers: Workers, clock: Clock) -> None:
        fill(db, range(40))
        doomed = workers.join()
        claim(doomed, 4)
        workers.die(doomed)
        heir = workers.join()
        assert [c.name for c in claim(heir, 4)] == ["0"]

    def test_claims_of_nobody_are_reclaimed_when_nothing_else_is_left(
        self, db: Database, workers: Workers, clock: Clock
    ) -> None:
        fill(db, range(3))
        with db.write() as conn:
            conn.execute("UPDATE evals SET status = 'in_progress', worker = :w", {"w": None})
            conn.execute("UPDATE evals SET worker = :w WHERE name = :name", {"w": 123, "name": "1"})
        counts = speval(abs, range(3), db)
        assert counts["completed"] == 3

    def test_who_was_taken_for_dead_goes_on(self, db: Database, workers: Workers, clock: Clock) -> None:
        fill(db, range(4))
        worker = workers.join()
        (lost,) = claim(worker)
        db.locks.discard(worker.id)
        other = workers.join()
        claim(other)
        db.locks.add(worker.id)
        end(worker, lost, result="0")
        assert [c.name for c in claim(worker)] == ["1"]
        clock.pass_by(100)
        other.exchange(0)
        assert load_evals(db)[1]["losses"] == 0

    def test_a_worker_of_another_database_stops(self, db: Database, workers: Workers) -> None:
        fill(db, range(3))
        worker = workers.join()
        (held,) = claim(worker)
        with db.write() as conn:
            conn.execute("DELETE FROM workers")
        worker.done.append(job.Outcome(held, "0", None, 1.0, 2.0))
        with pytest.raises(SpevalError, match="was replaced while it was in use"):
            worker.exchange(1)
        assert statuses(db) == ["in_progress", "pending", "pending"]
        assert worker.leave() is None
        assert statuses(db) == ["in_progress", "pending", "pending"]

    def test_one_whose_end_the_database_has_forgotten_is_evaluated_again(
        self, db: Database, workers: Workers, clock: Clock
    ) -> None:
        fill(db, range(2))
        worker, other = workers.join(), workers.join()
        (held,) = claim(other)
        calls: list[int] = []
        sleeps = iter(range(1000))

        def forget(seconds: float) -> None:
            clock.pass_by(seconds)
            if next(sleeps) == 0:  # as a server does that takes over, and lacks the last transactions
                with db.write() as conn:
                    conn.execute(
                        "UPDATE evals SET status = 'in_progress', result = NULL, worker = :w WHERE id = 2",
                        {"w": worker.id},
                    )
                end(other, held, result="0")

        worker._sleep = forget
        assert worker.work(calls.append, None, True)["completed"] == 2
        assert calls == [1, 1]


class TestLate:
    @pytest.fixture
    def pair(self, db: Database, workers: Workers) -> tuple[Any, Any, Any, Any]:
        """Who has lost an evaluation and who holds it, with their claims."""
        fill(db, range(2))
        late = workers.join()
        (lost,) = claim(late)
        db.locks.discard(late.id)
        holder = workers.join()
        (held,) = claim(holder)
        db.locks.add(late.id)
        assert (lost.id, lost.attempt + 1) == (held.id, held.attempt)
        return late, lost, holder, held

    def test_a_late_result_is_stored_if_there_is_no_other(
        self, db: Database, pair: tuple[Any, Any, Any, Any]
    ) -> None:
        late, lost, holder, held = pair
        end(late, lost, result='"late"')
        end(holder, held, result='"holder"')
        assert load_evals(db)[0]["result"] == "late"

    def test_a_late_result_does_not_replace_another(
        self, db: Database, pair: tuple[Any, Any, Any, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        late, lost, holder, held = pair
        end(holder, held, result='"holder"')
        end(late, lost, result='"late"')
        assert load_evals(db)[0]["result"] == "holder"
        assert "dropped what came late for evaluation 0, attempt 1" in caplog.text

    def test_a_late_error_is_dropped(self, db: Database, pair: tuple[Any, Any, Any, Any]) -> None:
        late, lost, holder, held = pair
        end(late, lost, error="late")
        assert statuses(db)[0] == "in_progress"
        end(holder, held, result="1")
        row = load_evals(db)[0]
        assert row["status"] == "completed"
        assert "late" not in row["error"]

    def test_nor_does_a_late_result_replace_an_error_of_func(
        self, db: Database, pair: tuple[Any, Any, Any, Any]
    ) -> None:
        late, lost, holder, held = pair
        end(holder, held, error="it broke")
        end(late, lost, result="1")
        assert statuses(db)[0] == "failed"

    def test_but_it_does_replace_a_failure_that_came_from_losses(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, range(2))
        late = workers.join(max_attempts=1)
        (lost,) = claim(late)
        db.locks.discard(late.id)
        workers.join(max_attempts=1).exchange(0)
        assert statuses(db)[0] == "failed"
        db.locks.add(late.id)
        end(late, lost, result="1")
        row = load_evals(db)[0]
        assert (row["status"], row["result"]) == ("completed", 1)
        assert row["error"].splitlines()[-1] == "lost 1 times, the last process died"

    @pytest.mark.parametrize("what", [{"result": "1"}, {"error": "it broke"}])
    def test_nothing_claimed_before_a_reset_is_stored_after_it(
        self, db: Database, workers: Workers, what: dict[str, str]
    ) -> None:
        fill(db, range(2))
        worker = workers.join()
        (held,) = claim(worker)
        assert reset_evals(db, "in_progress") == 1
        end(worker, held, **what)
        assert statuses(db) == ["pending", "pending"]


class TestReset:
    def test_what_failed_is_tried_again_and_only_that(self, db: Database) -> None:
        calls: list[int] = []

        def func(x: int) -> float:
            calls.append(x)
            return 1 / x if len(calls) < 4 else 0.0

        speval(func, [1, 0, 2], db)
        assert reset_evals(db) == 1
        speval(func, [1, 0, 2], db)
        assert calls == [1, 0, 2, 0]
        assert statuses(db) == ["completed"] * 3

    def test_by_name_and_status_and_not_by_a_name_that_is_none(self, db: Database) -> None:
        speval(abs, {"a": 1, "b": 2, "c": 3}, db)
        assert reset_evals(db, None, ["a", "c"]) == 2
        assert statuses(db) == ["pending", "completed", "pending"]
        with pytest.raises(ValueError, match="has no evaluation 'd'"):
            reset_evals(db, None, ["b", "d"])
        assert statuses(db) == ["pending", "completed", "pending"]


class TestReading:
    def test_by_status_in_the_order_of_the_space(self, db: Database, workers: Workers) -> None:
        speval(lambda x: 1 / (x % 3), range(9), db)
        assert [row["name"] for row in load_evals(db, "failed")] == ["0", "3", "6"]
        assert [row["name"] for row in iter_evals(db, "completed")] == ["1", "2", "4", "5", "7", "8"]

    def test_many_are_read_in_parts(self, db: Database) -> None:
        speval(abs, range(2500), db)
        assert [row["result"] for row in iter_evals(db)] == list(range(2500))

    def test_counts_are_right_at_each_moment(self, db: Database) -> None:
        seen = []

        def func(x: int) -> None:
            counts = count_evals(db)
            seen.append((sum(counts.values()), counts["in_progress"] > 0))

        speval(func, range(30), db)
        assert set(seen) == {(30, True)}

    def test_a_glance_tells_counts_and_who_lives(self, db: Database, workers: Workers) -> None:
        fill(db, range(5))
        dead, worker = workers.join(), workers.join()
        claim(dead)
        claim(worker)
        workers.die(dead)
        counts, alive = how_far(db)
        assert (counts["in_progress"], alive) == (2, 1)


class Counting:
    """An adaptive space that suggests how many there are."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: list[list[tuple[str, Any]]] = []

    def __len__(self) -> int:
        return self.size

    def suggest(self, history: Any) -> int:
        self.seen.append([(e["status"], e["result"]) for e in history])
        return len(history)


class TestSuggestions:
    def test_each_is_made_from_the_results_of_those_before(self, db: Database) -> None:
        space = Counting(4)
        counts = speval(lambda x: -x, space, db)
        assert counts == count_evals(db) == {"pending": 0, "in_progress": 0, "completed": 4, "failed": 0}
        assert [(row["name"], row["args"]) for row in load_evals(db)] == [(str(n), n) for n in range(4)]
        assert space.seen == [[("completed", -x) for x in range(number)] for number in range(4)]

    def test_a_search_is_extended_and_goes_on(self, db: Database) -> None:
        calls: list[int] = []
        for size in (2, 5, 3, 5):
            speval(calls.append, Counting(size), db)
        assert calls == list(range(5))

    def test_several_at_once_make_no_more_and_no_two_alike(self, db: Database) -> None:
        calls: list[int] = []

        def work() -> None:
            speval(calls.append, Counting(60), db)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(calls) == list(range(60))
        assert count_evals(db)["completed"] == 60

    def test_what_is_pending_comes_first(self, db: Database) -> None:
        speval(abs, {"a": 10, "b": 11}, db)
        reset_evals(db, "completed", ["a"])
        calls: list[int] = []
        speval(calls.append, Counting(3), db)
        assert calls == [10, 2]
        assert [row["name"] for row in load_evals(db)] == ["a", "b", "2"]

    def test_a_name_that_is_taken_is_not_given_again(self, db: Database) -> None:
        speval(abs, {"1": 10}, db)
        speval(abs, Counting(2), db)
        assert [row["name"] for row in load_evals(db)] == ["1", "2"]

    def test_one_that_was_lost_is_evaluated_again_and_no_other_made(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, Counting(2))
        dead = workers.join()
        assert dead.exchange(1, suggested=("7", -(2**63), 2)) == 1
        workers.die(dead)
        assert speval(abs, Counting(2), db)["completed"] == 2
        assert [(row["args"], row["losses"]) for row in load_evals(db)] == [(7, 1), (1, 0)]

    def test_one_that_came_meanwhile_is_not_added_again_nor_one_too_many(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, Counting(2))
        first, second = workers.join(), workers.join()
        nothing = -(2**63)
        assert first.exchange(1, suggested=("7", nothing, 2)) == 1
        assert second.exchange(1, suggested=("7", nothing, 2)) == 0
        assert second.exchange(1, suggested=("8", nothing, 2)) == 1
        assert workers.join().exchange(1, suggested=("9", nothing, 2)) == 0
        assert [row["args"] for row in load_evals(db)] == [7, 8]

    @pytest.mark.parametrize("suggested", [ZeroDivisionError, object()])
    def test_what_goes_wrong_in_suggest_ends_the_instance_and_loses_nothing(
        self, db: Database, suggested: Any
    ) -> None:
        class Broken(Counting):
            def suggest(self, history: Any) -> Any:
                if len(history) == 2:
                    return suggested() if isinstance(suggested, type) else suggested
                return len(history)

        with pytest.raises((ZeroDivisionError, TypeError)):
            speval(abs, Broken(5), db)
        assert count_evals(db) == {"pending": 0, "in_progress": 0, "completed": 2, "failed": 0}
        assert speval(abs, Counting(5), db)["completed"] == 5

    def test_who_is_late_with_what_it_suggests_again_all_the_same_evaluates_it_again(
        self, db: Database, workers: Workers
    ) -> None:
        class Same(Counting):
            def suggest(self, history: Any) -> int:
                with db.write() as conn:  # somebody else is quicker
                    job.add(db, conn, "7", 2**63 - 1, 1000)
                    conn.execute("UPDATE evals SET status = 'completed', attempt = 1")
                self.seen.append([])
                return 7

        space = Same(1000)
        fill(db, space)
        worker = job.Worker(db, None, 3, space=space)
        assert worker._claim_suggested()
        assert len(space.seen) == 2

    @pytest.mark.parametrize("kind", [dict, list])
    def test_a_list_or_a_dict_is_no_adaptive_space_whatever_it_has(self, db: Database, kind: Any) -> None:
        class Obliging(kind):  # type: ignore[misc]
            def __getattr__(self, name: str) -> Any:
                return self

            def suggest(self, history: Any) -> int:
                raise AssertionError

        calls: list[int] = []
        speval(calls.append, Obliging({"a": 1, "b": 2} if kind is dict else [1, 2]), db)
        assert calls == [1, 2]

    def test_what_is_pending_is_by_the_largest_search_that_was_begun(self, db: Database) -> None:
        speval(abs, Counting(5), db)
        fill(db, Counting(8))
        fill(db, Counting(3))
        fill(db, Counting(8))
        assert how_far(db)[0]["pending"] == 3
        assert count_evals(db)["pending"] == 0
        with db.read() as conn:
            seen = conn.execute("SELECT size FROM spaces WHERE func <> ''").fetchall()
        assert sorted(seen) == [(3,), (5,), (8,)]

    def test_a_count_that_contradicts_the_rows_is_an_error_and_no_endless_loop(
        self, db: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        speval(abs, range(3), db)
        monkeypatch.setattr(
            history, "STATE", history.STATE.replace("count(*) FROM evals", "count(*) + 1 FROM evals")
        )
        with pytest.raises(SpevalError):
            History(db).renew()

    def test_the_history_is_what_is_stored_and_a_dict_of_it_stays_until_that_changes(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, range(4))
        history = History(db)
        assert list(history.renew()) == load_evals(db)
        worker = workers.join()
        (held,) = claim(worker)
        assert list(history.renew()) == load_evals(db)
        end(worker, held, result="1")
        known = list(history.renew())
        assert known == load_evals(db)
        (held,) = claim(worker)
        fill(db, range(6))
        assert list(history.renew()) == load_evals(db)
        assert [new is old for new, old in zip(history, known)] == [True, False, True, True]

    def test_the_history_knows_of_resets_losses_and_what_was_deleted_by_hand(
        self, db: Database, workers: Workers
    ) -> None:
        speval(abs, range(4), db)
        history = History(db).renew()
        reset_evals(db, None, ["2"])
        speval(lambda x: "again", range(4), db)
        assert history.renew()[2]["result"] == "again"
        fill(db, range(5))
        late = workers.join(max_attempts=1)
        (lost,) = claim(late)
        db.locks.discard(late.id)
        workers.join(max_attempts=1).exchange(0)
        assert history.renew()[4]["status"] == "failed"
        db.locks.add(late.id)
        end(late, lost, result="1")
        assert history.renew()[4]["result"] == 1
        with db.write() as conn:
            conn.execute("DELETE FROM evals WHERE id = 2")
        assert list(history.renew()) == load_evals(db)

    def test_a_long_history_is_read_in_parts(self, db: Database) -> None:
        speval(abs, range(2500), db)
        assert list(History(db).renew()) == load_evals(db)


class Rule:
    """Stops at a step what is larger than all others there; remembers what it was asked."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.asked: list[tuple[list[float], list[float]]] = []

    def decides_at(self, step: int, before: int) -> bool:
        return before < self.step <= step

    def stops(self, own: Any, others: Any) -> bool:
        self.asked.append((list(own), sorted(others)))
        return len(others) > 0 and own[-1] > max(others)


class TestReports:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reports, "SHARE", math.inf)  # what a transaction may take

    def test_they_are_stored_by_step(self, db: Database) -> None:
        def func(x: int) -> int:
            told = [report(x), report(x + 0.5), report(-1.0, step=7), report(2, step=7), report(math.inf)]
            assert told == [False] * 5
            return x

        assert speval(func, range(3), db)["completed"] == 3
        rows = load_evals(db, reports=True)
        assert [row["reports"] for row in rows] == [
            {0: x, 1: x + 0.5, 7: 2, 8: math.inf} for x in (0.0, 1.0, 2.0)
        ]
        assert "reports" not in load_evals(db)[0]
        assert [row["stopped"] for row in rows] == [None] * 3

    def test_one_that_is_not_a_number_is_kept(self, db: Database) -> None:
        speval(lambda x: report(math.nan, 3), [0], db)
        (row,) = load_evals(db, reports=True)
        assert list(row["reports"]) == [3]
        assert math.isnan(row["reports"][3])

    def test_what_is_not_promising_is_told_to_stop(self, db: Database) -> None:
        rule = Rule(2)

        def func(x: int) -> int:
            while not report(x + 10):
                if report(x) or report(x + 5):
                    break
                return 0
            return 1

        assert speval(func, [3, 2, 4], db, stop=rule)["completed"] == 3
        rows = load_evals(db)
        assert [(row["result"], row["stopped"]) for row in rows] == [(0, None), (0, None), (1, 2)]
        assert rule.asked == [([13, 3, 8], []), ([12, 2, 7], [8]), ([14, 4, 9], [7, 8])]

    def test_who_goes_on_is_told_again_and_what_was_reset_is_not_known_as_stopped(self, db: Database) -> None:
        rule = Rule(1)

        def func(x: int) -> list[bool]:
            return [report(x) for _ in range(4)]

        speval(func, [1, 2], db, stop=rule)
        rows = load_evals(db)
        assert (rows[1]["result"], rows[1]["stopped"]) == ([False, True, True, True], 3)
        reset_evals(db, None)
        assert [(row["stopped"], row["reports"]) for row in load_evals(db, reports=True)] == [(None, {})] * 2

    def test_a_step_after_the_last_that_there_is_costs_nothing(self, db: Database) -> None:
        speval(lambda x: [report(x, 2**63 - 1), report(x + 1)], [5], db)
        (row,) = load_evals(db, reports=True)
        assert (row["result"], row["reports"]) == ([False, False], {2**63 - 1: 6})

    def test_what_a_thread_of_an_evaluation_that_is_over_reports_is_not_of_the_next(
        self, db: Database
    ) -> None:
        late = []

        def func(x: int) -> None:
            told = [report(x + step) for step in range(2)]
            for context in late:
                told.append(context.run(report, 99))
            late.append(contextvars.copy_context())
            report(x + 2)
            assert told == [False] * len(told)

        speval(func, [10, 20], db)
        rows = load_evals(db, reports=True)
        assert [row["reports"] for row in rows] == [{0: 10, 1: 11, 2: 12}, {0: 20, 1: 21, 2: 22}]

    def test_those_of_a_claim_that_was_lost_do_not_replace_those_of_the_next(
        self, db: Database, workers: Workers
    ) -> None:
        fill(db, [0])
        late = workers.join()
        (lost,) = claim(late)
        db.locks.discard(late.id)
        heir = workers.join()
        (held,) = claim(heir)
        db.locks.add(late.id)
        for worker, its, value in ((heir, held, 1.0), (late, lost, 2.0)):
            worker._reports.running = its
            worker._reports.add(its, value, 0)
        end(heir, held, result="1")
        late.exchange(0)
        assert load_evals(db, reports=True)[0]["reports"] == {0: 1.0}

    def test_a_reset_leaves_the_reports_of_others(self, db: Database) -> None:
        speval(report, range(3), db)
        reset_evals(db, None, ["1"])
        assert [row["reports"] for row in load_evals(db, reports=True)] == [{0: 0}, {}, {0: 2}]

    def test_nothing_reported_before_a_reset_is_stored_after_it(self, db: Database) -> None:
        def func(x: int) -> None:
            if current_eval()["attempt"] == 1:  # type: ignore[index]
                reset_evals(db, "in_progress")
                report(1)
            else:
                report(2, step=5)

        speval(func, [0], db)
        assert [row["reports"] for row in load_evals(db, reports=True)] == [{5: 2}]

    def test_outside_of_an_evaluation_nothing_is_done(self) -> None:
        assert report(1.0) is False
        assert report(1.0, step=3) is False

    @pytest.mark.parametrize(
        "wrong", [("1",), (b"1",), (None,), (10**400,), (1.0, 0.5), (1.0, -1), (1.0, 2**63)]
    )
    def test_what_is_no_report_is_an_error(self, wrong: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            report(*wrong)


def test_several_at_once_evaluate_each_once(db: Database) -> None:
    calls: list[int] = []
    threads = [threading.Thread(target=speval, args=(calls.append, range(300), db)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(calls) == list(range(300))
    assert count_evals(db)["completed"] == 300


def test_func_knows_its_evaluation_and_may_not_wait_for_itself(db: Database) -> None:
    def func(x: int) -> Any:
        with pytest.raises(SpevalError, match="would wait for itself"):
            speval(func, [1], db)
        return current_eval()

    speval(func, {"a": 5}, db)
    assert load_evals(db)[0]["result"] == {"name": "a", "attempt": 1, "args": 5}


logging.getLogger("speval").addHandler(logging.NullHandler())
