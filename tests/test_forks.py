"""Forks, at any moment and by whomever, hurt no transaction, block no signal and leave nobody waiting."""

from __future__ import annotations

import collections
import signal
import subprocess

import pytest
from conftest import MISS_A_WAKEUP, Sandbox, has_signal, is_locked, until

from speval import count_evals, load_evals

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
    with sandbox.locked():
        sandbox.touch("locked")
        until(lambda: is_locked(sandbox.db + "-lock", 0))  # it is in a transaction
        instance.send_signal(signal.SIGUSR1)
        until(lambda: "2" in sandbox.calls())
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


@pytest.mark.parametrize(
    ("way_out", "said"),
    [
        ("os._exit(1)", ""),
        ("sys.exit(1)", ""),
        ("return x", "func came back in a process that was forked in it"),
        ("raise ValueError(x)", "func came back in a process that was forked in it"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_child_forked_by_func_is_not_the_worker(sandbox: Sandbox, way_out: str, said: str) -> None:
    script = f"""
def func(x):
    note(x)
    pid = os.fork()
    if not pid:
        {way_out}
    os.waitpid(pid, 0)
    return x + 1

speval(func, range(3), "evals.db")
"""
    assert said in sandbox.run(script)
    assert [(row["result"], row["attempt"]) for row in load_evals(sandbox.db)] == [(1, 1), (2, 1), (3, 1)]
    assert sandbox.calls() == ["0", "1", "2"]


def test_a_child_does_not_keep_a_dead_worker_alive(sandbox: Sandbox) -> None:
    script = """
def func(x):
    if current_eval()["attempt"] == 1 and os.fork():
        note(x)
        wait_for("go")
    elif current_eval()["attempt"] == 1:
        wait_for("end")
        os._exit(0)
    return x

speval(func, [0], "evals.db")
"""
    first = sandbox.start(script)
    until(sandbox.calls)
    first.kill()
    sandbox.run(script)
    sandbox.touch("end")
    assert sandbox.column("losses") == [1]


def test_func_may_use_multiprocessing(sandbox: Sandbox) -> None:
    script = """
import multiprocessing

def square(x):
    return x * x

def func(x):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(square, range(x))

speval(func, range(4), "evals.db")
"""
    sandbox.run(script)
    assert sandbox.column("result") == [[], [0], [0, 1], [0, 1, 4]]


def test_forks_of_one_thread_do_not_hurt_transactions_of_another(sandbox: Sandbox) -> None:
    script = """
import warnings
warnings.simplefilter("ignore")  # forks of a process with threads

thread = threading.Thread(target=speval, args=(lambda x: note(x) or x, range(300), "evals.db"))
thread.start()
while thread.is_alive():
    pid = os.fork()
    if not pid:
        try:
            count_evals("evals.db") if os.path.getsize("evals.db") else None
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
thread.join()
"""
    sandbox.run("wait_for('/')\n" + script.replace("while", 'wait_for("evals.db")\nwhile'))
    assert sandbox.column("result") == list(range(300))
    assert sorted(map(int, sandbox.calls())) == list(range(300))  # each once, though forks end batches


def test_an_evaluation_may_fork_after_a_long_wait_without_other_threads(sandbox: Sandbox) -> None:
    script = """
import warnings
from speval.process import background
background.LONG_WAIT = 0.05

def func(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a fork with several threads, since Python 3.12
        child = os.fork()
        if child == 0:
            os._exit(0)
    os.waitpid(child, 0)
    return len(os.listdir("/proc/self/task"))

speval(func, [0], "evals.db")
"""
    sandbox.run('speval(abs, [], "evals.db")')
    with sandbox.locked():
        instance = sandbox.start(script)
        assert instance.stdout is not None
        assert "keeps the database locked" in instance.stdout.readline()
    sandbox.end(instance)
    assert sandbox.column("result") == [1]


def test_databases_that_are_used_no_more_hold_up_no_fork(sandbox: Sandbox) -> None:
    """Each fork asks all that are known: two levels of search use one for each evaluation."""
    script = """
import gc
from speval.database.locks import Locks
from speval.process.forks import Section

def func(x):
    return speval(abs, [x], f"{x}.db")["completed"]

speval(func, range(20), "evals.db")
gc.collect()
left = sum(isinstance(found, (Locks, Section)) for found in gc.get_objects())
print(left, len(os.listdir("/proc/self/fd")) < 10)
"""
    assert sandbox.run(script) == "0 True\n"


def test_an_interrupt_during_a_fork_is_neither_lost_nor_harmful(sandbox: Sandbox) -> None:
    script = """
def func(x):
    signal.setitimer(signal.ITIMER_REAL, 0.00001 + x * 0.000002)
    for _ in range(20):
        pid = os.fork()
        if not pid:
            files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
            os._exit(any(file.endswith("-lock") for file in files))
        assert os.waitpid(pid, 0)[1] == 0
    wait_for("never")  # if it came in the middle of a fork, it comes again

signal.signal(signal.SIGALRM, lambda *args: os.kill(os.getpid(), signal.SIGINT))
for x in range(100):
    try:
        speval(func, {x: x}, f"{x}.db")
    except KeyboardInterrupt:
        print("interrupted")
"""
    output = sandbox.end(sandbox.start(script, measured=False)).splitlines()  # and warnings of forks
    assert output.count("interrupted") == 100


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
    assert sandbox.column("status") == ["completed"] * 600


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
        wait_for("reading")
        START
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        note("forked")
        wait_for("never")

signal.signal(signal.SIGALRM, limit)
speval(func, range(600), "evals.db")
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.parametrize("rest", ["os.waitpid(child, 0)", MISS_A_WAKEUP])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_during_a_fork_is_heeded_when_that_is_over(
    sandbox: Sandbox, signum: signal.Signals, rest: str
) -> None:
    script = FORKS_WHILE_LOCKED.replace("START", "").replace("os.waitpid(child, 0)", rest)
    instance = sandbox.start(script, measured=False)
    until(sandbox.calls)
    with sandbox.locked():
        sandbox.touch("locked")
        until(lambda: is_locked(sandbox.db + "-lock", 0))
        sandbox.touch("reading")
        until(lambda: has_signal(instance.pid, "SigBlk", signum))  # it waits, in the hook of the fork
        instance.send_signal(signum)
    sandbox.end(instance, -signum)
    assert count_evals(sandbox.db)["in_progress"] == 0
    assert set(sandbox.column("losses")) == {0}


def test_an_alarm_of_the_user_during_a_fork_is_not_lost_and_leaves_no_signal_blocked(
    sandbox: Sandbox,
) -> None:
    script = FORKS_WHILE_LOCKED.replace("START", "signal.setitimer(signal.ITIMER_REAL, 0.2)")
    instance = sandbox.start(script)
    until(sandbox.calls)
    with sandbox.locked():
        sandbox.touch("locked")
        until(lambda: is_locked(sandbox.db + "-lock", 0))
        sandbox.touch("reading")
        until(lambda: has_signal(instance.pid, "ShdPnd", signal.SIGALRM))
    assert sandbox.end(instance).splitlines()[-1] == "set()"
    (failed,) = load_evals(sandbox.db, "failed")
    assert failed["error"].endswith("TimeoutError\n")


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
    assert sandbox.column("status") == ["completed"] * 600
    assert set(collections.Counter(sandbox.calls()).values()) == {1}


def test_a_fork_that_had_begun_before_speval_was_used_may_be_followed_by_another(sandbox: Sandbox) -> None:
    script = """
from speval.process import forks

def fork():
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0)
        os._exit(os.waitpid(grandchild, 0)[1])
    note(os.waitpid(child, 0)[1])

os.register_at_fork(before=lambda: (note("begun"), wait_for("go")))
thread = threading.Thread(target=fork)
thread.start()
wait_for("calls")
forks.watch()
with forks.at_gate():
    open("go", "w").close()
    thread.join()
"""
    sandbox.end(sandbox.start(script, measured=False))
    assert sandbox.calls()[-1] == "0"


def test_an_evaluation_that_forks_in_a_batch_does_so_without_other_threads(sandbox: Sandbox) -> None:
    script = """
import warnings
warnings.simplefilter("error")  # of a fork with several threads

def func(x):
    note(x)
    if x % 100 == 99:
        child = os.fork()
        if child == 0:
            os._exit(len(os.listdir("/proc/self/task")) - 1)
        return os.waitpid(child, 0)[1]

speval(func, range(1000), "evals.db")
"""
    sandbox.run(script)
    assert sandbox.column("status") == ["completed"] * 1000
    assert sandbox.column("result")[99::100] == [0] * 10
    assert len(sandbox.calls()) == 1000
