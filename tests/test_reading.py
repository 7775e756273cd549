"""What readers see, while workers are at it and afterwards."""

import contextlib
import importlib
import pathlib
import random
import sqlite3
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
