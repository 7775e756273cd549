"""Forks by several threads, or inside one another, leave no signal blocked and nobody waiting."""

from __future__ import annotations

import collections
import signal
import sqlite3

from conftest import Sandbox, is_locked, until

from speval import count_evals

# A process that hangs takes what it has forked along: nothing else would end that.
GUARD = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, since Python 3.12
os.setpgrp()
guard = threading.Timer(60, os.killpg, (os.getpgrp(), signal.SIGKILL))
guard.daemon = True
guard.start()

def mask():
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))

"""


def test_threads_that_fork_at_once_leave_no_signal_blocked(sandbox: Sandbox) -> None:
    """Nothing but the import of speval: so two threads hang that have a multiprocessing.Pool each."""
    script = """
codes, masks = [], []

def fork():
    for _ in range(150):
        child = os.fork()
        if child == 0:
            os._exit(len(mask()))
        codes.append(os.WEXITSTATUS(os.waitpid(child, 0)[1]))
    masks.append(mask())

threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(masks, sum(map(bool, codes)), "of", len(codes))
"""
    assert sandbox.run(GUARD + script) == "[[], [], [], []] 0 of 600\n"


def test_a_fork_leaves_signals_alone_that_the_user_has_blocked(sandbox: Sandbox) -> None:
    script = """
speval(abs, [1], "evals.db")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print(signal.sigpending(), mask())
"""
    assert sandbox.run(GUARD + script) == "{<Signals.SIGUSR1: 10>} [<Signals.SIGUSR1: 10>]\n"


def test_a_handler_may_use_another_database_in_mid_transaction_while_a_thread_forks(sandbox: Sandbox) -> None:
    script = """
def look(*args):
    note(count_evals("other.db")["completed"])

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    note("forked", os.waitpid(child, 0)[1])

def func(x):
    note(x)
    wait_for("locked")
    threading.Thread(target=fork).start()

signal.signal(signal.SIGUSR1, look)
speval(abs, [1, 2], "other.db")
speval(func, [0], "evals.db")
"""
    instance = sandbox.start(GUARD + script)
    until(sandbox.calls)
    conn = sqlite3.connect(sandbox.db, isolation_level=None)
    conn.execute("BEGIN EXCLUSIVE")
    sandbox.touch("locked")
    until(lambda: is_locked(sandbox.db + "-lock", 0))  # it is in a transaction
    instance.send_signal(signal.SIGUSR1)
    until(lambda: "2" in sandbox.calls())
    conn.execute("ROLLBACK")
    conn.close()
    until(lambda: "forked 0" in sandbox.calls())
    sandbox.end(instance)


def test_a_handler_of_sigchld_may_fork_while_func_forks(sandbox: Sandbox) -> None:
    script = """
forking = False

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child

def handle(*args):
    global forking
    if not forking:  # what it forks ends too
        forking = True
        os.waitpid(fork(), 0)
        forking = False

def func(x):
    note(x)
    children = [fork() for _ in range(3 * (x % 5 == 0))]
    for child in children:
        os.waitpid(child, 0)
    return mask()

signal.signal(signal.SIGCHLD, handle)
speval(func, range(100), "evals.db")
print(mask())
"""
    assert sandbox.run(GUARD + script) == "[]\n"
    assert sandbox.column("result") == [[]] * 100
    assert set(collections.Counter(sandbox.calls()).values()) == {1}


def test_a_log_handler_may_fork_while_func_forks(sandbox: Sandbox) -> None:
    """What ends the batch before the fork of func says so in the log."""
    script = """
import logging

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

class Handler(logging.Handler):
    def emit(self, record):
        if record.levelno == logging.WARNING:
            fork()

def func(x):
    note(x)
    time.sleep(0.0005)
    if x % 100 == 50:
        fork()
    if x % 100 == 0:
        raise ValueError(mask())
    return mask()

logging.getLogger("speval").addHandler(Handler())
speval(func, range(600), "evals.db", max_failures=None)
print(mask())
"""
    assert sandbox.run(GUARD + script) == "[]\n"
    assert count_evals(sandbox.db) == {"pending": 0, "in_progress": 0, "completed": 594, "failed": 6}
    assert [result for result in sandbox.column("result") if result] == []
    assert {error.splitlines()[-1] for error in sandbox.column("error") if error} == {"ValueError: []"}
    assert set(collections.Counter(sandbox.calls()).values()) == {1}


def test_a_child_can_use_a_database_whatever_other_threads_were_beginning(sandbox: Sandbox) -> None:
    script = """
def begin():
    n = 0
    while not done:
        n += 1
        speval(abs, [0], "other.db")

speval(abs, [1], "evals.db")
done = False
thread = threading.Thread(target=begin)
thread.start()
codes = []
for n in range(60):
    child = os.fork()
    if child == 0:
        counts = speval(abs, [n], f"child {n}.db")
        os._exit(counts["completed"])
    codes.append(os.WEXITSTATUS(os.waitpid(child, 0)[1]))
done = True
thread.join()
print(codes.count(1), "of", len(codes))
"""
    assert sandbox.run(GUARD + script).splitlines()[-1] == "60 of 60"
