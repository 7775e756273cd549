"""Every way in which something can be wrong, and that nothing is lost by it."""

import functools
import gc
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import unittest.mock
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Sandbox, until

from speval import SpevalError, count_evals, load_evals, reset_evals, speval


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


def test_a_directory_that_cannot_be_written_is_no_deleted_database(
    sandbox: Sandbox, public: pathlib.Path
) -> None:
    os.chmod(public, 0o755)
    script = f"import hashlib, tempfile\nos.setuid(65534)\nspeval(abs, [1], {str(public / 'evals.db')!r})"
    output = sandbox.end(sandbox.start(script, measured=False), 1)
    assert "cannot be opened ([Errno 13] Permission denied" in output
    assert os.listdir(public) == []


def test_who_has_no_descriptor_left_keeps_the_result_until_there_is_one(sandbox: Sandbox) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
def func(x):
    leaked = []
    os.closerange(3, 64)  # what is held back for that, too
    try:
        while True:
            leaked.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        threading.Timer(0.5, lambda: [os.close(fd) for fd in leaked]).start()
    return x

speval(func, [1], "evals.db")
"""
    assert "1 finished evaluations are kept in memory" in sandbox.run(script)
    assert sandbox.column("result") == [1]


def test_a_function_that_leaves_no_descriptor_does_not_keep_its_result_from_being_stored(
    sandbox: Sandbox,
) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
leaked = []

def func(x):
    try:
        while True:
            leaked.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return [x, len(leaked) > 10]

print(speval(func, [1, 2], "evals.db"))
"""
    assert "'completed': 2" in sandbox.run(script)
    assert sandbox.column("result") == [[1, True], [2, True]]


def test_nor_is_it_lost_when_the_function_is_interrupted(sandbox: Sandbox) -> None:
    script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
leaked = []

def func(x):
    if x == 400:
        try:
            while True:
                leaked.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            raise KeyboardInterrupt
    return x

try:
    speval(func, range(500), "evals.db")
except KeyboardInterrupt:
    os.closerange(leaked[0], leaked[-1])
    print(count_evals("evals.db"))
"""
    assert "'in_progress': 0, 'completed': 400, 'failed': 0" in sandbox.run(script)


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


WAITS = """
def func(x):
    note(x)
    wait_for("go")
    return x

speval(func, [0], "evals.db")
"""


def test_a_database_deleted_in_use_is_an_error_and_no_second_one_is_made(sandbox: Sandbox) -> None:
    instance = sandbox.start(WAITS)
    until(sandbox.calls)
    os.unlink(sandbox.db)
    sandbox.touch("go")
    output = sandbox.end(instance, 1)
    assert "was deleted while it was in use" in output
    assert "not stored: evaluation 0: 0" in output
    assert not os.path.exists(sandbox.db)


def test_a_database_deleted_and_made_again_belongs_to_others(sandbox: Sandbox) -> None:
    instance = sandbox.start(WAITS)
    until(sandbox.calls)
    os.unlink(sandbox.db)
    sandbox.run('def func(x): return "mine"\nspeval(func, [0], "evals.db")')
    sandbox.touch("go")
    assert "was replaced while it was in use" in sandbox.end(instance, 1)
    assert sandbox.column("result") == ["mine"]
    assert sandbox.column("attempt") == [1]


@pytest.fixture
def small_disk(sandbox: Sandbox) -> Iterator[pathlib.Path]:
    disk = sandbox.path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        sandbox.close()
        subprocess.run(["umount", "-l", disk], check=True)


FILLS = """
def func(x):
    note(x)
    return "x" * 50_000

speval(func, range(10), "disk/evals.db")
"""


def test_a_full_disk_is_waited_out_and_no_result_is_lost(sandbox: Sandbox, small_disk: pathlib.Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 700_000)
    instance = sandbox.start(FILLS)
    assert instance.stdout is not None
    line = instance.stdout.readline()
    assert "is the disk full, or a quota?" in line
    assert "finished evaluations are kept in memory, next try in 1 s" in line
    (small_disk / "ballast").unlink()
    sandbox.end(instance)
    assert [len(row["result"]) for row in load_evals(small_disk / "evals.db")] == [50_000] * 10
    assert sorted(sandbox.calls()) == [str(x) for x in range(10)]


def test_what_the_watchdog_cannot_store_on_a_full_disk_is_stored_when_there_is_room(
    sandbox: Sandbox, small_disk: pathlib.Path
) -> None:
    script = """
def func(x):
    note(x)
    if x == 600:  # in the middle of a batch, and long enough for the watchdog to try
        with contextlib.suppress(OSError), open("disk/ballast", "wb", 0) as ballast:
            while True:
                ballast.write(bytes(1024))
        time.sleep(1)
    return x

speval(func, range(1000), "disk/evals.db")
"""
    instance = sandbox.start("import contextlib\n" + script)
    assert instance.stdout is not None
    assert "is the disk full, or a quota?" in instance.stdout.readline()
    (small_disk / "ballast").unlink()
    sandbox.end(instance)
    assert [row["result"] for row in load_evals(small_disk / "evals.db")] == list(range(1000))
    assert sorted(map(int, sandbox.calls())) == list(range(1000))


def test_an_interrupt_ends_the_wait_for_a_full_disk_and_says_what_is_lost(
    sandbox: Sandbox, small_disk: pathlib.Path
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * 700_000)
    instance = sandbox.start(FILLS)
    assert instance.stdout is not None
    instance.stdout.readline()
    instance.send_signal(signal.SIGINT)
    output = sandbox.end(instance, -signal.SIGINT)
    assert "not stored: evaluation" in output
    assert "x" * 1000 in output
    (small_disk / "ballast").unlink()
    (small_disk / "evals.db-lock").exists()
    assert count_evals(small_disk / "evals.db")["in_progress"] >= 1


def test_a_read_only_directory_can_be_read_and_is_a_clear_error_for_workers(
    sandbox: Sandbox, small_disk: pathlib.Path
) -> None:
    speval(abs, [-1, -2], small_disk / "evals.db")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert [row["result"] for row in load_evals(small_disk / "evals.db")] == [1, 2]
    assert speval(abs, [-1, -2], small_disk / "evals.db")["completed"] == 2
    with pytest.raises(SpevalError, match=r"needs (write permission|to write)"):
        speval(abs, [-1, -2, -3], small_disk / "evals.db")
    with pytest.raises(SpevalError, match=r"needs (write permission|to write)"):
        reset_evals(small_disk / "evals.db", "completed")


def test_a_reader_without_permission_is_told_why_he_cannot_read_after_a_crash(
    sandbox: Sandbox, small_disk: pathlib.Path
) -> None:
    speval(abs, range(3), small_disk / "evals.db")
    crash = """
import os, sqlite3
conn = sqlite3.connect("disk/evals.db", isolation_level=None)
conn.execute("PRAGMA cache_size = 1")
conn.execute("BEGIN")
conn.execute("UPDATE evals SET result = hex(zeroblob(50000))")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", crash], cwd=sandbox.path, check=True, timeout=60)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SpevalError, match="after a worker was killed in the middle"):
        load_evals(small_disk / "evals.db")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert [row["result"] for row in load_evals(small_disk / "evals.db")] == [0, 1, 2]
