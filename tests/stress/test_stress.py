"""Kill, stop and interrupt workers at random until a sweep is done; then every result has to be there.

The short form runs with the suite. `SPEVAL_STRESS=100 pytest tests/stress` is a hundred times as long.
"""

import collections
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

from conftest import Sandbox, until

from speval import count_evals, load_evals

LENGTH = int(os.environ.get("SPEVAL_STRESS", "1"))
SPACE = 300 * LENGTH

SCRIPT = f"""
import random

def func(x):
    note(x, os.getpid())
    time.sleep(random.expovariate(1 / 0.01))
    return x * x

speval(func, range({SPACE}), "evals.db", timeout=2, max_attempts=1000)
"""


def integrity(db: str) -> str:
    conn = sqlite3.connect(db)
    ((verdict,),) = conn.execute("PRAGMA integrity_check").fetchall()
    conn.close()
    return str(verdict)


def test_every_result_is_there_whatever_happens_to_the_workers(sandbox: Sandbox) -> None:
    generator = random.Random(LENGTH)
    seed = f"this run's seed: {LENGTH}"
    ends: collections.Counter[str] = collections.Counter()
    running = [sandbox.start(SCRIPT, measured=False) for _ in range(8)]
    until(sandbox.calls)
    deadline = time.monotonic() + 120 * LENGTH
    while len({line.split()[0] for line in sandbox.calls()}) < SPACE and time.monotonic() < deadline:
        victim = generator.choice(running)
        how = generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP])
        victim.send_signal(how)
        ends[how.name] += 1
        if how == signal.SIGSTOP:
            time.sleep(generator.random() * 0.02)
            victim.send_signal(signal.SIGCONT)
        elif victim.poll() is None or victim.returncode != 0:
            victim.communicate(timeout=60)
            running.remove(victim)
            running.append(sandbox.start(SCRIPT, measured=False))
        time.sleep(generator.random() * 0.05)
    for instance in running:
        sandbox.end(instance)
    assert count_evals(sandbox.db) == {"pending": 0, "in_progress": 0, "completed": SPACE, "failed": 0}, seed
    assert sandbox.column("result") == [x * x for x in range(SPACE)]
    assert integrity(sandbox.db) == "ok"
    calls = collections.Counter(int(line.split()[0]) for line in sandbox.calls())
    assert set(calls) == set(range(SPACE))
    again = sum(calls.values()) - SPACE
    batch = 50  # evaluations: 0.2 s of them, and some more, because their length is random
    assert again <= sum(ends.values()) + batch * ends["SIGKILL"], ends
    for row in load_evals(sandbox.db):
        assert calls[int(row["name"])] <= row["attempt"]


def _stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] in "TZ"


def test_a_copy_of_database_and_journal_at_any_moment_goes_on(sandbox: Sandbox) -> None:
    """What a power cut would leave, but for what the disk itself had not written."""
    instances = [sandbox.start(SCRIPT, measured=False) for _ in range(4)]
    for number in range(5 * LENGTH):
        until(lambda number=number: len(sandbox.calls()) > 20 * (number + 1))  # type: ignore[misc]
        stored = {row["name"]: row["result"] for row in load_evals(sandbox.db, "completed")}
        for instance in instances:
            os.kill(instance.pid, signal.SIGSTOP)
        until(lambda: all(_stopped(instance.pid) for instance in instances))
        copy = sandbox.path / f"copy {number}"
        copy.mkdir()
        for name in ("evals.db", "evals.db-journal"):
            shutil.copy(sandbox.path / name, copy / name)
        for instance in instances:
            os.kill(instance.pid, signal.SIGCONT)
        rows = {row["name"]: row["result"] for row in load_evals(copy / "evals.db", "completed")}
        assert stored.items() <= rows.items()
        assert integrity(str(copy / "evals.db")) == "ok"
    for instance in instances:
        sandbox.end(instance)
    script = [sys.executable, sandbox.path / "script_0.py"]
    subprocess.run(script, cwd=copy, check=True, timeout=120)
    assert [row["result"] for row in load_evals(copy / "evals.db")] == [x * x for x in range(SPACE)]
