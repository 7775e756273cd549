"""Measure speval: ``python tests/benchmarks/run.py [name ...]`` prints a table; README.rst explains it."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
MILLION = 1_000_000
Row = tuple[str, str, str]  # what, the figure, what is asked of it

directory = pathlib.Path(tempfile.mkdtemp(prefix="speval-benchmarks-"))
NEW, OLD = directory / "new", directory / "0.1.1"  # installed copies of the packages


def start(what: str, *args: object, package: pathlib.Path = NEW) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "instances.py"), what, *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(package)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def answer(process: subprocess.Popen[str]) -> Any:
    """Return what a process answers when it ends, None if it died."""
    lines, _ = process.communicate()
    return json.loads(lines.splitlines()[-1]) if process.returncode == 0 else None


def call(what: str, *args: object, package: pathlib.Path = NEW) -> Any:
    return answer(start(what, *args, package=package))


@contextlib.contextmanager
def started(number: int, what: str, *args: object) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes, and wait until each has said something; afterwards none is left."""
    processes = [start(what, *args) for _ in range(number)]
    try:
        for process in processes:
            process.stdout.readline()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def interrupt(processes: list[subprocess.Popen[str]]) -> list[Any]:
    for process in processes:
        process.send_signal(signal.SIGINT)
    return [answer(process) for process in processes]


def database(size: int = 0) -> pathlib.Path:
    """Return the path of a database that is not there yet; of one of `size` evaluations, if given."""
    path = pathlib.Path(tempfile.mkdtemp(dir=directory)) / "evals.db"
    if size:
        call("enter", path, size)
    return path


def ms(seconds: list[float]) -> str:
    return f"median {1000 * median(seconds):.1f} ms, longest {1000 * max(seconds):.1f} ms"


def cost() -> Iterator[Row]:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(OLD), "speval==0.1.1"]
    subprocess.run(pip, check=True)
    kinds = {
        "this package": lambda: call("evaluate", database(), 1500),
        "bare sqlite3": lambda: call("floor", database(1500)),
        "bare sqlite3, opening each time": lambda: call("floor", database(1500), "opening"),
        "speval 0.1.1": lambda: call("evaluate", database(), 1500, package=OLD),
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(7):
        for kind, measure in kinds.items():
            called = measure()
            rates[kind].append((len(called) - 1) / (called[-1] - called[0]))
    for kind, values in rates.items():
        yield kind, f"{median(values):.0f} /s ({min(values):.0f} to {max(values):.0f})", ""
    for kind in list(kinds)[1:]:
        ratios = [ours / its for ours, its in zip(rates["this package"], rates[kind])]
        figure = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"this package / {kind}", figure, ">= 0.8" if kind == "bare sqlite3" else ""


def many() -> Iterator[Row]:
    for number in (64, 128):
        with started(number, "evaluate", database(100_000), 10) as instances:
            time.sleep(10.5)
            answers = interrupt(instances)
        alive = [called for called in answers if called]
        begin = max(called[0] for called in alive)
        waits = [gaps(called, begin, begin + 10) for called in alive]
        shares = [len(its) - 1 for its in waits]
        least = min(shares) / (sum(shares) / number)
        yield f"{number}: died", f"{number - len(alive)}", "0"
        yield f"{number}: evaluations", f"{sum(shares) / 10:.0f} /s", ""
        yield f"{number}: least served", f"{least:.2f} of the fair share", ">= 0.5"
        yield f"{number}: wait for an evaluation", ms([wait for its in waits for wait in its]), "< 1 s"


def gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Return the seconds between calls in a window, whose edges count as calls too."""
    edges = [begin, *(t for t in times if begin < t < end), end]
    return [after - before for before, after in zip(edges, edges[1:])]


def restart() -> Iterator[Row]:
    delays = []
    for _ in range(12):
        path = database()
        with started(1, "hold", path) as (doomed,):
            doomed.stdout.readline()
            with started(1, "hold", path) as (waiting,):
                time.sleep(1.5 + random.random())  # it waits by then; kill between any two of its looks
                killed = time.monotonic()
                doomed.kill()
                delays.append(float(waiting.stdout.readline()) - killed)
    yield "kill -9 to restart", ms(delays), "< 0.5 s"


def sweep() -> Iterator[Row]:
    path, began = database(), time.monotonic()
    for instance in [start("evaluate", path, 100, 2) for _ in range(20)]:
        answer(instance)
    yield "100 evaluations of 2 s by 20 instances", f"{time.monotonic() - began:.2f} s", "<= 11 s"


def imports() -> Iterator[Row]:
    seconds: dict[str, list[float]] = {"sqlite3, json": [], "sqlite3, json, speval": []}
    for _ in range(31):
        for modules, values in seconds.items():
            command, began = [sys.executable, "-c", f"import {modules}"], time.monotonic()
            subprocess.run(command, env={**os.environ, "PYTHONPATH": str(NEW)}, cwd=directory, check=True)
            values.append(time.monotonic() - began)
    yield "import sqlite3, json", ms(seconds["sqlite3, json"]), ""
    more = median(ours - its for its, ours in zip(*seconds.values()))
    yield "import speval on top of it", f"median {1000 * more:.1f} ms", "<= 15 ms"


def million() -> Iterator[Row]:
    path = database()
    began, ended = call("enter", path, MILLION)
    yield "populate", f"{ended - began:.1f} s", ""
    yield "count_evals, all pending", ms(call("count", path)), "< 20 ms"
    _complete(path, MILLION // 2)
    yield "count_evals, half pending", ms(call("count", path)), "< 20 ms"
    yield from _beside_writers(path)
    _complete(path, MILLION)
    yield "count_evals, all completed", ms(call("count", path)), "< 20 ms"
    yield from _read(path, "alone")
    with started(1, "write", path) as writers:
        began, ended = call("enter", path, MILLION)
        (spans,) = interrupt(writers)
    yield "start on the finished sweep", f"{ended - began:.2f} s", "< 5 s"
    meanwhile = [end - begin for begin, end in spans if end > began and begin < ended]
    yield "transactions of another process meanwhile", ms(meanwhile), "not held up"


def _complete(path: pathlib.Path, last: int) -> None:
    statement = "UPDATE evals SET status = 'completed', result = '1', attempt = 1 WHERE id <= ?"
    with contextlib.closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(statement, (last,))


def _read(path: pathlib.Path, how: str) -> Iterator[Row]:
    began, ended, rows, growth = call("read", path)
    figure = f"{rows / (ended - began):.0f} rows/s, memory grows by {growth / 1024:.1f} MiB"
    yield f"iter_evals {how}", figure, "constant memory"


def _beside_writers(path: pathlib.Path) -> Iterator[Row]:
    with started(8, "evaluate", path, 10) as writers:
        edges = [time.monotonic()]
        time.sleep(5)
        edges.append(time.monotonic())
        yield from _read(path, "beside 8 writers")
        edges.append(time.monotonic())
        answers = interrupt(writers)
    for how, begin, end in zip(("without a reader", "beside a reader"), edges, edges[1:]):
        waits = [wait for called in answers for wait in gaps(called, begin, end)]
        yield f"8 writers {how}", f"{len(waits) / (end - begin):.0f} /s, {ms(waits)}", ""


def conditions() -> str:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", directory], stdout=subprocess.PIPE, text=True, check=False
    )
    times = [time.monotonic()]
    with open(directory / "synced", "wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.monotonic())
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f};"
        f" {kind.stdout.strip()}, fsync of 4 KiB {ms(gaps(times, times[0], times[-1]))};"
        f" {platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def main(names: list[str]) -> None:
    measurements = [cost, many, restart, sweep, imports, million]
    try:
        shutil.copytree(HERE.parents[1] / "speval", NEW / "speval")
        compileall.compile_dir(NEW, quiet=1, force=True)  # as pip does
        print(conditions())
        for measure in measurements:
            if not names or measure.__name__ in names:
                for what, figure, asked in measure():
                    print(f"{measure.__name__:8} {what:44} {figure:52} {asked}", flush=True)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
