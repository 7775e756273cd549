"""Worker processes of one instance: started, replaced, ended in time, and never left behind."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import pty
import re
import select
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import pytest
from conftest import LIMIT, PRELUDE, PYTHON, SAYS, Sandbox, fill, state, until
from nursery import is_of_coverage

from speval import SpevalError, count_evals, load_evals, reset_evals
from speval import speval as run
from speval.process import machine, output, threads


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it has ended before it was opened, or read
        return False


def is_full(pipe: str) -> bool:
    """Tell whether who writes to the pipe waits for who reads it."""
    fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [fd], [], 0)[1]
    finally:
        os.close(fd)


def live(sandbox: Sandbox) -> list[object]:
    """Return when each worker that has joined has ended."""
    with contextlib.closing(sqlite3.connect(f"file:{sandbox.db}?mode=ro", uri=True)) as conn:
        return [ended for (ended,) in conn.execute("SELECT ended FROM workers")]


def pids(sandbox: Sandbox, number: int) -> list[int]:
    """Wait until so many calls are noted; return the last word of each, a process."""
    until(lambda: len(sandbox.calls()) >= number)
    return [int(call.split()[-1]) for call in sandbox.calls()]


class TestProcesses:
    def test_lambdas_and_closures_are_evaluated_in_processes_of_their_own(self, sandbox: Sandbox) -> None:
        factor = 3
        counts = run(lambda x: [x * factor, os.getpid()], range(50), sandbox.db, n_jobs=4)
        assert counts == {"pending": 0, "in_progress": 0, "completed": 50, "failed": 0}
        results = sandbox.column("result")
        assert [x for x, _ in results] == [3 * x for x in range(50)]
        assert os.getpid() not in {pid for _, pid in results}
        assert multiprocessing.active_children() == []

    def test_as_many_work_at_a_time_as_were_asked_for(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x, os.getpid())
    wait_for("go")

speval(func, range(5), "evals.db", n_jobs=3)
"""
        instance = sandbox.start(script)
        assert len(set(pids(sandbox, 3))) == 3
        assert count_evals(sandbox.db)["in_progress"] == 3
        sandbox.touch("go")
        sandbox.end(instance)
        assert len(sandbox.calls()) == 5

    def test_instances_with_processes_share_one_database(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x)
    time.sleep(0.001)

print(speval(func, range(300), "evals.db", n_jobs=2))
"""
        instances = [sandbox.start(script) for _ in range(3)]
        for instance in instances:
            assert "'completed': 300" in sandbox.end(instance)
        assert Counter(sandbox.calls()) == {str(x): 1 for x in range(300)}

    def test_func_may_have_processes_of_its_own(self, sandbox: Sandbox) -> None:
        script = """
import multiprocessing

def func(x):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [x, -x])

speval(func, [1, 2], "evals.db", n_jobs=2)
print(load_evals("evals.db")[1]["result"])
"""
        # Not measured: the processes of the pool are, and say so on stderr if they did nothing.
        assert sandbox.end(sandbox.start(script, measured=False)) == "[2, 2]\n"

    def test_numpy_draws_other_numbers_in_each(self, sandbox: Sandbox) -> None:
        script = """
import numpy

def func(x):
    note(x)
    while sum(os.path.exists(f"at {other}") for other in range(2)) < 2:
        open(f"at {x}", "w").close()
        time.sleep(0.01)
    return numpy.random.rand()

numpy.random.seed(0)
speval(func, range(2), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        assert len(set(sandbox.column("result"))) == 2

    def test_python_draws_other_numbers_in_each(self, sandbox: Sandbox) -> None:
        script = """
import random

def func(x):
    note(x)
    while sum(os.path.exists(f"at {other}") for other in range(2)) < 2:
        open(f"at {x}", "w").close()
        time.sleep(0.01)
    return random.random()

random.seed(0)
speval(func, range(2), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        assert len(set(sandbox.column("result"))) == 2

    def test_a_child_that_func_forks_is_no_worker_however_it_ends(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x, os.getpid())
    child = os.fork()
    if child == 0:
        if x == 0:
            raise ValueError("of a child")
        sys.exit(0)
    os.waitpid(child, 0)
    if x == 1:
        time.sleep(1000)
    return x

speval(func, range(4), "evals.db", n_jobs=2, timeout=1, max_attempts=1)
print(sum(count_evals("evals.db").values()))
"""
        assert sandbox.run(script).splitlines()[-1] == "4"
        assert sandbox.column("result") == [0, None, 2, 3]
        hung = [int(call.split()[1]) for call in sandbox.calls() if call.startswith("1 ")]
        assert not any(map(is_alive, hung))

    def test_a_func_that_closes_all_descriptors_costs_no_hang(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    os.closerange(3, 400)
    return x

speval(func, range(20), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        assert sandbox.column("result") == list(range(20))

    def test_nor_is_anything_written_to_what_it_opens_instead(self, sandbox: Sandbox) -> None:
        script = """
kept = []

def func(x):
    os.closerange(3, 400)
    kept.extend(open(f"{os.getpid()} {x} {n}", "wb") for n in range(20))
    return x

speval(func, range(4), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        written = [path.stat().st_size for path in sandbox.path.glob("* * *")]
        assert len(written) >= 40
        assert not any(written)

    @pytest.mark.parametrize(
        "outlives",
        [
            "threading.Thread(target=time.sleep, args=(1000,)).start()",
            "multiprocessing.get_context('fork').Process(target=time.sleep, args=(1000,)).start()",
        ],
    )
    def test_what_outlives_func_does_not_keep_speval_from_returning(
        self, sandbox: Sandbox, outlives: str
    ) -> None:
        script = f"""
import multiprocessing

def func(x):
    note(x, os.getpid())
    {outlives}
    return x

print(speval(func, range(2), "evals.db", n_jobs=2)["completed"])
"""
        assert sandbox.end(sandbox.start(script, measured=False)) == "2\n"
        assert not any(map(is_alive, pids(sandbox, 2)))

    def test_a_python_without_an_atomic_duplicate_of_descriptors_has_one_of_two_steps(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script = """
import fcntl
del fcntl.F_DUPFD_CLOEXEC
speval(abs, range(20), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        assert sandbox.column("result") == list(range(20))
        monkeypatch.delattr(fcntl, "F_DUPFD_CLOEXEC")
        fd = machine.duplicate_high(0)
        assert fd >= machine.HIGH
        assert not os.get_inheritable(fd)
        os.close(fd)

    def test_ignored_ends_of_children_are_noticed(self, sandbox: Sandbox) -> None:
        script = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
speval(abs, range(20), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        assert sandbox.column("result") == list(range(20))

    def test_a_daemonic_process_is_told_that_it_may_have_none(self, sandbox: Sandbox) -> None:
        script = """
import multiprocessing

def start():
    speval(abs, [1], "evals.db", n_jobs=2)

process = multiprocessing.get_context("fork").Process(target=start, daemon=True)
process.start()
process.join()
"""
        assert "SpevalError: a daemonic process may not start others" in sandbox.run(script)


class TestArguments:
    @pytest.mark.parametrize("n_jobs", [0, -2])
    def test_a_number_that_makes_no_sense_is_refused(self, sandbox: Sandbox, n_jobs: int) -> None:
        with pytest.raises(ValueError, match="n_jobs has to be at least 1, or -1 for one per CPU"):
            run(abs, [1], sandbox.db, n_jobs=n_jobs)
        assert not os.path.exists(sandbox.db)

    @pytest.mark.parametrize("n_jobs", [None, 2.0, True, "2"])
    def test_what_is_no_number_is_refused(self, sandbox: Sandbox, n_jobs: int) -> None:
        with pytest.raises(TypeError, match="n_jobs has to be an int"):
            run(abs, [1], sandbox.db, n_jobs=n_jobs)

    def test_minus_one_is_one_for_each_cpu_of_the_affinity(self, sandbox: Sandbox) -> None:
        script = """
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
print(speval(lambda x: os.getpid(), range(20), "evals.db", n_jobs=-1)["completed"])
"""
        assert sandbox.run(script) == "20\n"
        assert len(set(sandbox.column("result"))) == 1

    @pytest.mark.parametrize(
        ("table", "files", "quotas"),
        [
            ("0::/\n", {"cpu.max": "150000 100000"}, [2]),
            ("0::/\n", {"cpu.max": "max 100000"}, []),
            ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "300000 100000"}, [3, 1]),
            ("0::/gone/on/the/host\n", {"cpu.max": "400000 100000"}, [4]),
            (
                "3:memory:/x\n2:cpu,cpuacct:/x\n",
                {"cpu/x/cpu.cfs_quota_us": "250000", "cpu/x/cpu.cfs_period_us": "100000"},
                [3],
            ),
            ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, []),
        ],
    )
    def test_the_quota_of_a_cgroup_counts(
        self, tmp_path: pathlib.Path, table: str, files: dict[str, str], quotas: list[int]
    ) -> None:
        for name, text in files.items():
            (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mount" / name).write_text(text + "\n")
        (tmp_path / "table").write_text(table)
        assert list(machine.quotas(str(tmp_path / "table"), str(tmp_path / "mount"))) == quotas


class TestDeath:
    @pytest.mark.parametrize(
        ("death", "how"),
        [
            ("os._exit(0)", "ended with exit code 0"),
            ("os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL"),
            ("import ctypes; ctypes.string_at(0)", "died of SIGSEGV"),
        ],
    )
    def test_what_kills_its_process_fails_and_all_else_is_done(
        self, sandbox: Sandbox, death: str, how: str
    ) -> None:
        script = f"""
def func(x):
    note(x)
    if x == 3:
        {death}
    return x

speval(func, range(50), "evals.db", n_jobs=2)
"""
        assert len(re.findall(rf"worker process \d+ {how}", sandbox.run(script))) == 3
        assert count_evals(sandbox.db)["completed"] == 49
        (failed,) = load_evals(sandbox.db, "failed")
        assert (failed["name"], failed["losses"]) == ("3", 3)
        assert len(re.findall(rf"^\d.* process \d+ on .* {how}$", failed["error"], re.MULTILINE)) == 3
        line = script[: script.index(death)].count("\n") + PRELUDE.count("\n") + 1
        assert (f'script_0.py", line {line} in func' in failed["error"]) == ("SIGSEGV" in how)
        assert sandbox.calls().count("3") == 3

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_its_last_words_are_passed_on_and_kept(self, sandbox: Sandbox, method: str) -> None:
        script = f"""
import multiprocessing

def func(x):
    if x == 3:
        os.write(2, b"a long story, " * 1000 + b"and then\\nout of luck\\n")
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    speval(func, range(5), "evals.db", n_jobs=2, max_attempts=1)
"""
        assert "a long story, " * 1000 + "and then\nout of luck\n" in sandbox.run(script)
        (failed,) = load_evals(sandbox.db, "failed")
        assert re.search(r"died of SIGKILL\n.*and then\nout of luck\nlost 1 times", failed["error"])
        assert len(failed["error"]) < 2200

    def test_a_fault_deep_in_func_says_where(self, sandbox: Sandbox) -> None:
        script = """
import ctypes

def dive(depth):
    return dive(depth - 1) if depth else ctypes.string_at(0)

speval(lambda x: dive(90), range(1), "evals.db", n_jobs=2, max_attempts=1)
"""
        sandbox.run(script)
        (failed,) = load_evals(sandbox.db, "failed")
        assert "died of SIGSEGV\nFatal Python error: Segmentation fault\n" in failed["error"]
        assert "in string_at" in failed["error"]
        assert len(failed["error"]) < 2200

    @pytest.mark.parametrize("blocking", [True, False])
    def test_all_that_it_writes_to_stderr_is_passed_on_in_order(
        self, sandbox: Sandbox, blocking: bool
    ) -> None:
        script = f"""
def func(x):
    for n in range(x, x + 10_000):
        os.write(2, b"%09d\\n" % n)

os.set_blocking(2, {blocking})
speval(func, [0, 100_000], "evals.db", n_jobs=2)
"""
        said = [int(line) for line in sandbox.run(script).splitlines()]
        for first in 0, 100_000:
            assert [n for n in said if first <= n < first + 10_000] == list(range(first, first + 10_000))
        assert len(said) == 20_000

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_they_end_by_an_interrupt_though_nobody_reads_what_they_write(
        self, sandbox: Sandbox, signum: signal.Signals
    ) -> None:
        script = """
def func(x):
    note(os.getpid())
    n = 0
    while True:
        os.write(2, b"%d %09d\\n" % (os.getpid(), n))
        n += 1

speval(func, range(2), "evals.db", n_jobs=2)
"""
        instance = sandbox.start(script)
        workers = pids(sandbox, 2)
        until(lambda: is_full(f"/proc/{instance.pid}/fd/2"))
        instance.send_signal(signum)
        until(lambda: not any(map(is_alive, workers)))
        if signum == signal.SIGTERM:  # of the other, Python itself writes a traceback
            assert instance.wait() == -signum
        assert [(e["status"], e["losses"]) for e in load_evals(sandbox.db)] == [("pending", 0)] * 2
        said = [line.partition(" ") for line in sandbox.end(instance, -signum).splitlines()]
        for worker in workers:
            numbers = [int(number) for pid, _, number in said if pid == str(worker)]
            assert numbers == list(range(len(numbers)))

    def test_a_file_that_has_the_number_of_a_closed_stderr_stays_the_users(self, sandbox: Sandbox) -> None:
        (sandbox.path / "script.py").write_text("""
import os
from speval import speval

def func(x):
    return os.pread(file.fileno(), 10, 0).decode()

file = open(__file__, "rb")
assert file.fileno() == 2
speval(func, range(9), "evals.db", n_jobs=2)
""")
        line = f"{shlex.join(PYTHON)} script.py 2>&-"
        subprocess.run(["bash", "-c", line], cwd=sandbox.path, timeout=LIMIT, check=True)
        assert sandbox.column("result") == ["\nimport os"] * 9

    def test_what_they_write_goes_nowhere_if_stderr_was_closed(self, sandbox: Sandbox) -> None:
        script = """
os.close(2)
print(speval(lambda x: os.write(2, b"x" * x), [1, 100_000, 2], "evals.db", n_jobs=2)["completed"])
"""
        assert sandbox.end(sandbox.start(script, measured=False)) == "3\n"

    def test_a_fault_goes_to_stderr_though_func_has_its_number_for_a_file(self, sandbox: Sandbox) -> None:
        script = """
import ctypes

def func(x):
    os.close(2)
    file = open("precious", "wb", 0)
    assert file.fileno() == 2
    ctypes.string_at(0)

speval(func, [0], "evals.db", n_jobs=2, max_attempts=1)
"""
        sandbox.run(script)
        assert (sandbox.path / "precious").read_bytes() == b""
        assert " in func\n" in load_evals(sandbox.db, "failed")[0]["error"]

    def test_twenty_need_less_than_a_hundred_descriptors(self, sandbox: Sandbox) -> None:
        script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
print(speval(abs, range(50), "evals.db", n_jobs=20)["completed"])
"""
        assert sandbox.end(sandbox.start(script, measured=False)) == "50\n"

    def test_a_fault_that_a_program_had_before_is_not_what_a_process_died_of(self) -> None:
        said = b"Fatal Python error: Aborted\n" + b"something else\n" * 500 + b"out of memory\n"
        assert output.fate("died of SIGKILL", said).endswith("\nsomething else\nout of memory")

    def test_a_process_that_somebody_terminates_is_replaced_without_a_loss(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x, os.getpid())
    wait_for("go")

speval(func, [0], "evals.db", n_jobs=1 + 1)
"""
        instance = sandbox.start(script)
        os.kill(pids(sandbox, 1)[0], signal.SIGTERM)
        pids(sandbox, 2)
        sandbox.touch("go")
        assert "died of SIGTERM" in sandbox.end(instance)
        assert sandbox.column("losses") == [0]

    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_what_they_held_who_were_killed_with_their_supervisor_is_reclaimed(
        self, sandbox: Sandbox, n_jobs: int
    ) -> None:
        script = """
def func(x):
    note(x, os.getpid())
    wait_for("go")
    return x

speval(func, [0, 1], "evals.db", n_jobs=int(sys.argv[1]))
"""
        instance = sandbox.start(script, "2")
        pids(sandbox, 2)
        other = sandbox.start(script, str(n_jobs))  # waits, since nothing is pending
        until(lambda: len([1 for worker in live(sandbox) if worker is None]) == 2 + n_jobs)
        sandbox.end_by(instance, signal.SIGKILL)
        sandbox.touch("go")
        sandbox.end(other)
        assert (sandbox.column("result"), sandbox.column("losses")) == ([0, 1], [1, 1])

    def test_processes_that_die_at_once_are_not_started_for_ever(self, sandbox: Sandbox) -> None:
        script = """
import speval.process.jobs
speval.process.jobs._main = lambda *args: os._exit(7)
try:
    speval.speval(abs, [1], "evals.db", n_jobs=2)
except speval.SpevalError as exc:
    print("SpevalError:", exc)
"""
        assert "SpevalError: worker processes end before they begin" in sandbox.run(
            "import speval\n" + script
        )
        assert sandbox.column("status") == ["pending"]


class TestTimeout:
    def test_a_program_that_hangs_is_ended_with_the_evaluation(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    os.system("echo $$ > new; mv new program; exec sleep 1000")

speval(func, [0], "evals.db", timeout=0.5, n_jobs=2, max_attempts=1)
"""
        sandbox.run(script)
        until(lambda: not is_alive(int((sandbox.path / "program").read_text())))
        assert sandbox.column("status") == ["failed"]

    @pytest.mark.parametrize(
        "hang",
        [
            "time.sleep(1000)",
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
            "import ctypes; ctypes.PyDLL(None).sleep(1000)",  # holds the GIL
        ],
    )
    def test_an_evaluation_past_it_is_ended_and_costs_that_one(self, sandbox: Sandbox, hang: str) -> None:
        script = f"""
def func(x):
    note(x, os.getpid())
    if x == 1:
        {hang}
    return x

speval(func, range(4), "evals.db", timeout=0.5, n_jobs=2, max_attempts=2)
"""
        assert sandbox.run(script).count("has run past 0.5 s") == 2
        assert sandbox.column("status") == ["completed", "failed", "completed", "completed"]
        assert sandbox.column("losses") == [0, 2, 0, 0]
        hung = [int(call.split()[1]) for call in sandbox.calls() if call.startswith("1 ")]
        assert len(hung) == 2
        assert not any(map(is_alive, hung))

    def test_what_tidies_up_after_a_killed_process_is_left_to_do_so(self, sandbox: Sandbox) -> None:
        script = """
from multiprocessing.shared_memory import SharedMemory

def func(x):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shared = SharedMemory(create=True, size=10)
    note(shared.name)
    time.sleep(1000)

speval(func, [0], "evals.db", timeout=0.5, n_jobs=2, max_attempts=1)
"""
        sandbox.run(script)
        (name,) = sandbox.calls()
        until(lambda: not os.path.exists(f"/dev/shm/{name}"))

    def test_many_evaluations_shorter_than_it_are_no_long_one(self, sandbox: Sandbox) -> None:
        run(lambda x: time.sleep(0.004), range(2000), sandbox.db, timeout=3, n_jobs=2)  # 4 s at least
        assert sum(sandbox.column("losses")) == 0

    def test_a_hung_process_is_killed_also_if_another_instance_reclaimed_first(
        self, sandbox: Sandbox
    ) -> None:
        script = """
def func(x):
    note(os.getpid())
    if sys.argv[1] == "hang":
        time.sleep(1000)
    return sys.argv[1]

speval(func, [0], "evals.db", timeout=float(sys.argv[2]), n_jobs=2)
"""
        hung = sandbox.start(script, "hang", "12")
        (pid,) = pids(sandbox, 1)
        quick = sandbox.start(script, "quick", "0.1")
        sandbox.end(quick)
        assert sandbox.column("result") == ["quick"]
        assert is_alive(pid)
        assert "has run past 12 s" in sandbox.end(hung)
        assert not is_alive(pid)
        assert (sandbox.column("result"), sandbox.column("losses")) == (["quick"], [1])


class TestEnd:
    SLEEPS = """
def func(x):
    note(x, os.getpid())
    time.sleep(1000)

speval(func, range(4), "evals.db", n_jobs=2)
"""

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_an_interrupt_releases_all_without_a_loss(self, sandbox: Sandbox, signum: signal.Signals) -> None:
        instance = sandbox.start(self.SLEEPS)
        workers = pids(sandbox, 2)
        output = sandbox.end_by(instance, signum)
        assert not any(map(is_alive, workers))
        assert output.count("Traceback") == (signum == signal.SIGINT)
        assert [(e["status"], e["losses"]) for e in load_evals(sandbox.db)] == [("pending", 0)] * 4, output

    def test_a_second_interrupt_does_not_wait_for_a_process_that_ignores_the_first(
        self, sandbox: Sandbox
    ) -> None:
        script = """
def func(x):
    signal.signal(signal.SIGTERM, lambda *args: note("told", os.getpid()))
    note(x, os.getpid())
    while True:
        time.sleep(1000)

speval(func, [0, 1], "evals.db", n_jobs=2)
"""
        instance = sandbox.start(script)
        workers = pids(sandbox, 2)
        instance.send_signal(signal.SIGINT)
        pids(sandbox, 4)
        instance.send_signal(signal.SIGINT)
        sandbox.end(instance, -signal.SIGINT)
        assert not any(map(is_alive, workers))

    @pytest.mark.parametrize("tie", ["", "speval.process.jobs.die_with_parent = lambda signum: False"])
    def test_no_process_outlives_its_killed_parent(self, sandbox: Sandbox, tie: str) -> None:
        instance = sandbox.start(
            f"import speval.process.jobs\n{tie}\nfrom speval import speval\n{self.SLEEPS}"
        )
        workers = pids(sandbox, 2)
        sandbox.end_by(instance, signal.SIGKILL)
        until(lambda: not any(map(is_alive, workers)))

    @pytest.mark.parametrize("n_jobs", [1, 8])
    def test_a_signal_to_the_whole_group_releases_all_without_a_loss(
        self, sandbox: Sandbox, n_jobs: int
    ) -> None:
        script = f"""
os.setsid()

def func(x):
    note(x, os.getpid())
    time.sleep(1000)

speval(func, range(9), "evals.db", n_jobs={n_jobs})
"""
        instance = sandbox.start(script)
        pids(sandbox, n_jobs)
        os.killpg(instance.pid, signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            os.kill(instance.pid, signal.SIGTERM)  # as a supervisor of it may do besides
        sandbox.end(instance, -signal.SIGTERM)
        assert [(e["status"], e["losses"]) for e in load_evals(sandbox.db)] == [("pending", 0)] * 9

    def test_exit_in_a_signal_handler_of_func_ends_the_instance(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(5))
    note(x, os.getpid())
    time.sleep(1000)

speval(func, range(2), "evals.db", n_jobs=2)
"""
        instance = sandbox.start(script)
        workers = pids(sandbox, 2)
        os.kill(workers[0], signal.SIGTERM)
        assert sandbox.end(instance, 5) == ""
        assert not any(map(is_alive, workers))
        assert sandbox.column("status") == ["pending", "pending"]

    def test_a_process_whose_first_evaluations_all_fail_stops_all(self, sandbox: Sandbox) -> None:
        with pytest.raises(SpevalError, match="first 3 evaluations of this instance all failed"):
            run(lambda x: 1 / 0, range(100), sandbox.db, n_jobs=2, max_failures=3)
        counts = count_evals(sandbox.db)
        assert counts["failed"] <= 6
        assert counts["in_progress"] == 0

    def test_what_cannot_be_pickled_is_raised_as_its_traceback(self, sandbox: Sandbox) -> None:
        script = """
class Odd(KeyboardInterrupt):
    def __init__(self, a, b):
        super().__init__("an odd end")

def func(x):
    raise Odd(1, 2)

try:
    speval(func, [1], "evals.db", n_jobs=2)
except KeyboardInterrupt as exc:
    print(str(exc).splitlines()[-1].rpartition(".")[2])
"""
        assert sandbox.run(script).splitlines()[-1] == "Odd: an odd end"


class TestTwoLevels:
    SCRIPT = """
def inner(x):
    note("inner", x, os.getpid())
    time.sleep(1000 if sys.argv[1] == "sleep" else 0.01)
    return x

def outer(x):
    note("outer", x, os.getpid())
    return speval(inner, range(6), f"inner_{x}.db", n_jobs=2)["completed"]

speval(outer, range(2), "evals.db", n_jobs=2)
"""

    def test_func_may_call_speval_with_processes_on_another_database(self, sandbox: Sandbox) -> None:
        sandbox.run(self.SCRIPT, "go on")
        assert sandbox.column("result") == [6, 6]

    @pytest.mark.parametrize("level", ["top", "middle"])
    def test_no_process_of_any_level_outlives_a_killed_one_above(self, sandbox: Sandbox, level: str) -> None:
        instance = sandbox.start(self.SCRIPT, "sleep")
        until(lambda: sum("inner" in call for call in sandbox.calls()) >= 4)
        below = [int(call.split()[-1]) for call in sandbox.calls()]
        middle = next(int(call.split()[-1]) for call in sandbox.calls() if call.startswith("outer 0 "))
        if level == "top":
            sandbox.end_by(instance, signal.SIGKILL)
            until(lambda: not any(map(is_alive, below)))
        else:
            its_own = [pid for pid in below if _parent(pid) == middle]
            assert len(its_own) == 2
            os.kill(middle, signal.SIGKILL)
            until(lambda: not any(map(is_alive, its_own)))
            until(lambda: sum("outer 0" in call for call in sandbox.calls()) == 2)
            sandbox.end_by(instance, signal.SIGINT)

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("to_all", [False, True])
    def test_an_interrupt_ends_all_levels_and_releases_all(
        self, sandbox: Sandbox, signum: signal.Signals, to_all: bool
    ) -> None:
        instance = sandbox.start(f"os.setsid()\n{self.SCRIPT}", "sleep")
        until(lambda: sum("inner" in call for call in sandbox.calls()) >= 4)
        (os.killpg if to_all else os.kill)(instance.pid, signum)
        output = sandbox.end(instance, -signum)
        assert output.count("Traceback") <= 1
        assert not any(is_alive(int(call.split()[-1])) for call in sandbox.calls())
        for name in "evals.db", "inner_0.db", "inner_1.db":
            rows = load_evals(sandbox.path / name)
            assert {(row["status"], row["losses"]) for row in rows} == {("pending", 0)}


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[1])


class TestOtherThreads:
    """Of the process that starts the others, which are forked beside them."""

    @pytest.mark.parametrize(
        "call",
        [
            "over = threading.Event(); threading.Thread(target=over.wait).start(); sweep(); over.set()",
            "timer = threading.Timer(1000, print); timer.start(); sweep(); timer.cancel()",
            "thread = threading.Thread(target=sweep); thread.start(); thread.join()",
            "import asyncio; asyncio.run(asyncio.to_thread(sweep))",
            "import concurrent.futures as f; pool = f.ThreadPoolExecutor(4); pool.submit(sweep).result()",
        ],
        ids=["one that waits", "a timer", "the one that calls", "asyncio", "a pool"],
    )
    def test_a_fork_beside_them_is_done(self, sandbox: Sandbox, call: str) -> None:
        script = """
def sweep():
    speval(lambda x: note(x), range(20), "evals.db", n_jobs=2)

"""
        assert sandbox.run(script + call) == ""
        assert sorted(sandbox.calls(), key=int) == [str(x) for x in range(20)]

    def test_one_that_hangs_by_what_they_held_is_replaced_before_its_first_evaluation(
        self, sandbox: Sandbox
    ) -> None:
        script = """
import logging, sqlite3
from speval.process import jobs
jobs.HUNG, jobs.APART = 0.3, 1
hung = []
logging.getLogger().addHandler(logging.StreamHandler())
logging.getLogger("speval").addFilter(lambda record: hung.append("hangs" in record.getMessage()) or True)

def connect():  # takes the locks that SQLite has for all connections of a process, again and again
    while not over.is_set():
        sqlite3.connect("other.db").execute("SELECT * FROM sqlite_master").connection.close()

over = threading.Event()
threads = [threading.Thread(target=connect, name="busy") for _ in range(3)]
for thread in threads:
    thread.start()
number = 0
while not any(hung) and number < 200:  # some one of ten hangs
    number += 1
    try:
        speval(note, [number], f"{number}.db", n_jobs=2)
    except SpevalError as exc:  # three in a row hung
        assert "hangs since it was forked beside other threads (busy" in str(exc), exc
        assert count_evals(f"{number}.db")["pending"] == 1
        note(number)
over.set()
"""
        output = sandbox.run(script)
        assert "hangs since it was forked beside other threads (busy, busy, busy); another one" in output
        calls = sandbox.calls()
        assert calls == [str(number) for number in range(1, len(calls) + 1)]

    def test_one_that_keeps_something_locked_for_good_is_named(self, sandbox: Sandbox) -> None:
        script = """
import logging
from speval.process import jobs
jobs.HUNG = 0.1
lock = threading.Lock()

class Stream:
    write = os.getpid

    def flush(self):
        with lock:
            pass

logging.getLogger().addHandler(logging.StreamHandler(Stream()))
logging.getLogger().handlers[0].emit = print
threading.Thread(target=lambda: lock.acquire() and time.sleep(1000), name="sleeper", daemon=True).start()
while not lock.locked():
    time.sleep(0.01)
try:
    speval(note, range(20), "evals.db", n_jobs=2)
except SpevalError as exc:
    os.write(2, str(exc).encode())
os._exit(0)
"""
        said = sandbox.run(script)
        assert re.search(
            r"hangs since it was forked beside other threads \(sleeper\).*Start that thread later", said
        )
        assert count_evals(sandbox.db)["pending"] == 20


class TestInheritedThreads:
    """Which a library counts on in a forked process, where they are not."""

    WAITS = """
from speval.process import jobs
jobs.STUCK, jobs.IDLE = 1.0, 0.01
library = threading.Lock()  # of whose threads the last unlocks it, were it there
library.acquire()
"""

    def test_a_process_that_waits_for_them_for_ever_is_warned_of_once(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x)
    library.acquire()

print(speval(func, range(2), "evals.db", timeout=4, n_jobs=2, max_attempts=1)["failed"])
"""
        assert sandbox.run(SAYS + self.WAITS + script).splitlines()[-1] == "2"
        assert len(re.findall(r"worker process \d+ has used no CPU for 1 s", sandbox.said())) == 1
        assert "`speval run` in place of n_jobs" in sandbox.said()
        assert "multiprocessing.set_start_method('spawn')" in sandbox.said()

    @pytest.mark.parametrize(
        "wait",
        [
            "time.sleep(3)",
            "subprocess.run(['sleep', '3'])",
            "select.select([socket.socket()], [], [], 3)",
            "list(iter(lambda end=time.monotonic() + 3: time.monotonic() < end, False))",
            "threading.Thread(target=busy, daemon=True).start() or library.acquire(timeout=3)",
        ],
        ids=["sleeps", "waits for a program", "waits for the network", "computes", "a thread computes"],
    )
    def test_one_that_is_at_work_or_waits_for_something_else_is_not(
        self, sandbox: Sandbox, wait: str
    ) -> None:
        script = f"""
import select, socket, subprocess

def busy():
    while True:
        pass

def func(x):
    {wait}

speval(func, range(2), "evals.db", n_jobs=2)
"""
        assert "it seems to hang" not in sandbox.run(self.WAITS + script)

    def test_a_model_of_scikit_learn_that_was_fitted_before_is_named_as_the_reason(
        self, sandbox: Sandbox
    ) -> None:
        pytest.importorskip("sklearn")
        script = """
import numpy
from sklearn.cluster import KMeans
os.environ["OMP_NUM_THREADS"] = "2"
points = numpy.random.default_rng(0).random((5000, 5))
KMeans(3, n_init=1).fit(points)

def func(x):
    note(x)
    KMeans(3, n_init=1).fit(points)

speval(func, range(2), "evals.db", n_jobs=2)
"""
        instance = sandbox.start(SAYS + self.WAITS + script, measured=False)
        until(lambda: "as scikit-learn does to fit a model" in sandbox.said() or instance.poll() is not None)
        if instance.poll() is None:  # else this OpenMP is one that survives a fork
            sandbox.end_by(instance, signal.SIGINT)


class TestUnusable:
    """The database cannot be used when a process takes the place of another."""

    SCRIPT = """
def func(x):
    note(x, os.getpid())
    wait_for("go")
    return x

speval(func, range(6), "disk/evals.db", n_jobs=3)
"""

    @pytest.mark.parametrize("killed", [1, 3])
    def test_it_waits_until_the_disk_has_room_and_the_others_go_on(
        self, sandbox: Sandbox, small_disk: pathlib.Path, killed: int
    ) -> None:
        instance = sandbox.start(SAYS + self.SCRIPT)
        workers = pids(sandbox, 3)
        ballast = fill(small_disk)
        for pid in workers[:killed]:
            os.kill(pid, signal.SIGKILL)
        until(lambda: sandbox.said().count("cannot begin: ") > killed)  # a second time, that is
        sandbox.touch("go")
        if killed == 1:
            until(lambda: "1 finished evaluations are kept in memory" in sandbox.said())
        assert instance.poll() is None
        ballast.unlink()
        sandbox.end(instance)
        rows = load_evals(small_disk / "evals.db")
        assert [row["result"] for row in rows] == list(range(6))
        assert sum(row["losses"] for row in rows) == killed
        assert re.search(
            r"worker process \d+ cannot begin: .*disk/evals.db.* \(next try in 2 s\)", sandbox.said()
        )

    def test_an_interrupt_ends_the_wait(self, sandbox: Sandbox, small_disk: pathlib.Path) -> None:
        instance = sandbox.start(SAYS + self.SCRIPT)
        workers = pids(sandbox, 3)
        ballast = fill(small_disk)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        until(lambda: sandbox.said().count("cannot begin: ") >= 3)
        sandbox.end_by(instance, signal.SIGINT)
        ballast.unlink()

    def test_an_instance_of_which_no_process_has_begun_raises(
        self, sandbox: Sandbox, small_disk: pathlib.Path
    ) -> None:
        fname = small_disk / "evals.db"
        run(abs, range(3), fname)
        reset_evals(fname, "completed")
        fill(small_disk)
        with pytest.raises(SpevalError, match="is the disk full, or a quota"):
            run(abs, range(3), fname, n_jobs=2)

    def test_a_database_that_was_deleted_meanwhile_is_not_waited_for(self, sandbox: Sandbox) -> None:
        script = self.SCRIPT.replace("disk/evals.db", "evals.db")
        instance = sandbox.start(script)
        workers = pids(sandbox, 3)
        os.unlink(sandbox.db)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        assert "evals.db was deleted while it was in use: start again" in sandbox.end(instance, 1)


class TestWatched:
    """Workers whose death somebody would tell, had he not died with them."""

    def test_what_they_held_is_evaluated_by_who_does_not_wait(self, sandbox: Sandbox) -> None:
        script = """
def func(x):
    note(x)
    wait_for("go")

speval(func, [0], "evals.db", n_jobs=2)
"""
        instance = sandbox.start(script)
        until(sandbox.calls)
        sandbox.end_by(instance, signal.SIGKILL)
        until(lambda: run(lambda x: x, [0], sandbox.db, wait=False)["completed"])

    def test_where_no_process_is_to_be_had_nothing_is_told_and_all_goes_on(self, sandbox: Sandbox) -> None:
        script = """
import resource
from speval.process.jobs import apart
if os.geteuid() == 0:
    os.setuid(65534)  # root has no limit
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
apart(note, "told")
print("goes on")
"""
        assert sandbox.end(sandbox.start(script, measured=False)) == "goes on\n"
        assert sandbox.calls() == []

    def test_a_signal_to_one_is_not_taken_for_one_to_the_event_loop_above_it(self, sandbox: Sandbox) -> None:
        script = """
import asyncio

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, note, "told")
    func = lambda x: time.sleep(1000 * x)
    print(await asyncio.to_thread(speval, func, [0, 1], "evals.db", 0.3, n_jobs=2, max_attempts=1))

asyncio.run(main())
"""
        assert "'failed': 1}" in sandbox.run(script)
        assert sandbox.calls() == []


class TestStartMethods:
    MODULE = "def double(x):\n    return 2 * x\n"

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_other_start_methods_work_for_what_can_be_imported(self, sandbox: Sandbox, method: str) -> None:
        script = f"""
import multiprocessing

def double(x):
    return 2 * x

if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    speval(double, range(20), "evals.db", n_jobs=2)
"""
        sandbox.run(script)
        assert sandbox.column("result") == [2 * x for x in range(20)]

    # As from Python 3.14 on.
    DEFAULT = """
import multiprocessing, multiprocessing.context as context

if sys.version_info < (3, 14):
    context._default_context._default_context = context._concrete_contexts["forkserver"]
    multiprocessing.get_all_start_methods = lambda: ["forkserver", "fork", "spawn"]
"""

    def test_a_default_that_something_else_has_used_is_no_choice(self, sandbox: Sandbox) -> None:
        script = """
multiprocessing.RLock()  # as a bar of tqdm does
assert multiprocessing.get_start_method(allow_none=True) == "forkserver"
speval(lambda x: 2 * x, range(3), "evals.db", n_jobs=2)
"""
        sandbox.run(self.DEFAULT + script)
        assert sandbox.column("result") == [0, 2, 4]

    @pytest.mark.parametrize("module", ["__main__", "helper"])
    def test_a_choice_that_is_the_default_is_one(self, sandbox: Sandbox, module: str) -> None:
        (sandbox.path / "helper.py").write_text(
            "import multiprocessing\nfrom speval import speval\n\ndef sweep(*args, **kwargs):\n"
            "    multiprocessing.set_start_method('forkserver')\n    speval(*args, **kwargs)\n"
        )
        begin = {
            "__main__": "def f(): multiprocessing.set_start_method('forkserver')\nf(); sweep = speval\n",
            "helper": "from helper import sweep\n",
        }
        script = """
try:
    sweep(lambda x: x, range(3), "evals.db", n_jobs=2)
except SpevalError as exc:
    print(exc)
"""
        printed = sandbox.run(self.DEFAULT + begin[module] + script)
        assert "define it with def, at the top of a script or module" in printed

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_no_file_in_dev_shm_is_needed(self, public: pathlib.Path, method: str) -> None:
        (public / "script.py").write_text(f"""
import multiprocessing
from speval import speval

if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    print(speval(abs, range(20), "evals.db", n_jobs=2))
""")
        mount = "mount -t tmpfs -o ro none /dev/shm"
        alone = ["unshare", "--mount", "sh", "-c"]
        if subprocess.run([*alone, mount], capture_output=True, check=False).returncode:
            pytest.skip("unshare, and a mount of one's own, are needed")
        done = subprocess.run(
            [*alone, f'{mount} && exec "$@"', "sh", *PYTHON, "script.py"],
            cwd=public,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert "'completed': 20" in done.stdout, done.stderr

    def test_a_lambda_for_spawn_is_refused_with_the_way_out(self, sandbox: Sandbox) -> None:
        script = """
import multiprocessing

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    try:
        speval(lambda x: x, [1], "evals.db", n_jobs=2)
    except SpevalError as exc:
        print(exc)
"""
        assert "define it with def, at the top of a script or module" in sandbox.run(script)

    def test_a_script_for_spawn_without_a_guard_is_told_so(self, sandbox: Sandbox) -> None:
        script = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)

def double(x):
    return 2 * x

speval(double, [1], "evals.db", n_jobs=2)
"""
        output = sandbox.end(sandbox.start(script), 1)
        assert "SpevalError: worker processes end before they begin" in output.splitlines()[-1]
        assert "__name__ == '__main__'" in output.splitlines()[-1]


TERMINAL = """
import fcntl, os, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, sys.argv[1]])
"""
SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
script = os.fork()
if script == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    os.execv(sys.executable, [sys.executable, sys.argv[1]])
sys.exit(os.WEXITSTATUS(os.waitpid(script, 0)[1]))
"""


class TestTerminal:
    def start(
        self, sandbox: Sandbox, code: str, shell: str = TERMINAL
    ) -> tuple[subprocess.Popen[bytes], int]:
        """Start a script in a terminal of its own; return it and the other end of the terminal."""
        script = sandbox.path / "terminal.py"
        script.write_text(PRELUDE + code)
        ours, theirs = pty.openpty()
        env = {k: v for k, v in os.environ.items() if not is_of_coverage(k)}
        with open(os.devnull, "wb") as null:
            instance = subprocess.Popen(
                [sys.executable, "-c", shell, str(script)],
                cwd=sandbox.path,
                env=env,
                stdin=theirs,
                stdout=null,
                stderr=theirs,
                start_new_session=True,
            )
        os.close(theirs)
        sandbox.instances.append(instance)  # type: ignore[arg-type]
        return instance, ours

    @staticmethod
    def read(terminal: int) -> str:
        """Return all that is written until the other side is closed."""
        text = b""
        while True:
            try:
                more = os.read(terminal, 10_000)
            except OSError:  # what Linux says at the end
                more = b""
            if not more:
                os.close(terminal)
                return text.decode()
            text += more

    @pytest.mark.parametrize("n_jobs", [1, 3])
    def test_progress_is_one_line_that_is_rewritten(self, sandbox: Sandbox, n_jobs: int) -> None:
        script = f"""
def func(x):
    if x == 7:
        raise ValueError("seven")
    if x == 19:
        wait_for("go")

speval(func, range(20), "evals.db", n_jobs={n_jobs}, progress=True)
"""
        instance, terminal = self.start(sandbox, script)
        shown = b""
        while b"19/20, 1 failed, " not in shown:
            shown += os.read(terminal, 10_000)
        sandbox.touch("go")
        shown += self.read(terminal).encode()
        assert instance.wait(LIMIT) == 0
        lines = [line for line in shown.decode().split("\r\n") if "/20" in line]
        last = lines[-1].split("\r")[-1]
        assert last.startswith("[####")
        assert "] 20/20, 1 failed, 0 workers" in last
        (told,) = (line for line in shown.decode().split("\r\n") if "evaluation 7 failed" in line)
        assert told.split("\r")[-1] == "evaluation 7 failed: ValueError: seven"

    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_ctrl_c_ends_all_with_one_traceback_and_releases(self, sandbox: Sandbox, n_jobs: int) -> None:
        script = f"""
def func(x):
    note(x, os.getpid())
    time.sleep(1000)

speval(func, range(4), "evals.db", n_jobs={n_jobs}, progress=True)
"""
        instance, terminal = self.start(sandbox, script)
        workers = pids(sandbox, n_jobs)
        os.write(terminal, b"\x03")
        shown = self.read(terminal)
        assert shown.count("Traceback") == 1
        again = "interrupted: nothing is lost, 0 of 4 are done; to go on: "
        assert shown.count(again) == (n_jobs > 1)
        assert n_jobs == 1 or re.search(again + r"\S*python\S* \S*terminal\.py\r", shown)
        assert instance.wait(LIMIT) == -signal.SIGINT
        assert not any(map(is_alive, workers))
        assert [(e["status"], e["losses"]) for e in load_evals(sandbox.db)] == [("pending", 0)] * 4

    @pytest.mark.parametrize(
        "start",
        [
            'speval(func, [0, 1], "evals.db", n_jobs=2)',
            'from speval.cli import main\nsys.exit(main(["run", "-n", "2", "script.py"]))',
        ],
        ids=["n_jobs", "speval run"],
    )
    def test_ctrl_z_stops_all_and_they_go_on_together(self, sandbox: Sandbox, start: str) -> None:
        func = """
def func(x):
    note(x, os.getpid())
    wait_for("go")
    return x

"""
        (sandbox.path / "script.py").write_text(PRELUDE + func + 'speval(func, [0, 1], "evals.db")\n')
        shell, terminal = self.start(sandbox, f'{func}note("parent", os.getpid())\n{start}\n', SHELL)
        everybody = pids(sandbox, 3)
        os.write(terminal, b"\x1a")
        until(lambda: all(state(pid) == "T" for pid in everybody))
        os.killpg(everybody[0], signal.SIGCONT)  # what `fg` does
        until(lambda: not any(state(pid) == "T" for pid in everybody))
        sandbox.touch("go")
        self.read(terminal)
        assert shell.wait(LIMIT) == 0
        assert sandbox.column("result") == [0, 1]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_progress_without_a_stderr_is_none(sandbox: Sandbox, n_jobs: int) -> None:
    script = f"""
sys.stderr = None
print(speval(abs, [-1], "evals.db", n_jobs={n_jobs}, progress=True)["completed"])
"""
    assert sandbox.run(script) == "1\n"


class TestThreads:
    """How many threads libraries may use in a worker process, on a machine with 8 CPUs."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "cpus", lambda: 8)
        for name in [*threads.VARIABLES, threads.SHARE]:
            monkeypatch.delenv(name, raising=False)

    @staticmethod
    def limits(x: object = None) -> list[str | None]:
        return [os.environ.get(name) for name in threads.VARIABLES]

    @pytest.mark.parametrize(("n_jobs", "share"), [(2, "4"), (3, "2"), (9, "1")])
    def test_each_worker_process_has_its_share(self, sandbox: Sandbox, n_jobs: int, share: str) -> None:
        run(self.limits, [0], sandbox.db, n_jobs=n_jobs)
        assert sandbox.column("result") == [[share] * len(threads.VARIABLES)]
        assert self.limits() == [None] * len(threads.VARIABLES)

    def test_what_the_user_has_set_stays(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MKL_NUM_THREADS", "3")
        run(self.limits, [0], sandbox.db, n_jobs=2)
        assert sandbox.column("result") == [["4", "4", "3", "4", "4", "4"]]

    def test_a_number_for_openmp_counts_for_all(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        run(self.limits, [0], sandbox.db, n_jobs=2)
        assert sandbox.column("result") == [["3", None, None, None, None, None]]

    def test_worker_processes_of_a_worker_process_divide_its_share(self, sandbox: Sandbox) -> None:
        def func(x: int) -> list[object]:
            inner = f"{sandbox.db}-{x}"
            run(self.limits, [0], inner, n_jobs=2)
            os.environ["MKL_NUM_THREADS"] = "3"  # now it is the user's
            run(self.limits, {"again": 0}, inner, n_jobs=4)
            return [evaluation["result"] for evaluation in load_evals(inner)]

        run(func, [0], sandbox.db, n_jobs=2)
        assert sandbox.column("result") == [[["2"] * 6, ["1", "1", "3", "1", "1", "1"]]]

    def test_those_of_an_instance_of_speval_run_divide_that_of_the_instance(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in threads.environment(2).items():
            monkeypatch.setenv(name, value)
        run(self.limits, [0], sandbox.db, n_jobs=2)
        for name, value in threads.environment(2, 6).items():  # which the user has said: --threads 6
            monkeypatch.setenv(name, value)
        run(self.limits, {"6": 0}, sandbox.db, n_jobs=2)
        assert sandbox.column("result") == [["2"] * 6, ["6"] * 6]

    @pytest.mark.parametrize(("variable", "limit"), [("", 2), ("OMP_NUM_THREADS", 5)])
    def test_libraries_that_are_loaded_already_are_limited_too(
        self, sandbox: Sandbox, variable: str, limit: int
    ) -> None:
        for module in "sklearn", "threadpoolctl":
            pytest.importorskip(module)
        script = f"""
from speval.process import threads

threads.cpus = lambda: 4
for name in threads.VARIABLES:
    os.environ.pop(name, None)
if {variable!r}:
    os.environ[{variable!r}] = "5"

import numpy
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_info, threadpool_limits

def fit(seed):
    rng = numpy.random.default_rng(seed)
    samples = rng.normal(size=(50, 2))
    HistGradientBoostingRegressor(max_iter=2).fit(samples, samples @ [1, 2])
    return sorted({{(lib["user_api"], lib["num_threads"]) for lib in threadpool_info()}})

threadpool_limits(5)  # this many on any machine
speval(fit, range(2), "evals.db", n_jobs=2)
assert {{lib["num_threads"] for lib in threadpool_info()}} == {{5}}
"""
        assert sandbox.run(script) == ""
        assert sandbox.column("result") == [[["blas", limit], ["openmp", limit]]] * 2
