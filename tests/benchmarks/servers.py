"""The measurement of a PostgreSQL server, which this module starts, and ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import peers
from measures import MILLION, Row, beside, figures, restarted
from processes import HERE, SCALE, call, directory, ms, race, ratios, scaled, spread, started

if TYPE_CHECKING:
    from server import Server

PART = scaled(1000)
ROUNDS = 3  # of some 2 minutes each
MAKE, DROP = "CREATE DATABASE {} TEMPLATE {}", "DROP DATABASE {} WITH (FORCE)"
AGAIN = """
    UPDATE evals SET status = 'pending', attempt = 0, result = NULL, worker = NULL, started = NULL
    WHERE id > (SELECT max(id) FROM evals) - %s"""
TENTHS = """
    SELECT percentile_disc(ARRAY[0.05, 0.15, 0.85, 0.95]) WITHIN GROUP (ORDER BY updated) FROM evals"""
BETWEEN = """
    WITH each AS (SELECT min(started) AS began, max(updated) AS ended FROM evals GROUP BY worker),
        all_work AS (SELECT max(began) AS began, min(ended) AS ended FROM each)
    SELECT began, ended, (SELECT count(*) FROM evals WHERE updated > began AND updated <= ended)
    FROM all_work"""
WAITING = "SELECT count(*) FROM idle_workers WHERE ended IS NULL"


def server() -> Iterator[Row]:
    sys.path.append(str(HERE.parent))
    try:
        import psycopg
        from server import Server

        its = Server.make()
    except (ImportError, FileNotFoundError) as exc:
        yield "PostgreSQL", f"cannot be measured here: {exc}", ""
        return
    try:
        its.start("fsync=on")
        ((version,),) = its.execute("SHOW server_version")
        yield f"PostgreSQL {version}, psycopg {psycopg.__version__}", psycopg.pq.__impl__, ""
        yield from _no_ops(its)
        yield from _sleepers(its)
        yield "kill -9 to restart", ms([restarted(its.url(f"restart{i}")) for i in range(12)]), "< 2000 ms"
        yield from _idle(its)
    finally:
        its.remove()


def _no_ops(its: Server) -> Iterator[Row]:
    _populate(its, "small", PART)
    _populate(its, "large", MILLION)
    costs: dict[str, list[float]] = {}

    def ours() -> float:
        rate, found = _swept(its)
        for what, cost in found.items():
            costs.setdefault(what, []).append(cost)
        return rate

    def theirs(name: str) -> float:
        with _copy(its, "template1") as url:
            return peers.rate(name, peers.SERVERS[name], directory / name, url)

    asked = {"this package": ">= 30000", **dict.fromkeys(peers.SERVERS, "> 1"), "bare_loop": ""}
    figures["server"] = yield from beside(peers.SERVERS, ours, theirs, asked, ROUNDS)
    for what, values in costs.items():
        yield f"cost of one of {what}, us", spread(values), ""
    first, _, last, early, late = costs.values()
    yield f"the last {PART} of {MILLION} / all {PART}", spread(ratios(last, first)), "<= 1.3"
    yield "late / early, 8 workers", spread(ratios(late, early)), "<= 1.3"


def _swept(its: Server) -> tuple[float, dict[str, float]]:
    """Return evaluations/s of a large sweep by 8 workers, and what one cost before, in, after it, in us."""
    costs = {}
    with _copy(its, "small") as url:
        costs[f"all {PART}"] = _cost(url)
    with _copy(its, "large") as url:
        costs[f"the first {PART} of {MILLION}"] = _cost(url)
        seconds, _ = race(8, "work", url)
        ((tenths,),) = _execute(url, TENTHS)
        _execute(url, AGAIN, PART)
        _execute(url, "CHECKPOINT")  # as before the others
        costs[f"the last {PART} of {MILLION}"] = _cost(url)
    for when, begin, end in (("early", *tenths[:2]), ("late", *tenths[2:])):
        costs[f"{when} in {MILLION}, 8 workers"] = 1e6 * (end - begin) / (MILLION / 10)
    return (MILLION - PART + 1) / seconds, costs


def _cost(url: str) -> float:
    """Return what one of the next evaluations costs, of one worker, in us."""
    began, ended = call("evaluate", url, PART - 1)
    return 1e6 * (ended - began) / (PART - 1)


def _sleepers(its: Server) -> Iterator[Row]:
    number, seconds = scaled(100), 0.1
    _populate(its, "sleeps", number * scaled(150))
    shares = []
    for _ in range(ROUNDS):
        with _copy(its, "sleeps") as url:
            race(number, "work", url, "sleep", seconds, 1)  # one attempt: each is claimed alone
            ((began, ended, done),) = _execute(url, BETWEEN)
        shares.append(done / (ended - began) * seconds / number)
    yield f"100 ms of sleep, {number} workers: share of the ideal", spread(shares, ".3f"), ">= 0.9"


def _idle(its: Server) -> Iterator[Row]:
    number = scaled(200)
    with started(1, "hold", its.url("idle")) as (holding,):
        holding.stdout.readline()  # type: ignore[union-attr]
        with started(number, "hold", its.url("idle")):
            end = time.monotonic() + 300
            while its.execute(WAITING) != [(number + 1,)]:
                if time.monotonic() > end:
                    raise RuntimeError(f"not all of {number} instances have come to wait")
                time.sleep(1)
            its.execute("CHECKPOINT")  # or it would still write what was measured before
            time.sleep(10)
            used, began = _cpu(its), time.monotonic()
            time.sleep(max(2, 20 * SCALE))
            load = (_cpu(its) - used) / (time.monotonic() - began)
    yield f"{number} waiting workers: CPU of the server", f"{100 * load:.2f} % of one core", "< 5 %"


def _cpu(its: Server) -> float:
    """Return the seconds that the processes of a server have used, those that have ended too."""
    with open(f"{its.folder}/data/postmaster.pid") as lines:
        postmaster = next(lines).strip()
    ticks = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            if pid == postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif fields[1] == postmaster:
                ticks += sum(map(int, fields[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _populate(its: Server, name: str, size: int) -> None:
    its.execute(MAKE.format(name, "template1"))
    call("enter", _url(its, name), size)


@contextlib.contextmanager
def _copy(its: Server, name: str) -> Iterator[str]:
    """Yield the URL of a copy of a database, which is dropped afterwards."""
    its.execute(MAKE.format("measured", name))
    its.execute("CHECKPOINT")  # or the first transactions would wait for it
    try:
        yield _url(its, "measured")
    finally:
        its.execute(DROP.format("measured"))


def _url(its: Server, name: str) -> str:
    return f"postgresql://speval@127.0.0.1:{its.port}/{name}"


def _execute(url: str, statement: str, *facts: Any) -> list[Any]:
    import psycopg

    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(statement, facts)
        return cursor.fetchall() if cursor.description else []
