"""Claims, deaths, stalls, late ends and resets in any order, against a small model of the evaluations."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import itertools
import logging
import os
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory import Memory
from server import Server

from speval import count_evals, load_evals, reset_evals
from speval.database import database, postgres
from speval.reading import STATUSES

core = importlib.import_module("speval.speval")

TIMEOUT = 12 * core.LOOK  # the clock goes in steps of LOOK: whoever has not looked since then looks now
WORKERS, MAX_EVALS = 3, 20
picks = st.integers(0, 11)
rooms = st.integers(0, 4)
steps = st.sampled_from([0, 0, 1, 1, 6, 11])
either = st.sampled_from(["result", "error"])
# For each claim that a worker has or had: nothing yet, a result or an error.
ends = st.lists(either | st.none(), max_size=4)


@dataclasses.dataclass(eq=False)
class Eval:
    """What has to stand in the database for an evaluation; `fence` is its attempt at the last reset."""

    status: str = "pending"
    attempt: int = 0
    losses: int = 0
    fence: int = 0
    holder: int | None = None
    result: Any = None
    error: str | None = None

    def lose(self, max_attempts: int) -> None:
        self.losses += 1
        failed = self.losses >= max_attempts
        self.status, self.holder = "failed" if failed else "pending", None
        self.error = f"lost {self.losses} times"

    def takes(self, claim: Any, end: str) -> bool:
        """Tell whether the end of a claim, maybe a late one, has to be stored."""
        if claim.attempt <= self.fence:
            return False
        if end == "error":
            return self.status == "in_progress" and self.attempt == claim.attempt
        lost_too_often = self.status == "failed" and self.holder is None
        return self.status in ("pending", "in_progress") or lost_too_often


@dataclasses.dataclass
class Actor:
    """A worker, what it believes to hold, and what it has seen of the others."""

    worker: Any
    claims: list[Any] = dataclasses.field(default_factory=list)
    alive: bool = True
    joined: bool = False
    ended: bool = False
    counts: dict[str, int] | None = None  # if it has found that nothing is left
    looked: float = -float("inf")
    first: int = 0  # where it looks for what is pending, until it looks after the others
    seen: dict[int, tuple[Any, float]] = dataclasses.field(default_factory=dict)


class Sweep(RuleBasedStateMachine):
    """Workers of several instances; each step is a transaction, a death or a leap of the clock."""

    @initialize(size=st.integers(1, 12), timeout=st.sampled_from([TIMEOUT, None]), most=st.integers(1, 3))
    def start(self, size: int, timeout: float | None, most: int) -> None:
        self.db = self.make()
        self.timeout, self.max_attempts, self.now = timeout, most, 1000.0
        self.evals: list[Eval] = []
        self.actors: list[Actor] = []
        self.tokens: set[tuple[str, int]] = set()
        self.finished: dict[int, tuple[str, Any]] = {}
        self.ends = 0
        self.extend(size)
        for _ in range(WORKERS):
            self.join()

    def teardown(self) -> None:
        if hasattr(self, "db"):
            for actor in self.living():
                self.db.locks.discard(actor.worker.id)
            self.clean_up()

    def make(self) -> Any:
        """Return a database that is not there yet."""
        self.directory = tempfile.TemporaryDirectory()
        return database(self.directory.name + "/evals.db")

    def clean_up(self) -> None:
        self.directory.cleanup()

    def living(self) -> list[Actor]:
        return [actor for actor in self.actors if actor.alive]

    def pick(self, index: int) -> Actor:
        return self.living()[index % WORKERS]

    def join(self) -> None:
        worker = core.Worker(self.db, self.timeout, self.max_attempts, clock=lambda: self.now)
        self.db.locks.add(worker.id)
        self.actors.append(Actor(worker))

    def replace(self, actor: Actor) -> None:
        self.db.locks.discard(actor.worker.id)
        actor.alive = False
        self.join()

    @precondition(lambda self: len(self.evals) < MAX_EVALS)
    @rule(more=st.integers(1, 3))
    def extend(self, more: int) -> None:
        self.evals += [Eval() for _ in range(more)]
        with core.Space(range(len(self.evals))) as space:
            core.populate(self.db, space, "func")

    @rule(who=picks, ends=ends, room=rooms, steps=steps, unstarted=st.integers(0, 2))
    def work(self, who: int, ends: list[str | None], room: int, steps: int, unstarted: int) -> None:
        """Complete or fail some claims, whether they were lost meanwhile or not, and claim others.

        Some of these are not started before the next transaction, which gives them back.
        """
        actor = self.pick(who)
        self.exchange(actor, self.outcomes(actor, ends, actor.claims), room, steps, unstarted)

    @rule(who=picks, ends=ends, steps=steps, size=st.integers(0, MAX_EVALS))
    def suggest(self, who: int, ends: list[str | None], steps: int, size: int) -> None:
        """Claim what is pending, or what an adaptive space of that size suggests."""
        actor = self.pick(who)
        self.exchange(actor, self.outcomes(actor, ends, actor.claims), 1, steps, size=size)

    @precondition(lambda self: any(map(self.lost_by, self.living())))
    @rule(who=picks, ends=ends, room=rooms)
    def come_late(self, who: int, ends: list[str | None], room: int) -> None:
        """Complete or fail only what was lost, to a timeout or to a reset."""
        losers = [actor for actor in self.living() if self.lost_by(actor)]
        actor = losers[who % len(losers)]
        self.exchange(actor, self.outcomes(actor, ends, self.lost_by(actor)), room, steps=0)

    @precondition(lambda self: self.rivals())
    @rule(which=picks, ends=st.tuples(either, either), late_first=st.booleans())
    def both_end(self, which: int, ends: tuple[str, str], late_first: bool) -> None:
        """End one evaluation twice: by who holds it, and by who has lost it."""
        pairs = self.rivals()
        pair = pairs[which % len(pairs)]
        for (actor, claim), end in zip(reversed(pair) if late_first else pair, ends):
            self.exchange(actor, self.outcomes(actor, [end], [claim]), room=1, steps=0)

    @rule(who=picks, ends=ends)
    def leave(self, who: int, ends: list[str | None]) -> None:
        """End a worker as an interrupt does: it stores what is finished and releases the rest."""
        actor = self.pick(who)
        outcomes = self.outcomes(actor, ends, actor.claims)
        for outcome in outcomes:
            self.expect_end(actor, outcome)
        for evaluation in self.held_by(actor):
            evaluation.status, evaluation.holder = "pending", None
        actor.worker.done = outcomes
        if actor.counts and not outcomes:
            assert actor.worker.leave() == actor.counts
        else:
            assert actor.worker.leave() in (self.counts(), None)
            self.expect_ended(actor)
        self.replace(actor)

    @rule(who=picks)
    def die(self, who: int) -> None:
        """End a worker as kill -9 does: the kernel drops its lock, and nothing is said."""
        self.replace(self.pick(who))

    @rule(who=picks, room=rooms, looks=st.sampled_from([[1, 12], [1, 12], [1, 11], [1, 6, 6], [1, 6, 5]]))
    def stall(self, who: int, room: int, looks: list[int]) -> None:
        """Let the timeout pass, or nearly, between looks of one worker while the others do nothing."""
        actor = self.pick(who)
        for steps in looks:
            self.exchange(actor, [], room, steps)

    @rule(
        status=st.sampled_from([None, "failed", "completed", "in_progress"]), which=st.none() | st.sets(picks)
    )
    def reset(self, status: str | None, which: set[int] | None) -> None:
        numbers = range(len(self.evals)) if which is None else {n % len(self.evals) for n in which}
        chosen = [n for n in numbers if status in (None, self.evals[n].status)]
        expected = sum(self.evals[n].status != "pending" for n in chosen)
        for number in chosen:
            attempt = self.evals[number].attempt
            self.evals[number] = Eval(attempt=attempt, fence=attempt)
            self.finished.pop(number, None)
        names = None if which is None else [str(number) for number in numbers]
        assert reset_evals(self.db, status, names) == expected

    def outcomes(self, actor: Actor, ends: list[str | None], claims: list[Any]) -> list[Any]:
        """End some of the claims of a worker, the oldest first, each with a result or error of its own."""
        outcomes = []
        for claim, end in zip(list(claims), ends):
            if end is not None:
                self.ends += 1
                text = str(self.ends)
                what = (text, None) if end == "result" else (None, text)
                outcomes.append(core.Outcome(claim, *what, self.now, self.now + self.ends))
                actor.claims.remove(claim)
        return outcomes

    def lost_by(self, actor: Actor) -> list[Any]:
        held = [(self.evals.index(evaluation), evaluation.attempt) for evaluation in self.held_by(actor)]
        return [claim for claim in actor.claims if (int(claim.name), claim.attempt) not in held]

    def rivals(self) -> list[tuple[tuple[Actor, Any], tuple[Actor, Any]]]:
        """Return who holds and who has lost, with their claims, for each evaluation that has both."""
        held = {c.id: (a, c) for a in self.living() for c in a.claims if c not in self.lost_by(a)}
        late = [(a, c) for a in self.living() for c in self.lost_by(a)]
        return [(held[claim.id], (actor, claim)) for actor, claim in late if claim.id in held]

    def exchange(
        self, actor: Actor, outcomes: list[Any], room: int, steps: int, unstarted: int = 0, size: int = 0
    ) -> None:
        self.now += steps * core.LOOK
        for outcome in outcomes:
            self.expect_end(actor, outcome)
        if room:  # who claims has ended all that he held, or gives it back
            self.expect_release(actor, 0)
        elif actor.worker.todo:
            self.expect_release(actor, int(actor.worker.todo[0].name))
        if self.now > actor.looked:
            self.expect_look(actor)
        actor.joined, actor.ended = True, False
        expected = self.expect_claims(actor, self.share(room, actor.first))
        suggested = (str(len(self.evals)), core.FIRST, size) if size else None
        if not expected and len(self.evals) < size:
            actor.first = 0
            self.evals.append(Eval())
            expected = self.expect_claims(actor, 1)
        if room:
            actor.first = int(expected[0][0]) if expected and not self.db.serial else 0
        actor.counts = None
        if room and self.db.serial and not expected and self.is_finished():
            actor.counts = self.counts()
            self.expect_ended(actor)
        actor.worker.done = outcomes
        actor.worker.exchange(room, suggested=suggested)
        assert actor.worker.done == []
        claims = list(actor.worker.todo)
        assert [(claim.name, claim.args, claim.attempt) for claim in claims] == expected
        tokens = {(claim.name, claim.attempt) for claim in claims}
        assert not tokens & self.tokens
        self.tokens |= tokens
        while len(actor.worker.todo) > unstarted:
            actor.claims.append(actor.worker.todo.popleft())

    def counts(self) -> dict[str, int]:
        counts = collections.Counter(evaluation.status for evaluation in self.evals)
        return {status: counts[status] for status in STATUSES}

    def is_finished(self) -> bool:
        return not any(evaluation.status in ("pending", "in_progress") for evaluation in self.evals)

    def expect_ended(self, actor: Actor) -> None:
        """Mark a worker as ended, and all others too if nothing is left."""
        for other in self.actors:
            other.ended |= other is actor or (actor.joined and self.is_finished())

    def expect_end(self, actor: Actor, outcome: Any) -> None:
        evaluation = self.evals[int(outcome.claim.name)]
        end = "result" if outcome.error is None else "error"
        if evaluation.takes(outcome.claim, end):
            evaluation.status = "completed" if end == "result" else "failed"
            evaluation.holder = actor.worker.id
            evaluation.error = outcome.error
            evaluation.result = None if outcome.result is None else int(outcome.result)

    def expect_release(self, actor: Actor, first: int) -> None:
        for evaluation in self.held_by(actor):
            if self.evals.index(evaluation) >= first:
                evaluation.status, evaluation.holder = "pending", None

    def expect_look(self, actor: Actor) -> None:
        """Take from the dead at once, from the stalled what they had at a look a timeout ago."""
        actor.looked, actor.first = self.now, 0
        seen, actor.seen = actor.seen, {}
        for other in self.actors:
            if other is actor or other.ended or not other.joined:
                continue
            held = self.held_by(other)
            oldest = [(self.evals.index(evaluation), evaluation.attempt) for evaluation in held[:1]]
            before, since = seen.get(other.worker.id, (None, self.now))
            actor.seen[other.worker.id] = oldest, since if oldest == before else self.now
            stalled = self.timeout is not None and self.now - actor.seen[other.worker.id][1] >= self.timeout
            if stalled or not other.alive:
                other.ended = not other.alive
                for evaluation in held:
                    evaluation.lose(self.max_attempts)

    def share(self, room: int, first: int) -> int:
        """Return how many may be claimed: half of a worker's part of what is left, but at least one."""
        pending = [number for number, e in enumerate(self.evals) if e.status == "pending"]
        ahead = [number for number in pending if number >= first]
        fresh = ahead and not self.evals[ahead[0]].attempt
        workers = sum(actor.joined and not actor.ended for actor in self.actors)
        return min(room, max(1, len(ahead if fresh else pending) // (2 * workers)))

    def expect_claims(self, actor: Actor, room: int) -> list[tuple[str, str, int]]:
        """Claim the first pending evaluations; one that was lost before goes alone."""
        claims: list[tuple[str, str, int]] = []
        for number, evaluation in enumerate(self.evals):
            if evaluation.status != "pending" or number < actor.first:
                continue
            if len(claims) >= room or (claims and evaluation.losses):
                break
            evaluation.attempt += 1
            evaluation.status, evaluation.holder = "in_progress", actor.worker.id
            claims.append((str(number), str(number), evaluation.attempt))
            if evaluation.losses:
                break
        return claims

    def held_by(self, actor: Actor) -> list[Eval]:
        return [e for e in self.evals if e.status == "in_progress" and e.holder == actor.worker.id]

    @invariant()
    def the_database_is_as_the_model(self) -> None:
        rows = load_evals(self.db)
        assert [row["name"] for row in rows] == [str(number) for number in range(len(self.evals))]
        for row, expected in zip(rows, self.evals):
            found = row["status"], row["attempt"], row["losses"], row["result"], row["worker"]
            told = expected.status, expected.attempt, expected.losses, expected.result, expected.holder
            assert found == told, row
            assert row["status"] == "failed" or (row["error"] is not None) == (row["losses"] > 0)
            assert row["status"] != "failed" or str(expected.error) in row["error"]
        assert count_evals(self.db) == self.counts()
        self.check_that_no_end_is_undone(rows)

    def check_that_no_end_is_undone(self, rows: list[dict[str, Any]]) -> None:
        """But by a reset; nor is one replaced, but that of losses by a late result."""
        for row in rows:
            end = row["status"], row["result"] if row["status"] == "completed" else row["error"]
            before = self.finished.get(int(row["name"]))
            if before is not None and end != before:
                assert before[0] == "failed"
                assert before[1].splitlines()[-1].startswith("lost ")
                assert row["status"] == "completed"
            if row["status"] in ("completed", "failed"):
                self.finished[int(row["name"])] = end


logging.getLogger("speval").addHandler(logging.NullHandler())


class SweepInMemory(Sweep):
    """The same, on another database."""

    def make(self) -> Any:
        return Memory()

    def clean_up(self) -> None:
        self.db.close()


class SweepOnServer(Sweep):
    """The same, in PostgreSQL."""

    server: Server
    numbers = itertools.count()

    def make(self) -> Any:
        return database(self.server.url(f"sweep{os.getpid()}_{next(self.numbers)}"))

    def clean_up(self) -> None:
        with self.db.write() as conn:
            for name in "evals", "names", "workers", "spaces", "reports":
                conn.execute(f"DROP TABLE {name}")


class TestSweepOnServer(SweepOnServer.TestCase):  # type: ignore[misc]
    @pytest.fixture(autouse=True)
    def _server(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        SweepOnServer.server = server
        monkeypatch.setattr(postgres, "GONE", 0.0)


TestSweep, TestSweepInMemory = Sweep.TestCase, SweepInMemory.TestCase
TestSweep.settings = TestSweepInMemory.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSweepOnServer.settings = settings(TestSweep.settings, max_examples=30)
