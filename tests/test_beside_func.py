"""What `func`, its handlers and its children do beside a batch cannot hurt the batch, nor each other."""

from __future__ import annotations

import collections
import os
import pathlib
import signal
import sqlite3
import subprocess

import pytest
from conftest import Sandbox, is_locked, until

from speval import SpevalError, count_evals, load_evals
from speval.database import database
from speval.workers import how_far

ALL = {"pending": 0, "in_progress": 0, "completed": 600, "failed": 0}


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
conn = sqlite3.connect("evals.db", isolation_level=None)
conn.execute("PRAGMA cache_size = 1")
conn.execute("BEGIN")
conn.execute("UPDATE evals SET result = hex(zeroblob(5000))")
os._exit(0)
"""


def test_a_glance_leaves_a_journal_alone_that_may_be_of_somebody_at_work(sandbox: Sandbox) -> None:
    sandbox.run('speval(lambda x: x, range(100), "evals.db")')
    sandbox.run("import sqlite3\n" + CRASHES)
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
    conn = sqlite3.connect(sandbox.db, isolation_level=None)
    conn.execute("BEGIN EXCLUSIVE")
    sandbox.touch("locked")
    until(lambda: is_locked(sandbox.db + "-lock", 0))  # it is in a transaction
    instance.send_signal(signal.SIGUSR1)
    until(lambda: len(sandbox.calls()) == 4)
    conn.execute("ROLLBACK")
    conn.close()
    sandbox.end(instance)
    told = "a signal handler has interrupted a transaction on"
    assert [call.startswith(told) for call in sandbox.calls()[1:3]] == [True, True]
    assert sandbox.calls()[3] == "seen by a child 3"
    assert sandbox.column("result") == [0, 1]
    assert sandbox.column("attempt") == [1, 1]


# COMMIT says that it has failed, but all is on disk: so it is where only the sync of the journal failed.
FAILING_COMMIT = """
import sqlite3
from speval.database.sqlite import Sqlite
really = Sqlite._patiently
failures = 1
called = False

def patiently(db, conn, statement):
    global failures
    really(db, conn, statement)
    in_main = threading.current_thread() is threading.main_thread()
    if statement == "COMMIT" and in_main == IN_MAIN and failures and called:
        failures -= 1
        note("error")
        exc = sqlite3.OperationalError("disk I/O error")
        exc.sqlite_errorcode = 10
        raise exc

def func(x):
    global called
    called = True
    note(x)
    time.sleep(0.2 if x % 200 == 150 else 0.001)
    return x

Sqlite._patiently = patiently
speval(func, range(600), "evals.db")
"""


@pytest.mark.parametrize("in_main", [True, False])
def test_a_commit_that_fails_though_it_was_stored_costs_nothing(sandbox: Sandbox, in_main: bool) -> None:
    script = FAILING_COMMIT.replace("IN_MAIN", str(in_main))
    for instance in [sandbox.start(script) for _ in range(2)]:
        sandbox.end(instance)
    assert count_evals(sandbox.db) == ALL
    assert sandbox.column("losses") == [0] * 600
    calls = collections.Counter(sandbox.calls())
    assert calls.pop("error") >= 1
    assert set(calls.values()) == {1}


def test_a_log_handler_that_forks_does_not_wait_for_the_watchdog_that_logs(sandbox: Sandbox) -> None:
    script = """
import logging

class Handler(logging.Handler):
    def emit(self, record):
        if record.name == "user":
            time.sleep(0.3)  # until the watchdog has something to log
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)

logging.getLogger().addHandler(Handler())

def func(x):
    if x == 300:
        logging.getLogger("user").warning("look at this")
    if x % 3 == 0:
        raise ValueError(x)
    time.sleep(0.0005)

speval(func, range(600), "evals.db", max_failures=None)
"""
    sandbox.run(script)
    assert count_evals(sandbox.db) == {"pending": 0, "in_progress": 0, "completed": 400, "failed": 200}


def test_a_signal_handler_may_fork_while_func_reads_the_database(sandbox: Sandbox) -> None:
    script = """
def fork(*args):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

def func(x):
    note(x)
    for _ in range(3):
        count_evals("evals.db")

signal.signal(signal.SIGUSR1, fork)
speval(func, range(600), "evals.db")
os._exit(0)
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    while instance.poll() is None:
        instance.send_signal(signal.SIGUSR1)
        _until_more(sandbox, instance)
    sandbox.end(instance)
    assert count_evals(sandbox.db) == ALL


def _until_more(sandbox: Sandbox, instance: subprocess.Popen[str]) -> None:
    """Wait until an instance has called again, or has ended."""
    before = len(sandbox.calls())
    until(lambda: instance.poll() is not None or len(sandbox.calls()) > before)


# The fork waits for a thread of the same process, which is in a transaction, and that for somebody else.
FORKS_WHILE_LOCKED = """
import importlib

def limit(*args):
    raise TimeoutError

def read():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # it is for the main thread
    count_evals("evals.db")

def func(x):
    if x == 300:
        note("here")
        wait_for("locked")
        threading.Thread(target=read).start()
        while not locks._section.thread:
            time.sleep(0.001)
        START
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        note("forked")
        wait_for("never")

from speval.database import database
locks = database("evals.db").locks
signal.signal(signal.SIGALRM, limit)
speval(func, range(600), "evals.db")
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_during_a_fork_is_heeded_when_that_is_over(
    sandbox: Sandbox, signum: signal.Signals
) -> None:
    instance = sandbox.start(FORKS_WHILE_LOCKED.replace("START", ""), measured=False)
    until(sandbox.calls)
    conn = sqlite3.connect(sandbox.db, isolation_level=None)
    conn.execute("BEGIN EXCLUSIVE")
    sandbox.touch("locked")
    until(lambda: _blocks(instance.pid, signum))  # it waits, in the hook of the fork
    instance.send_signal(signum)
    conn.execute("ROLLBACK")
    conn.close()
    sandbox.end(instance, -signum)
    assert count_evals(sandbox.db)["in_progress"] == 0
    assert set(sandbox.column("losses")) == {0}


def test_an_alarm_of_the_user_during_a_fork_is_not_lost_and_leaves_no_signal_blocked(
    sandbox: Sandbox,
) -> None:
    script = FORKS_WHILE_LOCKED.replace("START", "signal.setitimer(signal.ITIMER_REAL, 0.2)")
    instance = sandbox.start(script)
    until(sandbox.calls)
    conn = sqlite3.connect(sandbox.db, isolation_level=None)
    conn.execute("BEGIN EXCLUSIVE")
    sandbox.touch("locked")
    until(lambda: _pends(instance.pid, signal.SIGALRM))
    conn.execute("ROLLBACK")
    conn.close()
    assert sandbox.end(instance).splitlines()[-1] == "set()"
    (failed,) = load_evals(sandbox.db, "failed")
    assert failed["error"].endswith("TimeoutError\n")


def _blocks(pid: int, signum: int) -> bool:
    return _has(pid, "SigBlk", signum)


def _pends(pid: int, signum: int) -> bool:
    return _has(pid, "ShdPnd", signum)


def _has(pid: int, which: str, signum: int) -> bool:
    with open(f"/proc/{pid}/status") as lines:
        (found,) = (line.split()[1] for line in lines if line.startswith(which))
    return bool(int(found, 16) >> (signum - 1) & 1)


def test_grandchildren_forked_beside_a_batch_do_not_give_it_away(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x)
    time.sleep(0.001)

def fork():
    while not over:
        child = os.fork()
        if child == 0:
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            os._exit(0)
        os.waitpid(child, 0)

over = sys.argv[1] == "plain"
thread = threading.Thread(target=fork, daemon=True)
thread.start()
speval(func, range(600), "evals.db")
over = True
thread.join()
"""
    for instance in [sandbox.start(script, how) for how in ("fork", "plain")]:
        sandbox.end(instance)
    assert count_evals(sandbox.db) == ALL
    assert set(collections.Counter(sandbox.calls()).values()) == {1}


def test_a_worker_that_was_stopped_before_its_batch_began_asks_first(sandbox: Sandbox) -> None:
    script = """
import logging

class Handler(logging.Handler):
    def emit(self, record):
        claimed = record.getMessage().startswith("claimed evaluation")
        if claimed and int(record.args[0]) > 500 and not os.path.exists("stopped"):
            open("stopped", "w").close()
            os.kill(os.getpid(), signal.SIGSTOP)

if sys.argv[1] == "stop":
    logging.getLogger("speval").addHandler(Handler())
    logging.getLogger("speval").setLevel(logging.INFO)

def func(x):
    note(x)
    time.sleep(0.001)

speval(func, range(1000), "evals.db", timeout=1)
"""
    stopped = sandbox.start(script, "stop")
    until((sandbox.path / "stopped").exists)
    sandbox.end(sandbox.start(script, "go"))
    stopped.send_signal(signal.SIGCONT)
    sandbox.end(stopped)
    assert sandbox.column("losses").count(1) > 1  # it was a batch that was taken over
    assert set(collections.Counter(sandbox.calls()).values()) == {1}


def test_nothing_is_left_when_speval_returns_though_others_extend_the_space(sandbox: Sandbox) -> None:
    script = """
import random
size = 10
for _ in range(50):
    size = max(size, sum(count_evals("evals.db").values()) if os.path.exists("evals.db") else 0)
    size += random.choice([0, 1, 5])
    counts = speval(lambda x: x, range(size), "evals.db")
    assert counts["pending"] == counts["in_progress"] == 0, counts
"""
    for instance in [sandbox.start(script) for _ in range(3)]:
        sandbox.end(instance)
    assert sandbox.column("result") == list(range(sum(count_evals(sandbox.db).values())))


def test_a_log_filter_that_raises_does_not_end_the_watchdog_for_good(sandbox: Sandbox) -> None:
    script = """
import logging

class Filter(logging.Filter):
    def filter(self, record):
        if threading.current_thread() is not threading.main_thread() and not os.path.exists("raised"):
            open("raised", "w").close()
            raise RuntimeError("the log server is away")
        return False

logging.getLogger("speval").addFilter(Filter())

def func(x):
    note(x)
    if x in (200, 201):
        time.sleep(0.4 * (x - 200))
        raise ValueError(x)
    if x == 500:
        wait_for("go")
    time.sleep(0.001)

speval(func, range(600), "evals.db")
"""
    instance = sandbox.start(script)
    until(lambda: "500" in sandbox.calls())
    until(lambda: count_evals(sandbox.db)["in_progress"] == 1)
    assert (sandbox.path / "raised").exists()
    sandbox.touch("go")
    assert "the log server is away" in sandbox.end(instance)
