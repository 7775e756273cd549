"""Interrupts: what is finished is stored, what is not is released, and then they go their way."""

import os
import signal
import sqlite3
import subprocess
import time

import pytest
from conftest import LIMIT, MISS_A_WAKEUP, Sandbox, has_signal, is_locked, state, until

from speval import count_evals, load_evals

WAITS = """
def func(x):
    note(x)
    wait_for(f"go {x}")
    return x

speval(func, [0, 1], "evals.db")
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_worker_gives_its_evaluation_back_without_a_loss(
    sandbox: Sandbox, signum: signal.Signals
) -> None:
    instance = sandbox.start(WAITS)
    sandbox.touch("go 0")
    until(lambda: sandbox.calls() == ["0", "1"])
    instance.send_signal(signum)
    output = sandbox.end(instance, -signum)
    assert output.count("Traceback") == (signum == signal.SIGINT)
    assert sandbox.column("status") == ["completed", "pending"]
    assert sandbox.column("losses") == [0, 0]
    assert sandbox.column("worker")[1] is None


EXITS = {
    "a number": ("sys.exit(3)", "SystemExit: 3"),
    "nothing": ("sys.exit()", "SystemExit (exit code 0)"),
    "None": ("raise SystemExit(None)", "SystemExit: None (exit code 0)"),
    "a text": ("sys.exit('no data')", "SystemExit: no data (exit code 1)"),
    "argparse": ("argparse.ArgumentParser().parse_args(['--seeed=1'])", "SystemExit: 2"),
    "after asyncio": ("asyncio.run(listen()); sys.exit(4)", "SystemExit: 4"),
    "in a search": ("speval(lambda y: sys.exit(y), [5], 'inner.db', max_failures=1)", "SystemExit: 5"),
    "in a thread": ("in_thread()", "AssertionError: (1, 'SystemExit: 6')"),
}


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kind", EXITS)
def test_system_exit_in_func_without_an_interrupt_fails_that_evaluation_only(
    sandbox: Sandbox, kind: str, n_jobs: int
) -> None:
    code, last = EXITS[kind]
    script = f"""
import argparse
import asyncio
import threading

async def listen():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, note)
    loop.remove_signal_handler(signal.SIGTERM)

def in_thread():
    args = lambda y: sys.exit(y), [6], "inner.db"
    thread = threading.Thread(target=speval, args=args)
    thread.start()
    thread.join()
    (inner,) = load_evals("inner.db")
    assert 0, (inner["attempt"], inner["error"].splitlines()[-1])

def func(x):
    note(x)
    if x == 1:
        {code}
    return x

for _ in range(2):
    print(speval(func, range(4), "evals.db", n_jobs={n_jobs}))
"""
    counts = {"pending": 0, "in_progress": 0, "completed": 3, "failed": 1}
    assert sandbox.run(script).count(f"{counts}\n") == 2
    assert sorted(sandbox.calls()) == ["0", "1", "2", "3"]
    (failed,) = load_evals(sandbox.db, "failed")
    assert (failed["name"], failed["losses"], failed["result"]) == ("1", 0, None)
    assert failed["error"].startswith("Traceback (most recent call last):\n")
    assert last in failed["error"].splitlines()[-1]


def test_an_instance_whose_first_evaluations_all_exit_stops(sandbox: Sandbox) -> None:
    script = 'speval(lambda x: sys.exit(2), range(100), "evals.db", max_failures=3)'
    output = sandbox.end(sandbox.start(script), 1)
    assert "the first 3 evaluations of this instance all failed, the last with SystemExit: 2" in output
    assert count_evals(sandbox.db) == {"pending": 97, "in_progress": 0, "completed": 0, "failed": 3}


HANDLER = "signal.signal(signal.SIGTERM, lambda *args: sys.exit(7))"
FLAG = "signal.signal(signal.SIGTERM, lambda *args: flags.append(1))"
HANDLERS = {
    "set before": (f"{HANDLER}\ndo(func)", "time.sleep(1000)"),
    "set before, in a search": (f"{HANDLER}\ndo(lambda x: do(func, 'inner.db'))", "time.sleep(1000)"),
    "set by func": ("do(func)", f"{HANDLER}; note('set'); time.sleep(1000)"),
    "set by func in a search": (
        "do(lambda x: do(func, 'inner.db'))",
        f"{HANDLER}; note('set'); time.sleep(1000)",
    ),
    "a flag": (f"{FLAG}\ndo(func)", "wait_for_flag(); sys.exit(7)"),
    "a flag of func": ("do(func)", f"{FLAG}; note('set'); wait_for_flag(); sys.exit(7)"),
    "of the default": ("do(lambda x: do(func, 'inner.db'))", "exit_at_interrupt()"),
}


@pytest.mark.parametrize("handler", ["exit_now", "Job().exit_now", "functools.partial(exit_now)", "Job()"])
def test_system_exit_in_a_handler_of_any_signal_ends_the_instance(sandbox: Sandbox, handler: str) -> None:
    """A batch system sends SIGUSR1, for example, some time before the time limit."""
    script = f"""
import functools

def exit_now(*args):
    sys.exit(7)

class Job:
    def exit_now(self, *args):
        sys.exit(7)

    __call__ = exit_now

def func(x):
    note(x)
    wait_for("never")

signal.signal(signal.SIGUSR1, {handler})
speval(func, range(2), "evals.db")
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    instance.send_signal(signal.SIGUSR1)
    sandbox.end(instance, 7)
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)] * 2


@pytest.mark.parametrize("kind", HANDLERS)
def test_system_exit_after_an_interrupt_ends_the_instance_without_a_loss(sandbox: Sandbox, kind: str) -> None:
    work, code = HANDLERS[kind]
    script = f"""
flags = []

def wait_for_flag():
    while not flags:
        time.sleep(0.01)

def exit_at_interrupt():
    try:
        time.sleep(1000)
    except BaseException:
        sys.exit(7)

def func(x):
    note(x)
    {code}

def do(work, name="evals.db"):
    speval(work, range(2), name)

{work}
"""
    instance = sandbox.start(script)
    until(lambda: len(sandbox.calls()) == 1 + ("set by" in kind or "flag of" in kind))
    instance.send_signal(signal.SIGTERM)
    sandbox.end(instance, -signal.SIGTERM if kind == "of the default" else 7)
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)] * 2


SLOW = """
class Slow:
    def __del__(self):
        note("deleting")
        wait_for("go")

"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("rest", ["time.sleep(1000)", MISS_A_WAKEUP])
def test_an_interrupt_where_python_ignores_exceptions_is_not_lost(
    sandbox: Sandbox, signum: signal.Signals, rest: str
) -> None:
    script = f"""
def func(x):
    slow = Slow()
    del slow
    {rest}

speval(func, [0], "evals.db")
"""
    instance = sandbox.start(SLOW + script, measured=False)
    until(lambda: sandbox.calls() == ["deleting"])
    sandbox.end_by(instance, signum)
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nor_is_it_lost_if_python_ignores_its_repetitions_too(
    sandbox: Sandbox, signum: signal.Signals
) -> None:
    script = """
class Slow:
    def __del__(self):
        note("deleting")
        wait_for("never")  # ends by the interrupt

def func(x):
    for _ in range(5):
        slow = Slow()
        del slow
    time.sleep(1000)

speval(func, [0], "evals.db")
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    sandbox.end_by(instance, signum)
    assert sandbox.calls() == ["deleting"] * 5
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_nor_does_it_come_twice_if_the_function_returns_then(
    sandbox: Sandbox, signum: signal.Signals
) -> None:
    script = """
def func(x):
    slow = Slow()

signal.signal(signal.SIGTERM, lambda *args: sys.exit(7))
try:
    speval(func, range(3), "evals.db")
except (KeyboardInterrupt, SystemExit):
    time.sleep(0.1)
    note("once")
"""
    instance = sandbox.start(SLOW + script)
    until(sandbox.calls)
    instance.send_signal(signum)
    sandbox.end(instance)
    assert sandbox.calls() == ["deleting", "once"]
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)] * 3


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_nor_is_it_lost_in_a_search_inside_a_search(sandbox: Sandbox, signum: signal.Signals) -> None:
    script = """
def inner(x):
    slow = Slow()
    del slow
    for _ in range(1000):
        time.sleep(0.1)
        count_evals("inner.db")

speval(lambda x: speval(inner, [0], "inner.db"), [0], "evals.db")
"""
    instance = sandbox.start(SLOW + script)
    until(sandbox.calls)
    sandbox.end_by(instance, signum)
    for name in "evals.db", "inner.db":
        rows = load_evals(sandbox.path / name)
        assert [(row["status"], row["losses"]) for row in rows] == [("pending", 0)]


# What `func` makes of an interrupt is no result of its evaluation, and no failure.
SWALLOWS = """
def func(x):
    note(x)
    if x == 0:
        return x
    try:
        {}
    except BaseException:
        {}

speval(func, [0, 1, 2], "evals.db", n_jobs=int(sys.argv[1]))
"""
PROGRAM = 'subprocess.run(["sleep", "1000"], check=True)'


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("end", ["return 'saved'", "raise ValueError"])
def test_what_func_makes_of_an_interrupt_is_not_stored(
    sandbox: Sandbox, n_jobs: int, signum: signal.Signals, end: str
) -> None:
    instance = sandbox.start(SWALLOWS.format('wait_for("never")', end), str(n_jobs))
    until(lambda: len(sandbox.calls()) == 1 + n_jobs)
    instance.send_signal(signum)
    sandbox.end(instance, -signum)
    assert sandbox.column("status") == ["completed", "pending", "pending"]
    assert sandbox.column("losses") == [0, 0, 0]


RUNS_A_PROGRAM = """
import subprocess

def func(x):
    note(x, os.getpid())
    return subprocess.run(["sh", "-c", "echo $$ > program; exec sleep 1000"], check=CHECK).returncode

os.setpgid(0, 0)
speval(func, [0], "evals.db", n_jobs=N)
"""


def program(sandbox: Sandbox) -> int:
    """Wait until the program runs that an evaluation starts; return its process."""
    return int(
        until(lambda: os.path.exists(sandbox.path / "program") and (sandbox.path / "program").read_text())
    )


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_an_interrupt_makes_of_a_program_of_func_is_not_stored(
    sandbox: Sandbox, check: bool, n_jobs: int, signum: signal.Signals
) -> None:
    script = RUNS_A_PROGRAM.replace("CHECK", str(check)).replace("=N", f"={n_jobs}")
    instance = sandbox.start(script, measured=False)
    ran = program(sandbox)
    os.killpg(instance.pid, signum)
    sandbox.end(instance, -signum)
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)]
    until(lambda: not os.path.exists(f"/proc/{ran}"))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_nor_if_the_program_is_told_first(sandbox: Sandbox, check: bool, signum: signal.Signals) -> None:
    """By a scheduler that goes from process to process: ours is told once the program has ended."""
    script = RUNS_A_PROGRAM.replace("CHECK", str(check)).replace("=N", "=1")
    patient = "import importlib\ncore = importlib.import_module('speval.speval')\n"
    patient += "core.MOMENT = 60.0\n"
    instance = sandbox.start(patient + script)
    ran = program(sandbox)
    os.kill(ran, signum)
    until(lambda: not os.path.exists(f"/proc/{ran}"))
    instance.send_signal(signum)
    sandbox.end(instance, -signum)
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_is_ignored_stays_ignored(sandbox: Sandbox, n_jobs: int) -> None:
    script = f"""
import subprocess

def func(x):
    code = subprocess.run(["sh", "-c", "kill -HUP $$; echo alive"], check=True).returncode
    note(x, os.getpid())
    wait_for("go")
    return code

signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
speval(func, [0], "evals.db", n_jobs={n_jobs})
"""
    instance = sandbox.start(script)
    (call,) = until(sandbox.calls)
    instance.send_signal(signal.SIGHUP)
    os.kill(int(call.split()[1]), signal.SIGHUP)
    sandbox.touch("go")
    sandbox.end(instance)
    assert sandbox.column("result") == [0]


def test_a_handler_that_asyncio_took_away_is_put_back_for_the_next_evaluation(sandbox: Sandbox) -> None:
    script = """
import asyncio

async def main():
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, print)
        asyncio.get_running_loop().remove_signal_handler(signum)

def func(x):
    asyncio.run(main())
    return [x, signal.getsignal(signal.SIGINT) is signal.default_int_handler]

def last(x):
    return None

speval(func, [0], "evals.db")
worker_handlers = []
speval(lambda x: worker_handlers.append(signal.getsignal(signal.SIGINT)) if x else asyncio.run(main()),
       range(2), "other.db")  # the first is a batch of its own
print(worker_handlers[0] is not signal.default_int_handler)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert sandbox.run(script) == "True\nTrue\n"


def test_a_second_interrupt_does_not_wait_for_a_locked_database(sandbox: Sandbox) -> None:
    instance = sandbox.start(WAITS)
    until(sandbox.calls)
    with sandbox.locked():
        instance.send_signal(signal.SIGINT)
        # It is on its way out, waiting for the database, once the default action is back.
        until(lambda: not has_signal(instance.pid, "SigCgt", signal.SIGINT))
        sandbox.end_by(instance, signal.SIGINT)
    assert sandbox.column("status") == ["in_progress", "pending"]


def test_ctrl_c_and_what_a_supervisor_sends_after_it_are_one_interrupt_also_if_both_are_held(
    sandbox: Sandbox,
) -> None:
    """On two levels: the second would kill the processes that give their evaluations back."""
    script = """
from speval.process.signals import Signals

def func():
    with Signals() as inner:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            inner.let_through(time.sleep, 0)
        except BaseException as exc:
            note(type(exc).__name__)
        note(inner.let_through(str, "goes on"))

with Signals() as outer:
    try:
        outer.let_through(func)
    except KeyboardInterrupt:
        note("raised again")
"""
    sandbox.end(sandbox.start(script))
    assert sandbox.calls() == ["KeyboardInterrupt", "goes on", "raised again"]


def test_what_ends_the_process_does_so_though_ctrl_c_comes_after_it(sandbox: Sandbox) -> None:
    script = """
def func(x):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

try:
    speval(func, [0], "evals.db")
except KeyboardInterrupt:
    note("went on")
"""
    sandbox.end(sandbox.start(script), -signal.SIGTERM)
    assert sandbox.calls() == []
    assert sandbox.column("status") == ["pending"]


def test_a_first_interrupt_does_not_break_into_leaving_after_an_error(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x)
    wait_for("go")
    1 / 0

speval(func, range(2), "evals.db", max_failures=1)
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    with sandbox.locked():
        sandbox.touch("go")
        until(lambda: is_locked(sandbox.db + "-lock", 0))
        instance.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            instance.wait(0.2)
    sandbox.end(instance, -signal.SIGTERM)
    assert sandbox.column("status") == ["failed", "pending"]


def test_ctrl_z_stops_in_no_transaction_of_a_search_inside_a_search(sandbox: Sandbox) -> None:
    script = """
def inner(x):
    if x == 0:
        os.kill(os.getpid(), signal.SIGTSTP)
        note("went on")
    handlers.append(signal.getsignal(signal.SIGTSTP))

handlers = []
os.setpgid(0, 0)
speval(lambda x: speval(inner, range(3), "inner.db")["completed"], [0], "evals.db")
print(len(set(map(id, (handler.__self__ for handler in handlers)))))
"""
    instance = sandbox.start(script)
    until(lambda: state(instance.pid) == "T")
    instance.send_signal(signal.SIGCONT)
    assert sandbox.end(instance) == "1\n"
    assert sandbox.calls() == ["went on"]


SUSPENDED = """
import hashlib

def func(x):
    note(os.getpid())
    hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)  # a second or more in C code
    return x

os.setpgid(0, 0)
speval(func, range(2), "evals.db", n_jobs=int(sys.argv[1]))
"""


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_job_that_a_batch_system_suspends_and_resumes_goes_on(sandbox: Sandbox, n_jobs: int) -> None:
    """SIGTSTP comes first, for a job that wants to prepare. Its handler cannot run before C code returns."""
    instance = sandbox.start(SUSPENDED, str(n_jobs))
    until(lambda: len(sandbox.calls()) == n_jobs)
    pids = {instance.pid, *map(int, sandbox.calls())}
    os.killpg(instance.pid, signal.SIGTSTP)  # which has to be delivered, or SIGCONT takes it away
    until(lambda: not any(has_signal(pid, "ShdPnd", signal.SIGTSTP) for pid in pids))
    until(lambda: n_jobs == 1 or state(instance.pid) == "T")  # the supervisor, which runs no C code
    os.killpg(instance.pid, signal.SIGSTOP)
    until(lambda: all(state(pid) == "T" for pid in pids))
    os.killpg(instance.pid, signal.SIGCONT)
    sandbox.end(instance)
    assert sandbox.column("result") == [0, 1]


def test_sigcont_cancels_a_stop_that_waits_for_the_end_of_a_transaction(sandbox: Sandbox) -> None:
    instance = sandbox.start(WAITS)
    until(sandbox.calls)
    with sandbox.locked():
        sandbox.touch("go 0")
        until(lambda: is_locked(sandbox.db + "-lock", 0))
        instance.send_signal(signal.SIGTSTP)
        until(lambda: not has_signal(instance.pid, "ShdPnd", signal.SIGTSTP))
        instance.send_signal(signal.SIGSTOP)
        until(lambda: state(instance.pid) == "T")
        instance.send_signal(signal.SIGCONT)
    sandbox.touch("go 1")
    sandbox.end(instance)
    assert sandbox.column("status") == ["completed"] * 2


def test_a_second_interrupt_gets_a_reader_out_of_waiting(sandbox: Sandbox) -> None:
    sandbox.run('speval(abs, [0], "evals.db")')
    script = """
try:
    note("start")
    load_evals("evals.db")
except KeyboardInterrupt:
    note("interrupted")
"""
    with sandbox.locked():
        instance = sandbox.start(script)
        until(sandbox.calls)
        end = time.monotonic() + LIMIT
        while "interrupted" not in sandbox.calls() and instance.poll() is None and time.monotonic() < end:
            instance.send_signal(signal.SIGINT)
            time.sleep(0.05)
    sandbox.end(instance)
    assert sandbox.calls() == ["start", "interrupted"]


def test_a_handler_that_somebody_puts_back_too_late_does_not_swallow_signals(sandbox: Sandbox) -> None:
    script = """
handlers = []
speval(lambda x: handlers.append(signal.getsignal(signal.SIGINT)), [0], "evals.db")
signal.signal(signal.SIGINT, handlers[0])
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    assert sandbox.run(script) == "interrupted\n"


def test_a_handler_of_the_users_stays_his(sandbox: Sandbox) -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *args: note("mine"))
def func(x):
    os.kill(os.getpid(), signal.SIGTERM)
    return x

print(speval(func, [0, 1], "evals.db")["completed"])
"""
    assert sandbox.run(script) == "2\n"
    assert sandbox.calls() == ["mine", "mine"]


def test_an_alarm_of_the_users_at_any_moment_leaves_the_database_usable(sandbox: Sandbox) -> None:
    script = """
import random

class Late(Exception):
    pass

def limit(*args):
    raise Late

speval(abs, [-1], "evals.db")
signal.signal(signal.SIGALRM, limit)
for _ in range(500):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.001))
        count_evals("evals.db")
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Late:
        pass
print(count_evals("evals.db")["completed"])
"""
    assert sandbox.run(script).splitlines()[-1] == "1"


def test_handlers_are_put_back(sandbox: Sandbox) -> None:
    script = """
def handlers():
    return [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)), sys.unraisablehook]

before = handlers()
speval(lambda x: x, [0, 1], "evals.db")
print(handlers() == before)
"""
    assert sandbox.run(script) == "True\n"


def test_a_process_that_func_started_can_be_terminated(sandbox: Sandbox) -> None:
    script = """
import multiprocessing

def func(x):
    child = multiprocessing.get_context("fork").Process(target=wait_for, args=("never",))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode

speval(func, [0], "evals.db")
"""
    sandbox.run(script)
    assert sandbox.column("result") == [-signal.SIGTERM]


def test_a_worker_outside_the_main_thread_leaves_signals_alone(sandbox: Sandbox) -> None:
    script = """
thread = threading.Thread(target=speval, args=(lambda x: x, range(5), "evals.db"))
thread.start()
thread.join()
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""
    assert sandbox.run(script) == "True\n"
    assert sandbox.column("status") == ["completed"] * 5


@pytest.mark.parametrize("threads", [0, 4])
def test_interrupts_at_any_moment_lose_nothing(sandbox: Sandbox, threads: int) -> None:
    """With other threads about, the kernel gives them the signal, whatever the main thread blocks."""
    script = f"""
for _ in range({threads}):
    threading.Thread(target=wait_for, args=("end",), daemon=True).start()
def interrupt(signum, frame):
    if inside:
        raise KeyboardInterrupt

done = inside = False
signal.signal(signal.SIGINT, interrupt)
while not done:
    try:
        inside = True
        note("start")
        done = not speval(lambda x: x, range(400), "evals.db", max_attempts=1)["pending"]
        inside = False
    except KeyboardInterrupt:  # the only one until the next start
        inside = False
note("end")
"""
    instance = sandbox.start(script, measured=False)
    until(sandbox.calls)
    for _ in range(100):  # then it may come to its end, however slow the machine is
        if "end" in (lines := sandbox.calls()):
            break
        instance.send_signal(signal.SIGINT)
        until(lambda lines=lines: len(sandbox.calls()) > len(lines))  # type: ignore[misc]
    until(lambda: "end" in sandbox.calls())
    sandbox.touch("end")
    sandbox.end(instance)
    assert sandbox.column("result") == list(range(400))
    assert set(sandbox.column("losses")) == {0}


def test_ctrl_z_in_a_transaction_waits_for_its_end(sandbox: Sandbox) -> None:
    """With another thread about, of a BLAS say, the kernel gives it the signal that the first one blocks."""
    script = """
os.setpgrp()  # Ctrl-Z has no effect on a group without a parent outside it
threading.Thread(target=wait_for, args=("never",), daemon=True).start()

def func(x):
    note(x)
    wait_for("go")

speval(func, range(5), "evals.db", wait=sys.argv[1] == "wait")
"""
    instance = sandbox.start(script, "wait", measured=False)
    until(sandbox.calls)
    conn = sqlite3.connect(sandbox.db, isolation_level=None)
    conn.execute("BEGIN IMMEDIATE")
    sandbox.touch("go")
    until(lambda: is_locked(sandbox.db + "-lock", 0))  # it has its turn, and waits for us
    instance.send_signal(signal.SIGTSTP)
    conn.execute("ROLLBACK")
    conn.close()
    until(lambda: state(instance.pid) == "T")
    sandbox.end(sandbox.start(script, "go on"))
    assert state(instance.pid) == "T"
    assert count_evals(sandbox.db)["pending"] == 0
    instance.send_signal(signal.SIGCONT)
    sandbox.end(instance)
    assert sandbox.column("status") == ["completed"] * 5
    assert sorted(sandbox.calls()) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_the_first_process_of_a_container_ends_by_a_signal_as_others_do(
    sandbox: Sandbox, signum: signal.Signals
) -> None:
    """The kernel ends it by no signal whose default stands: it has to end itself, with what a shell says."""
    container = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    _skip_unless_it_works([*container, "true"])
    become_first = f"""
if os.getpid() != 1:
    container = {container}
    os.execvp(container[0], [*container, sys.executable, *sys.argv])
"""
    instance = sandbox.start(become_first + WAITS, measured=False)
    sandbox.touch("go 0")
    until(lambda: sandbox.calls() == ["0", "1"])
    with open(f"/proc/{instance.pid}/task/{instance.pid}/children") as children:
        (inner,) = map(int, children.read().split())
    os.kill(inner, signum)
    assert "Traceback" not in sandbox.end(instance, 128 + signum)
    assert sandbox.column("status") == ["completed", "pending"]
    assert sandbox.column("losses") == [0, 0]


def _skip_unless_it_works(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"it takes root, and unshare: {exc}")
