"""Every way in which something can be wrong, and that nothing is lost by it."""

import functools
import gc
import os
import pathlib
import unittest.mock
from typing import Any

import pytest
from conftest import Sandbox

from speval import count_evals, load_evals, reset_evals, speval


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, {"func": 3}),
        (TypeError, {"eval_space": 3}),
        (TypeError, {"eval_space": "abc"}),
        (TypeError, {"evals_fname": 3}),
        (ValueError, {"evals_fname": ""}),
        (TypeError, {"timeout": "60"}),
        (ValueError, {"timeout": 0}),
        (ValueError, {"timeout": -1.5}),
        (ValueError, {"timeout": float("nan")}),
        (ValueError, {"timeout": 10**400}),
        (ValueError, {"evals_fname": "directory/" * 60 + "evals.db"}),
        (TypeError, {"timeout": True}),
        (TypeError, {"max_attempts": 2.5}),
        (ValueError, {"max_attempts": 0}),
        (TypeError, {"max_attempts": None}),
        (ValueError, {"max_failures": 0}),
        (TypeError, {"max_failures": "many"}),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_touched(
    tmp_path: pathlib.Path, error: type[Exception], arguments: dict[str, Any]
) -> None:
    given = {"func": abs, "eval_space": [1], "evals_fname": tmp_path / "a" / "evals.db", **arguments}
    with pytest.raises(error):
        speval(**given)
    assert os.listdir(tmp_path) == []


def test_an_exception_costs_one_evaluation_and_its_traceback_is_kept(tmp_path: pathlib.Path) -> None:
    def func(x: int) -> float:
        return 1 / x

    assert speval(func, [1, 0, 2], tmp_path / "evals.db")["failed"] == 1
    row = load_evals(tmp_path / "evals.db", "failed")[0]
    assert row["error"].startswith("Traceback (most recent call last):\n")
    assert row["error"].endswith("ZeroDivisionError: division by zero\n")
    assert "return 1 / x" in row["error"]
    assert "speval.py" not in row["error"]


def test_the_last_line_of_the_log_counts_failures_and_says_how_to_see_them(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    speval(lambda x: 1 / x, [1, 0, 2], tmp_path / "evals.db")
    assert caplog.messages[0] == "evaluation 1 failed: ZeroDivisionError: division by zero"
    assert caplog.messages[-1].startswith("1 of 3 evaluations failed: load_evals(")
    assert len(caplog.messages) == 2


def test_a_failed_evaluation_is_not_tried_again_until_it_is_reset(tmp_path: pathlib.Path) -> None:
    def func(x: int) -> int:
        if broken:
            raise ValueError(x)
        return x

    broken = True
    speval(func, [1, 2], tmp_path / "evals.db")
    broken = False
    assert speval(func, [1, 2], tmp_path / "evals.db")["failed"] == 2
    assert reset_evals(tmp_path / "evals.db") == 2
    assert speval(func, [1, 2], tmp_path / "evals.db")["completed"] == 2
    assert [row["attempt"] for row in load_evals(tmp_path / "evals.db")] == [2, 2]


def test_what_is_no_exception_costs_one_evaluation_too(sandbox: Sandbox) -> None:
    script = """
import asyncio
def func(x):
    if x == 1:
        raise asyncio.CancelledError
    if x == 2:
        raise GeneratorExit

speval(func, range(4), "evals.db")
"""
    sandbox.run(script)
    assert sandbox.column("status") == ["completed", "failed", "failed", "completed"]


def test_a_failed_evaluation_leaves_nothing_in_memory(tmp_path: pathlib.Path) -> None:
    gone = []

    class Large:
        def __del__(self) -> None:
            gone.append(True)

    def func(x: int) -> None:
        large = Large()
        seen.append(len(gone))
        raise ValueError(large)

    seen: list[int] = []
    gc.disable()
    try:
        speval(func, range(5), tmp_path / "evals.db")
    finally:
        gc.enable()
    assert seen == [0, 1, 2, 3, 4]


def test_any_callable_has_a_name(tmp_path: pathlib.Path) -> None:
    for func in (functools.partial(max, 0), unittest.mock.Mock(return_value=1), str.upper, "x".join):
        counts = speval(func, ["a"], tmp_path / f"{type(func).__name__}.db", max_failures=None)
        assert counts["completed"] + counts["failed"] == 1


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_traceback_begins_where_the_users_code_does(tmp_path: pathlib.Path, n_jobs: int) -> None:
    speval(lambda x: 1 / x, [0], tmp_path / "evals.db", n_jobs=n_jobs)
    (row,) = load_evals(tmp_path / "evals.db")
    assert row["error"].count("  File ") == 1
    assert f'File "{__file__}"' in row["error"]


def test_a_long_traceback_is_cut_and_keeps_its_ends(tmp_path: pathlib.Path) -> None:
    def func(x: int) -> None:
        raise ValueError("\udcff" + "long " * 100_000 + "end")

    speval(func, [1], tmp_path / "evals.db")
    error = load_evals(tmp_path / "evals.db")[0]["error"]
    assert error.startswith("Traceback")
    assert error.endswith("long end\n")
    assert len(error) < 66_000


def test_an_instance_whose_first_evaluations_all_fail_stops(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x)
    raise ValueError("no GPU")

speval(func, range(100), "evals.db", max_failures=3)
"""
    output = sandbox.end(sandbox.start(script), 1)
    assert "the first 3 evaluations of this instance all failed, the last with ValueError: no GPU" in output
    assert count_evals(sandbox.db) == {"pending": 97, "in_progress": 0, "completed": 0, "failed": 3}


def test_an_instance_that_had_a_success_goes_on_through_failures(tmp_path: pathlib.Path) -> None:
    counts = speval(lambda x: 1 / (x < 1), range(30), tmp_path / "evals.db", max_failures=2)
    assert (counts["completed"], counts["failed"]) == (1, 29)
    counts = speval(lambda x: 1 / 0, range(30), tmp_path / "other.db", max_failures=None)
    assert counts["failed"] == 30


@pytest.mark.parametrize("reader", [load_evals, count_evals, reset_evals])
def test_a_missing_file_is_not_made_by_those_who_read(tmp_path: pathlib.Path, reader: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"evals\.db"):
        reader(tmp_path / "evals.db")
    assert os.listdir(tmp_path) == []


def test_there_is_no_such_status_or_name(tmp_path: pathlib.Path) -> None:
    speval(abs, [1], tmp_path / "evals.db")
    for call in (load_evals, reset_evals):
        with pytest.raises(ValueError, match="there is no status 'done'"):
            call(tmp_path / "evals.db", "done")
    with pytest.raises(ValueError, match="has no evaluation '7'"):
        reset_evals(tmp_path / "evals.db", None, ["0", "7"])
    with pytest.raises(TypeError, match="list of names"):
        reset_evals(tmp_path / "evals.db", None, "0")
    assert count_evals(tmp_path / "evals.db")["completed"] == 1


def test_speval_inside_func_on_the_same_database_is_an_error_not_a_hang(sandbox: Sandbox) -> None:
    script = """
def inner(x):
    return speval(lambda y: y, [x], f"inner_{x}.db")["completed"]

def func(x):
    return speval(inner, [x], "evals.db") if x else inner(x)

speval(func, [0, 1], "evals.db")
"""
    sandbox.run(script)
    assert sandbox.column("status") == ["completed", "failed"]
    assert "would wait for itself" in sandbox.column("error")[1]


def test_nor_from_a_thread_of_func(sandbox: Sandbox) -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor

def inner(x):
    return speval(lambda y: y, [x], f"inner_{x}.db")["completed"]

def func(x):
    with ThreadPoolExecutor() as pool:
        if x == 0:
            return sum(pool.map(inner, [1, 2]))
        return list(pool.map(lambda y: speval(inner, [y], "evals.db"), [x]))

speval(func, [0, 1], "evals.db")
"""
    sandbox.run(script)
    assert sandbox.column("status") == ["completed", "failed"]
    assert sandbox.column("result")[0] == 2
    assert "would wait for itself" in sandbox.column("error")[1]
