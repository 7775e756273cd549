"""Databases of speval 0.1.1, made by speval 0.1.1."""

import pathlib
import sqlite3
import subprocess
import sys

import pytest
from conftest import Sandbox

from speval import count_evals, load_evals, reset_evals, speval

# Two results, a claim that was left behind, and what is still to do.
MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from speval import speval

def func(x):
    if x["x"] == 2:
        raise KeyboardInterrupt
    return [x["x"], None]

space = [{"x": x, "y": 0.5} for x in range(4)]
try:
    speval(func, space, "./old.db")
except KeyboardInterrupt:
    pass
"""
SPACE = [{"x": x, "y": 0.5} for x in range(4)]


@pytest.fixture(scope="session")
def version_0_1_1(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("speval_0_1_1")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, "speval==0.1.1"]
    subprocess.run(pip, check=True, timeout=300)
    return place


@pytest.fixture
def old(sandbox: Sandbox, version_0_1_1: pathlib.Path) -> pathlib.Path:
    make = [sys.executable, "-c", MAKE, version_0_1_1]
    subprocess.run(make, cwd=sandbox.path, check=True, timeout=60)
    return sandbox.path / "old.db"


def test_an_old_database_is_read_as_it_is(old: pathlib.Path) -> None:
    before = old.read_bytes()
    rows = load_evals(old)
    assert [row["status"] for row in rows] == ["completed", "completed", "in_progress", "pending"]
    assert [row["result"] for row in rows] == [[0, None], [1, None], None, None]
    assert [row["args"] for row in rows] == SPACE
    assert [row["name"] for row in load_evals(old, "completed")] == ["0", "1"]
    assert count_evals(old) == {"pending": 1, "in_progress": 1, "completed": 2, "failed": 0}
    assert old.read_bytes() == before


def test_a_worker_goes_on_where_the_old_version_stopped(old: pathlib.Path) -> None:
    called = []
    assert speval(lambda x: called.append(x["x"]), SPACE, old)["completed"] == 4
    assert called == [2, 3]
    assert [row["result"] for row in load_evals(old)] == [[0, None], [1, None], None, None]
    assert speval(lambda x: called.append(x["x"]), [*SPACE, {"x": 4}], old)["completed"] == 5


def test_a_different_space_leaves_the_old_database_as_it_was(old: pathlib.Path) -> None:
    before = old.read_bytes()
    with pytest.raises(Exception, match="evaluation '3'"):
        speval(abs, [*SPACE[:3], 5], old)
    assert old.read_bytes() == before


def test_a_reset_upgrades_too(old: pathlib.Path) -> None:
    assert reset_evals(old, "completed", ["0"]) == 1
    assert [row["status"] for row in load_evals(old)] == ["pending", "completed", "pending", "pending"]


def test_an_old_database_of_another_program_is_refused(tmp_path: pathlib.Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as conn:
        conn.execute("CREATE TABLE evals (name, status, updated, result, args, mine)")
    conn.close()
    with pytest.raises(Exception, match="a database of something else"):
        speval(abs, [1], tmp_path / "other.db")
