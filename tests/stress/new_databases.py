"""Fork while another thread opens databases that are new to the process.

The hooks of a fork wait for the transactions on the databases that are known when they begin; one on a
database that comes a moment later is inherited half done, with the tables of SQLite in mid-change and
whatever lock it holds. One thread opens ever new databases; another forks children, each of which counts the
evaluations of a database that nobody else changes, which takes milliseconds::

    python tests/stress/new_databases.py count 1000     so many databases, made before: count_evals()
    python tests/stress/new_databases.py speval 1000    so many databases, made on the way: speval()

A child that still runs after 20 s hangs, so does the whole after 300 s. Prints how the children ended, and
where in the kernel those were that hung. Ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from speval import count_evals, speval

PATIENCE = 20.0  # seconds for a child
LIMIT = 300.0  # seconds for all


def count(n: int) -> None:
    count_evals(f"{n}.db")


def evaluate(n: int) -> None:
    speval(abs, [n], f"{n}.db")


class Forker(threading.Thread):
    """Forks one child after the other, until told to stop; keeps how they ended."""

    def __init__(self) -> None:
        super().__init__()
        self.over = False
        self.ends: collections.Counter[str] = collections.Counter()

    def run(self) -> None:
        children: dict[int, float] = {}
        while not self.over or children:
            if not self.over and len(children) < 8:
                child = os.fork()
                if child == 0:
                    be_child()
                children[child] = time.monotonic()
            for child, began in list(children.items()):
                end = self._end_of(child, began)
                if end:
                    del children[child]
                    self.ends[end] += 1
            time.sleep(0.0005)

    @staticmethod
    def _end_of(child: int, began: float) -> str:
        """Return how a child ended, nothing while it runs."""
        reaped, status = os.waitpid(child, os.WNOHANG)
        if reaped:
            return f"exit code {os.WEXITSTATUS(status)}" if os.WIFEXITED(status) else "killed"
        if time.monotonic() - began < PATIENCE:
            return ""
        place = pathlib.Path(f"/proc/{child}/wchan").read_text()
        what = "spins" if cpu_seconds(child) > PATIENCE / 10 else f"waits in {place}"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return f"hangs ({what})"


def be_child() -> None:
    code = 1
    try:
        code = 0 if count_evals("finished.db")["completed"] == 3 else 2
    finally:
        os._exit(code)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def play(how: str, number: int) -> int:
    """Be the process that opens and forks, in the current directory."""
    open_new = {"count": count, "speval": evaluate}[how]
    speval(abs, range(3), "finished.db")
    if how == "count":
        for n in range(number):
            shutil.copy("finished.db", f"{n}.db")
    forker = Forker()
    forker.start()
    slowest = 0.0
    for n in range(number):
        began = time.monotonic()
        open_new(n)
        slowest = max(slowest, time.monotonic() - began)
    forker.over = True
    forker.join()
    print(f"{how}: {number} databases, {sum(forker.ends.values())} children: {dict(forker.ends)}")
    print(f"  the slowest call took {slowest:.2f} s")
    return int(set(forker.ends) != {"exit code 0"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("how", choices=["count", "speval"])
    parser.add_argument("number", type=int)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        return play(args.how, args.number)
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            str(pathlib.Path(__file__).resolve()),
            args.how,
            str(args.number),
            "--here",
        ]
        process = subprocess.Popen(command, cwd=directory, start_new_session=True)
        try:
            return process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            print(f"{args.how}: hangs, with all that it forked")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 1


if __name__ == "__main__":
    sys.exit(main())
