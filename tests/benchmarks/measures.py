"""The measurements: each yields rows of the table, and leaves in `figures` what its plot shows."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from statistics import median
from typing import Any

import peers
from processes import (
    PACKAGE,
    SCALE,
    Copies,
    answer,
    call,
    complete,
    database,
    directory,
    gaps,
    interrupt,
    ms,
    race,
    ratios,
    scaled,
    spread,
    start,
    started,
)

ROUNDS = 5
MILLION = scaled(1_000_000)
Row = tuple[str, str, str]  # what, the figure, what is asked of it

figures: dict[str, Any] = {}


def throughput() -> Iterator[Row]:
    number, copies = scaled(200_000), Copies(scaled(200_000))
    rates: dict[str, list[float]] = {"this package": [], "bare sqlite3": []}
    for _ in range(ROUNDS + 2):
        for kind, what in zip(rates, ("work", "floor")):
            with copies.copy() as path:
                rates[kind].append(number / race(1, what, path)[0])
    for kind, values in rates.items():
        yield f"{kind}, evaluations/s", spread(values, ".0f"), ">= 100000" if kind == "this package" else ""
    yield "this package / bare sqlite3", spread(ratios(*rates.values())), ">= 0.7"
    figures["throughput"] = rates


def workers() -> Iterator[Row]:
    copies = Copies(MILLION)
    rates: dict[int, list[float]] = {1: [], 8: [], 64: [], 2: [], 4: [], 16: [], 32: []}
    for turn in range(ROUNDS):
        for number in list(rates)[: 3 if turn else None]:
            with copies.copy() as path:
                rates[number].append(MILLION / race(number, "work", path)[0])
    for number, values in sorted(rates.items()):
        yield f"{number} workers, evaluations/s", spread(values, ".0f"), ""
    yield "8 workers / 1 worker", spread(ratios(rates[8], rates[1])), ">= 1.0"
    yield "64 workers / 1 worker", spread(ratios(rates[64], rates[1])), ">= 0.8"
    figures["workers"] = sorted(rates.items())


def stores() -> Iterator[Row]:
    yield from _beside(peers.STORES, 20.0, {})


def pools() -> Iterator[Row]:
    yield from _beside(peers.POOLS, 10.0, {"joblib": 0.25})


def _beside(kinds: dict[str, Any], asked: float, less: dict[str, float]) -> Iterator[Row]:
    copies = Copies(scaled(200_000))

    def ours() -> float:
        with copies.copy() as path:
            return scaled(200_000) / race(2, "work", path)[0]

    def theirs(name: str) -> float:
        return peers.rate(name, kinds[name], directory / name)

    wanted = {name: f">= {less.get(name, asked):g}" for name in kinds}
    rates = yield from beside(kinds, ours, theirs, wanted)
    figures["stores" if asked == 20 else "pools"] = rates


def beside(
    kinds: dict[str, Any],
    ours: Callable[[], float],
    theirs: Callable[[str], float],
    asked: dict[str, str],
    rounds: int = ROUNDS,
) -> Generator[Row, None, dict[str, list[float]]]:
    """Take rates, ours and those of peers, in turn; return those of who has any."""
    own: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for name, (requirement, _, _) in kinds.items():
        if not peers.install(directory / name, requirement):
            yield name, "cannot be installed here", ""
    for _ in range(rounds):
        own.append(ours())
        for name, values in rates.items():
            with contextlib.suppress(RuntimeError):  # it died
                values.append(theirs(name))
    yield "this package, evaluations/s", spread(own, ".0f"), asked.get("this package", "")
    for name, values in list(rates.items()):
        died = f", died in {rounds - len(values)} rounds" if len(values) < rounds else ""
        yield f"{name}, evaluations/s{died}", spread(values, ".0f") if values else "none", ""
        if not values:
            rates.pop(name)
        elif not died:
            yield f"this package / {name}", spread(ratios(own, values), ".3g"), asked[name]
        else:
            ratio = f"{median(own) / median(values):.3g} of the medians"
            yield f"this package / {name}", ratio, asked[name]
    return {"this package": own, **rates}


def size() -> Iterator[Row]:
    part = scaled(100_000)
    sizes = [part, MILLION, scaled(5_000_000)]
    fresh = {number: Copies(number) for number in sizes}
    ends = {number: Copies(number, completed=number - part) for number in sizes[1:]}
    costs: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for number, where, copies in [
            *((number, "first", copies) for number, copies in fresh.items()),
            *((number, "last", copies) for number, copies in ends.items()),
        ]:
            with copies.copy() as path:
                began, ended = call("evaluate", path, part - 1)
            costs.setdefault(f"{where} of {number}", []).append(1e6 * (ended - began) / (part - 1))
    for what, values in costs.items():
        yield f"cost of the {what}, us", spread(values), ""
    last = costs[f"last of {sizes[-1]}"]
    yield "last / first", spread(ratios(last, costs[f"first of {part}"])), "<= 1.15"
    with fresh[sizes[-1]].copy() as path:
        called = call("trace", path, sizes[-1] // 100)
    figures["size"] = {"costs": costs, "step": sizes[-1] // 100, "called": [t - called[0] for t in called]}


def ideal() -> Iterator[Row]:
    squarings = 1000
    squarings = int(squarings * 0.01 / (race(1, "bare", 20, "spin", squarings)[0] / 20))
    shares: dict[str, list[float]] = {}
    for what, number, kind, amount, each, asked in [
        ("1 ms of sleep, 8 workers", 8, "sleep", "0.001", 6000, ">= 0.9"),
        ("10 ms of CPU, 2 workers", 2, "spin", str(squarings), 1000, ">= 0.97"),
        ("100 ms of sleep, 128 workers", 128, "sleep", "0.1", 600, ">= 0.95"),
    ]:
        copies = Copies(number * scaled(each))
        for _ in range(ROUNDS):
            alone = race(number, "bare", scaled(each), kind, amount)[0]
            with copies.copy() as path:
                shares.setdefault(what, []).append(alone / race(number, "work", path, kind, amount)[0])
        yield f"{what}: share of the ideal", spread(shares[what], ".3f"), asked
    figures["ideal"] = shares


def fairness() -> Iterator[Row]:
    copies = Copies(scaled(3_000_000))
    for number in (64, 128):
        with copies.copy() as path, started(number, "evaluate", path) as instances:
            time.sleep(10.5 * SCALE)
            answers = interrupt(instances)
        alive = [called for called in answers if called]
        begin = max(called[0] for called in alive)
        end = min(begin + 10, max(called[-1] for called in alive))
        waits = [gaps(called, begin, end) for called in alive]
        shares = [len(its) - 1 for its in waits]
        asked = number == 64
        yield f"{number} workers: died", f"{number - len(alive)}", "0"
        yield f"{number} workers: evaluations/s", f"{sum(shares) / (end - begin):.0f}", ""
        least = min(shares) / max(1, median(shares))
        yield f"{number} workers: least served / median", f"{least:.2f}", ">= 0.5" if asked else ""
        longest = [max(its) for its in waits]
        yield f"{number} workers: longest wait of each", ms(longest), "< 1500 ms" if asked else ""
        figures.setdefault("fairness", {})[number] = {"shares": shares, "waits": longest}


def tail() -> Iterator[Row]:
    copies, idle = Copies(scaled(1000), "uniform"), []
    for _ in range(ROUNDS):
        began = time.monotonic()
        with copies.copy() as path:
            began = time.monotonic()
            whole, answers = race(8, "work", path, "given")
        ends = [last for last, _, _ in answers]
        idle.append(100 * (max(ends) - min(ends)) / whole)
    yield "idle of the earliest finisher", f"{spread(idle)} % of the whole", "< 5 %"
    figures["tail"] = {"idle": idle, "ends": [end - began for end in sorted(ends)]}


def populate() -> Iterator[Row]:
    rates: dict[str, list[float]] = {"this package": [], "bare sqlite3": []}
    memory = {}
    for _ in range(ROUNDS):
        for kind, what in zip(rates, ("enter", "insert")):
            path = database()
            began, ended, *more = call(what, path, MILLION)
            rates[kind].append(MILLION / (ended - began))
            memory.update({MILLION: more[0]} if more else {})
            shutil.rmtree(path.parent)
    yield "this package, rows/s", spread(rates["this package"], ".0f"), ">= 150000"
    yield "bare sqlite3, rows/s", spread(rates["bare sqlite3"], ".0f"), ""
    for number in (MILLION // 10, 10 * MILLION):
        path = database()
        began, ended, memory[number] = call("enter", path, number)
        shutil.rmtree(path.parent)
    yield f"this package, {10 * MILLION}", f"{10 * MILLION / (ended - began):.0f} rows/s", "works"
    for number, grown in sorted(memory.items()):
        yield f"memory grows by, {number}", f"{grown / 1024:.1f} MiB", "the same"
    figures["populate"] = {"rates": rates, "memory": sorted(memory.items())}


def large() -> Iterator[Row]:
    costs: dict[str, list[tuple[int, float, float]]] = {}
    for what, length, most in [
        ("arguments", 1, 4000),
        ("arguments", 1000, 4000),
        ("arguments", 100_000, 400),
        ("arguments", 1_000_000, 50),
        ("results", 1, 4000),
        ("results", 1000, 4000),
        ("results", 1_000_000, 50),
        ("results", 10_000_000, 8),
    ]:
        number = scaled(most) if most > 100 else most
        copies = Copies(number, "text", str(length if what == "arguments" else 1))
        for kind, arguments in [("this package", []), ("bare sqlite3, one by one", [1])]:
            job = ["text", length] if what == "results" else ["", ""]
            with copies.copy() as path:
                seconds, ((_, _, written),) = race(
                    1, "floor" if arguments else "work", path, *arguments, *job
                )
            cost = 1000 * seconds / number, written / number / length
            costs.setdefault(f"{what}, {kind}", []).append((length, *cost))
            if length >= 1000:
                figure = f"{cost[0]:.2f} ms, {cost[1]:.1f} bytes written for each"
                yield f"{what} of {length} characters, {kind}", figure, ""
    figures["large"] = costs


def restart() -> Iterator[Row]:
    yield "kill -9 to restart", ms([restarted(database()) for _ in range(12)]), "< 500 ms"


def restarted(path: object) -> float:
    """Return the seconds from the death of a worker to the call of its evaluation by one that waits."""
    with started(1, "hold", path) as (doomed,):
        doomed.stdout.readline()  # type: ignore[union-attr]
        with started(1, "hold", path) as (waiting,):
            time.sleep(1.5 + random.random())  # it waits by then; kill between any two of its looks
            killed = time.monotonic()
            doomed.kill()
            return float(waiting.stdout.readline()) - killed  # type: ignore[union-attr]


def sweep() -> Iterator[Row]:
    path, began = database(), time.monotonic()
    for instance in [start("sweep", path) for _ in range(20)]:
        answer(instance)
    yield "100 evaluations of 2 s by 20 instances", f"{time.monotonic() - began:.2f} s", "<= 11 s"


def imports() -> Iterator[Row]:
    seconds: dict[str, list[float]] = {"sqlite3, json": [], "sqlite3, json, speval": []}
    for _ in range(31):
        for modules, values in seconds.items():
            command, began = [sys.executable, "-c", f"import {modules}"], time.monotonic()
            subprocess.run(command, env={**os.environ, "PYTHONPATH": str(PACKAGE)}, cwd=directory, check=True)
            values.append(time.monotonic() - began)
    yield "import sqlite3, json", ms(seconds["sqlite3, json"]), ""
    more = median(ours - its for its, ours in zip(*seconds.values()))
    yield "import speval on top of it", f"median {1000 * more:.1f} ms", "<= 15 ms"


def million() -> Iterator[Row]:
    path = database()
    call("enter", path, MILLION)
    yield "count_evals, all pending", ms(call("count", path)), "< 20 ms"
    complete(path, MILLION // 2)
    yield "count_evals, half pending", ms(call("count", path)), "< 20 ms"
    complete(path, MILLION)
    yield "count_evals, all completed", ms(call("count", path)), "< 20 ms"
    began, ended, rows, growth = call("read", path)
    figure = f"{rows / (ended - began):.0f} rows/s, memory grows by {growth / 1024:.1f} MiB"
    yield "iter_evals", figure, "constant memory"
    with started(1, "write", path) as writers:
        began, ended, _ = call("enter", path, MILLION)
        (spans,) = interrupt(writers)
    yield "start on the finished sweep", f"{ended - began:.2f} s", "< 5 s"
    meanwhile = [end - begin for begin, end in spans if end > began and begin < ended]
    yield "transactions of another process meanwhile", ms(meanwhile), "not held up"


ALL = [
    throughput,
    workers,
    stores,
    pools,
    size,
    ideal,
    fairness,
    tail,
    populate,
    large,
    restart,
    sweep,
    imports,
    million,
]
