"""One file, whatever `func`, the disk and others do to it: nothing is lost, and who must know is told."""

from __future__ import annotations

import collections
import os
import pathlib
import signal
import sqlite3
import subprocess

import pytest
from conftest import Sandbox, is_locked, until

from speval import SpevalError, count_evals, load_evals, reset_evals, speval
from speval.database import database
from speval.workers import how_far


@pytest.mark.parametrize("network", [True, False])
def test_func_may_open_and_close_the_database_as_a_file(sandbox: Sandbox, network: bool) -> None:
    """Which drops the locks of SQLite that its process has, and on a network mount there is no queue."""
    script = f"""
from speval.database import locks
from speval.process.machine import Mount
if {network}:
    locks.mount_of = lambda path: Mount("nfs", [])

def func(x):
    note(x)
    if x % 40 == 0:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            for name in os.listdir("."):
                os.close(os.open(name, os.O_RDONLY))
    time.sleep(0.001)
    return "r" * 200

speval(func, range(1000), "evals.db")
"""
    for instance in [sandbox.start(script) for _ in range(3)]:
        sandbox.end(instance)
    assert len(sandbox.calls()) == 1000
    assert sandbox.column("status") == ["completed"] * 1000
    conn = sqlite3.connect(sandbox.db)
    assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    conn.close()


CRASHES = """
import sqlite3
conn = sqlite3.connect("evals.db", isolation_level=None)
conn.execute("PRAGMA cache_size = 1")
conn.execute("BEGIN")
conn.execute("UPDATE evals SET result = hex(zeroblob(50000))")
os._exit(0)
"""


def test_a_glance_leaves_a_journal_alone_that_may_be_of_somebody_at_work(sandbox: Sandbox) -> None:
    sandbox.run('speval(lambda x: x, range(100), "evals.db")')
    sandbox.run(CRASHES)
    files = [sandbox.path / name for name in ("evals.db", "evals.db-journal")]
    before = [file.read_bytes() for file in files]
    with pytest.raises(SpevalError):
        how_far(database(sandbox.db))
    assert before == [file.read_bytes() for file in files]
    assert sandbox.column("result") == list(range(100))


def test_nor_does_a_reader_who_may_not_queue_roll_it_back(sandbox: Sandbox, public: pathlib.Path) -> None:
    script = f"import hashlib, sqlite3, tempfile\nos.chdir({str(public)!r})\n"
    sandbox.run(script + 'speval(lambda x: x, range(100), "evals.db")')
    sandbox.run(script + CRASHES)
    for name in ("evals.db", "evals.db-journal"):
        os.chmod(public / name, 0o666)
    before = (public / "evals.db-journal").read_bytes()
    reads = script + 'os.setuid(65534)\nload_evals("evals.db")'
    assert "after a worker was killed" in sandbox.end(sandbox.start(reads, measured=False), 1)
    assert before == (public / "evals.db-journal").read_bytes()
    os.chmod(public / "evals.db-lock", 0o666)
    sandbox.end(sandbox.start(reads, measured=False))


def test_a_signal_handler_that_uses_a_database_in_mid_transaction_is_told_so(sandbox: Sandbox) -> None:
    script = """
def look(*args):
    for call in (lambda: count_evals("evals.db"), lambda: speval(abs, [1], "evals.db")):
        try:
            call()
        except SpevalError as exc:
            note(exc)
    note("seen by a child", os.waitstatus_to_exitcode(os.waitpid(fork(), 0)[1]))

def fork():
    child = os.fork()
    if child == 0:
        sys.exit(3)  # which unwinds the transaction that it has inherited
    return child

def func(x):
    note(x)
    wait_for("locked")
    return x

signal.signal(signal.SIGUSR1, look)
speval(func, [0, 1], "evals.db")
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    with sandbox.locked():
        sandbox.touch("locked")
        until(lambda: is_locked(sandbox.db + "-lock", 0))  # it is in a transaction
        instance.send_signal(signal.SIGUSR1)
        until(lambda: len(sandbox.calls()) == 4)
    sandbox.end(instance)
    told = "a signal handler has interrupted a transaction on"
    assert [call.startswith(told) for call in sandbox.calls()[1:3]] == [True, True]
    assert sandbox.calls()[3] == "seen by a child 3"
    assert sandbox.column("result") == [0, 1]
    assert sandbox.column("attempt") == [1, 1]


# COMMIT says that it has failed, but all is on disk: so it is where only the sync of the journal failed.
FAILING_COMMIT = """
import functools, sqlite3
failures = 1
called = False

class Failing(sqlite3.Connection):
    def execute(self, statement, *facts):
        global failures
        cursor = super().execute(statement, *facts)
        in_main = threading.current_thread() is threading.main_thread()
        if statement == "COMMIT" and in_main == IN_MAIN and failures and called:
            failures -= 1
            note("error")
            exc = sqlite3.OperationalError("disk I/O error")
            exc.sqlite_errorcode = 10
            raise exc
        return cursor

def func(x):
    global called
    called = True
    note(x)
    time.sleep(0.2 if x % 200 == 150 else 0.001)
    return x

sqlite3.connect = functools.partial(sqlite3.connect, factory=Failing)
speval(func, range(600), "evals.db")
"""


@pytest.mark.parametrize("in_main", [True, False])
def test_a_commit_that_fails_though_it_was_stored_costs_nothing(sandbox: Sandbox, in_main: bool) -> None:
    script = FAILING_COMMIT.replace("IN_MAIN", str(in_main))
    for instance in [sandbox.start(script) for _ in range(2)]:
        sandbox.end(instance)
    assert sandbox.column("result") == list(range(600))
    assert sandbox.column("losses") == [0] * 600
    calls = collections.Counter(sandbox.calls())
    assert calls.pop("error") >= 1
    assert set(calls.values()) == {1}


def test_a_database_that_somebody_else_locks_is_waited_for(sandbox: Sandbox) -> None:
    sandbox.run('speval(lambda x: x, [0], "evals.db")')
    script = "from speval.process import background\nbackground.LONG_WAIT = 0.05\n"
    with sandbox.locked():
        instance = sandbox.start(script + 'speval(lambda x: x, [0, 1], "evals.db")')
        assert instance.stdout is not None
        assert "keeps the database locked" in instance.stdout.readline()
    sandbox.end(instance)
    assert sandbox.column("result") == [0, 1]


def test_a_second_name_for_the_file_is_refused(sandbox: Sandbox) -> None:
    sandbox.run('speval(lambda x: x, [0], "evals.db")')
    os.link(sandbox.db, sandbox.path / "other.db")
    for call in (
        'speval(lambda x: x, [0, 1], "other.db")',
        'reset_evals("other.db")',
        'load_evals("other.db")',
        'from speval.cli import main\nsys.exit(main(["doctor", "other.db"]))',
    ):
        assert "has a second name, a hard link" in sandbox.end(sandbox.start(call), 1)


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
    sandbox.run('os.chdir("disk")\n' + CRASHES)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(SpevalError, match="after a worker was killed in the middle"):
        load_evals(small_disk / "evals.db")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert [row["result"] for row in load_evals(small_disk / "evals.db")] == [0, 1, 2]
