"""What readers see, while workers are at it and afterwards."""

import contextlib
import importlib
import pathlib
import random
import sqlite3
import sys
import threading
import time
from typing import Any

import pytest
from conftest import Sandbox, until

from speval import (
    count_evals,
    current_eval,
    iter_evals,
    load_evals,
    reading,
    reset_evals,
    speval,
    workers,
)
from speval.cli import main

ROOMS = reading, workers, importlib.import_module("speval.speval")


def test_an_evaluation_tells_all_that_is_known_of_it(tmp_path: pathlib.Path) -> None:
    before = time.time()
    speval(lambda x: {"y": x[0]}, {"one": (2, None)}, tmp_path / "evals.db")
    (row,) = load_evals(tmp_path / "evals.db")
    assert before <= row.pop("started") <= row.pop("updated") <= time.time()
    assert isinstance(row.pop("worker"), int)
    assert row == {
        "name": "one",
        "status": "completed",
        "result": {"y": 2},
        "args": [2, None],
        "error": None,
        "attempt": 1,
        "losses": 0,
        "stopped": None,
    }


def test_a_status_selects(tmp_path: pathlib.Path) -> None:
    db = tmp_path / "evals.db"
    speval(lambda x: 1 / (x % 3), range(9), db)
    assert [row["name"] for row in load_evals(db, "failed")] == ["0", "3", "6"]
    assert len(load_evals(db, "completed")) == 6
    assert load_evals(db, "pending") == []
    assert count_evals(db) == {"pending": 0, "in_progress": 0, "completed": 6, "failed": 3}


def test_chunks_join_without_gap_or_repetition(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    db = tmp_path / "evals.db"
    speval(lambda x: "r" * 10 * x, range(40), db)
    for chunk, size in [(1, 10**6), (7, 10**6), (40, 10**6), (10, 200), (1000, 1)]:
        monkeypatch.setattr(reading, "CHUNK", chunk)
        monkeypatch.setattr(reading, "CHUNK_SIZE", size)
        assert [len(row["result"]) for row in iter_evals(db)] == [10 * x for x in range(40)]


# JSON that this Python does not read, with the limits with which it starts; what it says of it.
TOO_MUCH = {"depth": ("[" * 200_000 + "]" * 200_000, "recursion")}
if hasattr(sys, "set_int_max_str_digits"):  # since 3.11, and in later releases of older versions
    TOO_MUCH["digits"] = ("[" + "1" * 4301 + "]", "4301 digits")


@pytest.fixture(params=TOO_MUCH)
def too_much(request: pytest.FixtureRequest, sandbox: Sandbox) -> tuple[Sandbox, str]:
    """Three evaluations, of which '1' has a result and '2' arguments that cannot be read; and the reason."""
    text, why = TOO_MUCH[request.param]
    speval(lambda x: {"y": x}, range(3), sandbox.db)
    with contextlib.closing(sqlite3.connect(sandbox.db, isolation_level=None)) as conn:
        conn.execute("UPDATE evals SET result = ? WHERE name = '1'", [text])
        conn.execute("UPDATE evals SET args = ?, error = 'lost' WHERE name = '2'", [text])
    return sandbox, why


def test_a_value_that_this_python_cannot_read_costs_that_evaluation_only(
    too_much: tuple[Sandbox, str],
) -> None:
    sandbox, why = too_much
    rows = load_evals(sandbox.db)
    assert [row["status"] for row in rows] == ["completed"] * 3
    assert [row["result"] for row in rows] == [{"y": 0}, None, {"y": 2}]
    assert [row["args"] for row in rows] == [0, 1, None]
    assert rows[0]["error"] is None
    assert rows[1]["error"].startswith(f"the result of evaluation '1' of {sandbox.db} cannot be read here: ")
    assert rows[2]["error"].startswith(
        f"lost\nthe arguments of evaluation '2' of {sandbox.db} cannot be read"
    )
    assert all(why in row["error"] for row in rows[1:])
    assert sum(count_evals(sandbox.db).values()) == 3


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_nor_does_it_end_what_prints_evaluations(
    too_much: tuple[Sandbox, str], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox, _ = too_much
    assert main(["results", sandbox.db, "--format", form, "--columns", "name,y,error", "--sort", "y"]) == 0
    shown = capsys.readouterr().out
    assert "the result of evaluation '1'" in shown
    assert "the arguments of evaluation '2'" in shown
    assert main(["errors", sandbox.db]) == 0
    assert capsys.readouterr().out == "nothing has failed\n"
    assert main(["errors", sandbox.db, "2"]) == 0
    assert "evaluation 2 is completed\nlost\nthe arguments of evaluation '2'" in capsys.readouterr().out
    assert main(["status", sandbox.db, "--best", "y"]) == 0


class Next:
    """An adaptive space that keeps what it has seen."""

    def __len__(self) -> int:
        return 5

    def suggest(self, history: Any) -> int:
        self.seen = [(e["status"], e["args"], e["result"]) for e in history]
        return len(history)


def test_nor_does_it_end_a_search(too_much: tuple[Sandbox, str]) -> None:
    sandbox, _ = too_much
    space = Next()
    assert speval(abs, space, sandbox.db)["completed"] == 5
    assert space.seen[:3] == [
        ("completed", 0, {"y": 0}),
        ("completed", 1, None),
        ("completed", None, {"y": 2}),
    ]


def test_arguments_that_an_instance_cannot_read_fail_that_evaluation(too_much: tuple[Sandbox, str]) -> None:
    sandbox, why = too_much
    reset_evals(sandbox.db, None)
    counts = speval(lambda x: -x, range(3), sandbox.db)
    assert counts == {"pending": 0, "in_progress": 0, "completed": 2, "failed": 1}
    (row,) = load_evals(sandbox.db, "failed")
    assert (row["name"], row["result"], row["args"]) == ("2", None, None)
    assert "the arguments cannot be read here: " in row["error"]
    assert why in row["error"]


def test_reset_by_status_and_by_name(tmp_path: pathlib.Path) -> None:
    db = tmp_path / "evals.db"
    speval(lambda x: 1 / x, range(4), db)
    assert reset_evals(db, names=["1"]) == 0
    assert reset_evals(db, "completed", names=["1", "2"]) == 2
    assert reset_evals(db, None, names=[3]) == 1  # type: ignore[list-item]
    assert reset_evals(db) == 1
    assert [row["status"] for row in load_evals(db)] == ["pending"] * 4
    assert [row["result"] for row in load_evals(db)] == [None] * 4


def test_readers_and_workers_do_not_keep_each_other_waiting(sandbox: Sandbox) -> None:
    script = "def func(x): return x\nspeval(func, range(1500), 'evals.db')"
    instances = [sandbox.start(script) for _ in range(4)]
    until(lambda: pathlib.Path(sandbox.db).exists())
    seen = 0
    while any(instance.poll() is None for instance in instances):
        counts = count_evals(sandbox.db)
        assert counts["completed"] >= seen
        seen = counts["completed"]
        rows = load_evals(sandbox.db)
        assert len(rows) in (0, 1500)
        assert all(row["result"] == row["args"] for row in rows if row["status"] == "completed")
    for instance in instances:
        sandbox.end(instance)
    assert sandbox.column("result") == list(range(1500))


def test_current_eval_names_the_evaluation_that_runs(tmp_path: pathlib.Path) -> None:
    seen: list[Any] = []

    def inner(x: int) -> None:
        seen.append(current_eval())

    def outer(x: int) -> None:
        speval(inner, {"inner": 5}, tmp_path / "inner.db")
        seen.append(current_eval())

    speval(outer, {"outer": 6}, tmp_path / "outer.db")
    assert current_eval() is None
    assert seen == [
        {"name": "inner", "attempt": 1, "args": 5},
        {"name": "outer", "attempt": 1, "args": 6},
    ]


def test_current_eval_of_two_threads_are_two(tmp_path: pathlib.Path) -> None:
    seen = []
    both = threading.Barrier(2, timeout=60)

    def func(x: int) -> None:
        both.wait()
        evaluation = current_eval()
        assert evaluation is not None
        seen.append((x, evaluation["args"]))
        both.wait()

    work = [threading.Thread(target=speval, args=(func, [1, 2], tmp_path / "evals.db")) for _ in range(2)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert sorted(seen) == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        ("FIND_PENDING", "evals_pending"),
        ("CLAIM", "evals_pending"),
        ("COUNT_SOME_PENDING", "evals_pending"),
        ("RELEASE", "evals_in_progress"),
        ("CLAIMS_OF", "evals_in_progress"),
        ("OLDEST_CLAIM", "evals_in_progress"),
        ("RECLAIM", "evals_in_progress"),
        ("UNKNOWN_HOLDERS", "evals_in_progress"),
        ("LEFT", "evals_pending"),
        ("COMPLETE", "PRIMARY KEY"),
        ("LOOKUP", "sqlite_autoindex_evals_1"),
        ("RESET", "PRIMARY KEY"),
    ],
)
def test_no_statement_of_a_worker_scans_the_evaluations(
    tmp_path: pathlib.Path, statement: str, index: str
) -> None:
    speval(abs, [1], tmp_path / "evals.db")
    conn = sqlite3.connect(tmp_path / "evals.db")
    names = ["id", "name", "room", "worker", "now", "attempt", "result", "error", "started", "max_attempts"]
    names += ["first", "last", "status", "line", "enough", "how"]
    code = next(getattr(room, statement) for room in ROOMS if hasattr(room, statement)).format("?")
    values = [1] * code.count("?") or dict.fromkeys(names, 1)
    plan = conn.execute("EXPLAIN QUERY PLAN " + code, values).fetchall()
    conn.close()
    steps = [step[-1] for step in plan if "evals" in step[-1]]
    assert steps
    assert any(index in step for step in steps)
    assert all("INDEX" in step or "PRIMARY KEY" in step for step in steps), steps


@pytest.mark.parametrize("statement", ["COUNT_PENDING", "COUNT_BY_HAND", "IS_FRESH"])
def test_counting_looks_at_few_evaluations(tmp_path: pathlib.Path, statement: str) -> None:
    speval(abs, [1], tmp_path / "evals.db")
    conn = sqlite3.connect(tmp_path / "evals.db")
    ((*_, step),) = conn.execute("EXPLAIN QUERY PLAN " + getattr(reading, statement), {"id": 1})
    conn.close()
    assert step.startswith("SEARCH")


def test_counts_are_right_whatever_was_done_by_hand(tmp_path: pathlib.Path) -> None:
    db = tmp_path / "evals.db"
    speval(lambda x: 1 / (x - 2), range(5), db)
    with contextlib.suppress(KeyboardInterrupt):
        speval(_interrupted, range(30), db)
    generator = random.Random(3)
    for step in range(80):
        status = generator.choice(["pending", "in_progress", "completed", "failed", None][: 4 + step // 60])
        with sqlite3.connect(db) as conn:
            if status is None:
                conn.execute("DELETE FROM evals WHERE id = ?", [generator.randrange(20, 31)])
            else:
                conn.execute("UPDATE evals SET status = ? WHERE id = ?", [status, generator.randrange(1, 31)])
            right = dict(conn.execute("SELECT status, count(*) FROM evals GROUP BY status"))
        conn.close()
        assert {status: number for status, number in count_evals(db).items() if number} == right


def _interrupted(x: int) -> int:
    if x == 12:
        raise KeyboardInterrupt
    return x
