"""Interrupts: what is finished is stored, what is not is released, and then they go their way."""

import signal
import sqlite3
import time

import pytest
from conftest import Sandbox, until

from speval import load_evals

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


def test_system_exit_in_func_releases_and_ends_the_instance(sandbox: Sandbox) -> None:
    sandbox.end(sandbox.start('speval(lambda x: sys.exit(3), [1], "evals.db")'), 3)
    assert [(row["status"], row["losses"]) for row in load_evals(sandbox.db)] == [("pending", 0)]


def test_a_result_is_stored_even_if_func_swallows_the_interrupt(sandbox: Sandbox) -> None:
    script = """
def func(x):
    try:
        note(x)
        wait_for("never")
    except BaseException:
        return "saved"

speval(func, [0, 1], "evals.db")
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    instance.terminate()
    sandbox.end(instance, -signal.SIGTERM)
    assert sandbox.column("result") == ["saved", None]
    assert sandbox.column("status") == ["completed", "pending"]


def test_a_second_interrupt_does_not_wait_for_a_locked_database(sandbox: Sandbox) -> None:
    instance = sandbox.start(WAITS)
    until(sandbox.calls)
    conn = sqlite3.connect(sandbox.db, isolation_level=None)
    conn.execute("BEGIN EXCLUSIVE")
    instance.send_signal(signal.SIGINT)
    # It is on its way out, waiting for the database, once the default action is back.
    until(lambda: not _catches(instance.pid, signal.SIGINT))
    instance.send_signal(signal.SIGINT)
    sandbox.end(instance, -signal.SIGINT)
    conn.execute("COMMIT")
    conn.close()
    assert sandbox.column("status") == ["in_progress", "pending"]


def _catches(pid: int, signum: int) -> bool:
    with open(f"/proc/{pid}/status") as lines:
        (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signum - 1) & 1)


def test_a_second_interrupt_gets_a_reader_out_of_waiting(sandbox: Sandbox) -> None:
    sandbox.run('speval(abs, [0], "evals.db")')
    conn = sqlite3.connect(sandbox.db, isolation_level=None)
    conn.execute("BEGIN EXCLUSIVE")
    script = """
try:
    note("start")
    load_evals("evals.db")
except KeyboardInterrupt:
    note("interrupted")
"""
    instance = sandbox.start(script)
    until(sandbox.calls)
    end = time.monotonic() + 60
    while "interrupted" not in sandbox.calls() and instance.poll() is None and time.monotonic() < end:
        instance.send_signal(signal.SIGINT)
        time.sleep(0.05)
    conn.execute("COMMIT")
    conn.close()
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


def test_handlers_are_put_back(sandbox: Sandbox) -> None:
    script = """
handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)]
speval(lambda x: x, [0, 1], "evals.db")
print(handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP)])
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
    while "end" not in (lines := sandbox.calls()):
        instance.send_signal(signal.SIGINT)
        until(lambda lines=lines: len(sandbox.calls()) > len(lines))  # type: ignore[misc]
    sandbox.touch("end")
    sandbox.end(instance)
    assert sandbox.column("result") == list(range(400))
    assert set(sandbox.column("losses")) == {0}
