"""Look at a sweep, over and over, while `func` opens and closes its database as a file.

That drops SQLite's own locks of the process, in whose watchdog a transaction may be under way. What keeps
the others out then is the queue alone: whoever looks without a place in it takes the journal for that of a
dead process and rolls it back. Rounds of 2 instances of 1,000 evaluations, in a directory of their own::

    python tests/stress/glance.py progress 10     each instance looks for its progress, each millisecond
    python tests/stress/glance.py select 10       another process reads, as any program opens a database
    python tests/stress/glance.py select-ro 10    the same with mode=ro
    python tests/stress/glance.py nobody 10       nobody looks

Prints a line for each round and what went wrong in all of them. Ends with 1 if anything did.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

SPACE = 1000
LIMIT = 60.0  # seconds for a round, which takes some 5: an instance that still runs then hangs

INSTANCE = f"""
import functools, importlib, os, sys, time
from speval import SpevalError, speval

progress = importlib.import_module("speval.view.progress")
progress.OFTEN, progress.COST = 0.001, 1000.0
looks = {{"good": 0, "failed": 0}}

class Progress(progress.Progress):
    def __init__(self, look, names):
        super().__init__(functools.partial(self._counted, look), names)

    def _counted(self, look, name):
        try:
            seen = look(name)
            looks["good"] += 1
            return seen
        except SpevalError:
            looks["failed"] += 1
            raise

progress.Progress = Progress
calls = open("calls", "ab", 0)

def func(x):
    calls.write(b"%d\\n" % x)
    if x % 40 == 0:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            for name in os.listdir("."):
                os.close(os.open(name, os.O_RDONLY))
    time.sleep(0.001)
    return "r" * 200

try:
    speval(func, range({SPACE}), "evals.db", progress=sys.argv[1] == "progress")
finally:
    print("looks:", looks["good"], looks["failed"])
"""

READER = """
import contextlib, sqlite3, sys, time

while True:
    try:
        with contextlib.closing(
            sqlite3.connect("file:evals.db?mode=" + sys.argv[1], uri=True, timeout=0)
        ) as conn:
            conn.execute("SELECT count(*) FROM evals").fetchall()
        print("good", flush=True)
    except sqlite3.Error as exc:
        print(exc, flush=True)
    time.sleep(0.001)
"""
MODES = {"select": "rw", "select-ro": "ro"}


def play(where: pathlib.Path, how: str) -> collections.Counter[str]:
    """Play one round in a directory; return what went wrong, how often."""
    bad: collections.Counter[str] = collections.Counter()
    instances = [start(where, f"instance {n}", INSTANCE, how) for n in range(2)]
    reader = start(where, "reader", READER, MODES[how]) if how in MODES else None
    end = time.monotonic() + LIMIT
    for instance in instances:
        try:
            instance.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            bad["hangs"] += 1
            instance.kill()
            instance.wait()
        else:
            if instance.returncode:
                bad["ends with an error"] += 1
    if reader:
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    said = "".join((where / f"instance {n}.log").read_text() for n in range(2))
    for words in ("malformed", "is not as speval made it", "cannot be written"):
        bad[f"says {words!r}"] += sum(words in line for line in said.splitlines())
    calls = collections.Counter((where / "calls").read_text().split())
    bad["evaluations called again"] += sum(calls.values()) - len(calls)
    bad["evaluations never called"] += SPACE - len(calls)
    check(where / "evals.db", bad)
    looks = re.findall(r"^looks: (\d+) (\d+)", said, re.MULTILINE)
    good, failed = (sum(int(pair[n]) for pair in looks) for n in range(2))
    print(f"looks of instances: {good} good, {failed} failed,", end=" ")
    if reader:
        errors = collections.Counter((where / "reader.log").read_text().splitlines())
        print(f"what the reader met: {dict(errors)},", end=" ")
    return +bad


def start(where: pathlib.Path, name: str, code: str, *args: str) -> subprocess.Popen[bytes]:
    with open(where / f"{name}.log", "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-c", code, *args], cwd=where, stdout=output, stderr=subprocess.STDOUT
        )


def check(db: pathlib.Path, bad: collections.Counter[str]) -> None:
    """Look whether the database is whole, and whether all is stored in it."""
    conn = sqlite3.connect(db, timeout=10)
    try:
        if conn.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            bad["integrity_check fails"] += 1
        ((stored,),) = conn.execute("SELECT count(*) FROM evals NOT INDEXED WHERE status = 'completed'")
        bad["evaluations not completed"] += SPACE - stored
    except sqlite3.Error as exc:
        bad[f"cannot be read: {exc}"] += 1
    finally:
        conn.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("how", choices=["progress", *MODES, "nobody"])
    parser.add_argument("rounds", type=int)
    args = parser.parse_args()
    rounds = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as directory:
            began = time.monotonic()
            bad = play(pathlib.Path(directory), args.how)
            rounds.append(bad)
            print(f"round {number}: {time.monotonic() - began:.1f} s, {dict(bad) or 'good'}", flush=True)
    print(f"\n{args.how}: {sum(map(bool, rounds))} of {len(rounds)} rounds were bad")
    for what in sorted(set().union(*rounds)):
        print(f"  {what}: {sum(bad[what] for bad in rounds)}, in {sum(what in bad for bad in rounds)} rounds")
    return int(any(rounds))


if __name__ == "__main__":
    sys.exit(main())
