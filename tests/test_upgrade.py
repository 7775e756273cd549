"""Databases of speval 0.1.1, made by speval 0.1.1."""

import contextlib
import pathlib
import sqlite3
import subprocess
import sys

import pytest
from conftest import Sandbox

from speval import count_evals, load_evals, report, reset_evals, speval
from speval.view import survey

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
WITHOUT_REPORTS = """
    ALTER TABLE evals RENAME TO new;
    CREATE TABLE evals (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, status TEXT NOT NULL,
        updated REAL NOT NULL, result TEXT, args TEXT NOT NULL, error TEXT,
        attempt INTEGER NOT NULL DEFAULT 0, losses INTEGER NOT NULL DEFAULT 0,
        reset INTEGER NOT NULL DEFAULT 0, worker INTEGER, started REAL);
    INSERT INTO evals SELECT id, name, status, updated, result, args, error, attempt, losses, reset, worker,
        started FROM new;
    DROP TABLE new;
    CREATE INDEX evals_pending ON evals (id) WHERE status = 'pending';
    CREATE INDEX evals_in_progress ON evals (worker) WHERE status = 'in_progress';
    CREATE INDEX evals_failed ON evals (id) WHERE status = 'failed';
    CREATE INDEX evals_by_hand ON evals (id) WHERE attempt = 0 AND status <> 'pending';
    DROP TABLE reports;"""
WITHOUT_FATE = """
    ALTER TABLE workers RENAME TO new;
    CREATE TABLE workers (id INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL,
        started REAL NOT NULL, ended REAL);
    INSERT INTO workers SELECT id, host, pid, started, ended FROM new;
    DROP TABLE new;"""
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


def test_a_reset_upgrades_too(old: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    assert reset_evals(old, "completed", ["0"]) == 1
    assert [row["status"] for row in load_evals(old)] == ["pending", "completed", "pending", "pending"]
    assert speval(lambda x: 0, SPACE, old)["completed"] == 4
    assert "was made for" not in caplog.text


def test_an_old_database_of_another_program_is_refused(tmp_path: pathlib.Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as conn:
        conn.execute("CREATE TABLE evals (name, status, updated, result, args, mine)")
    conn.close()
    with pytest.raises(Exception, match="a database of something else"):
        speval(abs, [1], tmp_path / "other.db")


@pytest.mark.parametrize("older", [WITHOUT_REPORTS, WITHOUT_REPORTS + WITHOUT_FATE])
def test_a_database_of_0_2_0_is_read_as_it_is_and_gone_on_with(tmp_path: pathlib.Path, older: str) -> None:
    path = tmp_path / "evals.db"
    speval(abs, [-1, -2], path)
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.executescript(older)
    before = path.read_bytes()
    assert [(row["result"], row["reports"]) for row in load_evals(path, reports=True)] == [(1, {}), (2, {})]
    assert len(survey.survey(path).workers) == 0
    assert path.read_bytes() == before
    assert speval(abs, [-1, -2], path)["completed"] == 2
    assert speval(lambda x: report(0.5) or x, [-1, -2, -3], path)["completed"] == 3
    assert load_evals(path, reports=True)[2]["reports"] == {0: 0.5}
    assert reset_evals(path, None) == 3
