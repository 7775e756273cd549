"""Processes and databases for the measurements, all below one temporary directory."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
SCALE = float(os.environ.get("SPEVAL_BENCH_SCALE", "1"))  # of the numbers of evaluations, for a trial

directory = pathlib.Path(tempfile.mkdtemp(prefix="speval-benchmarks-"))
PACKAGE = directory / "package"  # an installed copy of speval


def scaled(number: int) -> int:
    return max(20, int(number * SCALE))


def start(
    what: str, *args: object, script: str = "instances.py", package: pathlib.Path = PACKAGE
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / script), what, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package)},
    )


def answer(process: subprocess.Popen[str]) -> Any:
    """Return what a process answers when it ends, None if it died."""
    lines, _ = process.communicate()
    return json.loads(lines.splitlines()[-1]) if process.returncode == 0 else None


def call(what: str, *args: object, **how: Any) -> Any:
    return answer(start(what, *args, **how))


@contextlib.contextmanager
def started(number: int, what: str, *args: object, **how: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes, and wait until each has said something; afterwards none is left."""
    processes = [start(what, *args, **how) for _ in range(number)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


def race(number: int, what: str, *args: object, **how: Any) -> tuple[float, list[Any]]:
    """Let processes go at once; return seconds from then to the end of the last, and their answers.

    Each answers with a list whose second element is when it was done.
    """
    with started(number, what, *args, **how) as processes:
        began = time.monotonic()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        answers = [answer(process) for process in processes]
    if None in answers:
        raise RuntimeError(f"{what} {args} died")
    return max(its[1] for its in answers) - began, answers


def interrupt(processes: list[subprocess.Popen[str]]) -> list[Any]:
    for process in processes:
        process.send_signal(signal.SIGINT)
    return [answer(process) for process in processes]


class Copies:
    """Copies of a database that was populated once."""

    def __init__(self, size: int, kind: str = "", amount: str = "", completed: int = 0) -> None:
        self.path = database()
        call("enter", self.path, size, kind, amount)
        if completed:
            complete(self.path, completed)

    @contextlib.contextmanager
    def copy(self) -> Iterator[pathlib.Path]:
        path = database()
        shutil.copy(self.path, path)
        os.sync()  # or the first transactions would wait for it
        try:
            yield path
        finally:
            shutil.rmtree(path.parent)


def database() -> pathlib.Path:
    """Return the path of a database that is not there yet."""
    return pathlib.Path(tempfile.mkdtemp(dir=directory)) / "evals.db"


def complete(path: pathlib.Path, last: int) -> None:
    import sqlite3

    statement = "UPDATE evals SET status = 'completed', result = '1', attempt = 1 WHERE id <= ?"
    with contextlib.closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(statement, (last,))


def gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Return the seconds between calls in a window, whose edges count as calls too."""
    edges = [begin, *(t for t in times if begin < t < end), end]
    return [after - before for before, after in zip(edges, edges[1:])]


def ms(seconds: list[float]) -> str:
    return f"median {1000 * median(seconds):.1f} ms, longest {1000 * max(seconds):.1f} ms"


def spread(values: list[float], form: str = ".2f") -> str:
    """Return median, smallest and largest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratios(ours: list[float], others: list[float]) -> list[float]:
    """Return the ratios within each round."""
    return [mine / its for mine, its in zip(ours, others)]
