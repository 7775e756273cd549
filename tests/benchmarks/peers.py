"""What others do with a function that does nothing: ``python peers.py NAME PATH NUMBER``.

Each function that is named in STORES, SERVERS or POOLS is one process of a peer, in the use that is natural
and fast there; ``prepare_...``, where there is one, enters the evaluations before. Nothing of a peer is
imported before it is measured.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

from processes import call, database, race, scaled


def no_op(args: Any) -> int:
    return 0


def space(number: str) -> list[dict[str, float]]:
    return [{"x": i, "y": i / 2} for i in range(int(number))]


def ready() -> None:
    """Say that everything is there, and wait until all processes are to go."""
    print("ready", flush=True)
    sys.stdin.readline()


def speval_0_1_1(path: str, number: str) -> None:
    from speval import speval

    evals = space(number)
    ready()
    speval(no_op, evals, path)


def optuna_sqlite(path: str, number: str) -> None:
    import optuna

    _optimize(optuna.storages.RDBStorage(f"sqlite:///{path}"), number)


def prepare_optuna_sqlite(path: str, number: str) -> None:
    import optuna

    optuna.create_study(storage=f"sqlite:///{path}", study_name="study")


def optuna_journal(path: str, number: str) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    _optimize(JournalStorage(JournalFileBackend(path)), number)


def _optimize(storage: Any, number: str) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler()
    study = optuna.create_study(storage=storage, study_name="study", load_if_exists=True, sampler=sampler)
    ready()
    study.optimize(lambda trial: 0.0, n_trials=int(number) // 2)


def jug(path: str, number: str) -> None:
    import jug.jug

    lines = [
        "from jug import TaskGenerator",
        "@TaskGenerator",
        "def no_op(args): return 0",
        f"results = [no_op({{'x': i, 'y': i / 2}}) for i in range({number})]",
    ]
    script = pathlib.Path(path).with_name("jugfile.py")
    script.write_text("\n".join(lines) + "\n")
    ready()
    with open(os.devnull, "w") as null, contextlib.suppress(SystemExit), contextlib.redirect_stdout(null):
        jug.jug.main(["jug", "execute", str(script), "--jugdir", path])


def prepare_huey(path: str, number: str) -> None:
    task = _huey(path)[1]
    for args in space(number):
        task(args)


def huey(path: str, number: str) -> None:
    queue, _ = _huey(path)
    ready()
    while (task := queue.dequeue()) is not None:
        queue.execute(task)


def _huey(path: str) -> Any:
    from huey import SqliteHuey

    logging.getLogger("huey").setLevel(logging.ERROR)
    queue = SqliteHuey(filename=path)
    return queue, queue.task()(no_op)


def prepare_litequeue(path: str, number: str) -> None:
    from litequeue import LiteQueue

    queue = LiteQueue(path)
    for args in space(number):
        queue.put(json.dumps(args))


def litequeue(path: str, number: str) -> None:
    from litequeue import LiteQueue

    queue = LiteQueue(path, timeout=60)  # with sqlite3's own 5 s one of two mostly dies: "database is locked"
    ready()
    while (message := queue.pop()) is not None:
        no_op(json.loads(message.data))
        queue.done(message.message_id)


EXCHANGE = """
    WITH stored AS (UPDATE queue SET status = 'completed', result = given.result
            FROM unnest(%s::int8[], %s::text[]) AS given (id, result) WHERE queue.id = given.id),
        found AS (SELECT id FROM queue WHERE status = 'pending' ORDER BY id LIMIT 1000
            FOR UPDATE SKIP LOCKED)
    UPDATE queue SET status = 'in_progress' FROM found WHERE queue.id = found.id RETURNING queue.id, args"""


def prepare_bare_loop(url: str, number: str) -> None:
    import psycopg

    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE queue (id INT8 PRIMARY KEY, status TEXT, args TEXT, result TEXT)")
        conn.execute("CREATE INDEX ON queue (id) WHERE status = 'pending'")
        with conn.cursor().copy("COPY queue (id, status, args) FROM STDIN") as rows:
            for id, args in enumerate(space(number)):
                rows.write_row((id, "pending", json.dumps(args)))


def bare_loop(url: str, number: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as conn:
        ready()
        ids: list[int] = []
        results: list[str] = []
        while True:
            try:
                claimed = conn.execute(EXCHANGE, (ids, results)).fetchall()
            except psycopg.errors.DeadlockDetected:
                continue
            if not claimed:
                return
            ids = [id for id, _ in claimed]
            results = [json.dumps(no_op(json.loads(args))) for _, args in claimed]


def prepare_procrastinate(url: str, number: str) -> None:
    app, task = _procrastinate(url)
    with app.open():
        app.schema_manager.apply_schema()
        task.batch_defer(*({"args": args} for args in space(number)))


def procrastinate(url: str, number: str) -> None:
    app, _ = _procrastinate(url)
    ready()
    app.run_worker(wait=False, concurrency=30)


def _procrastinate(url: str) -> Any:
    from procrastinate import App, PsycopgConnector

    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    app = App(connector=PsycopgConnector(conninfo=url))

    @app.task(name="no_op")
    async def task(args: Any) -> int:
        return no_op(args)

    return app, task


def prepare_pgqueuer(url: str, number: str) -> None:
    async def enter(queries: Any) -> None:
        await queries.install()
        payloads = [json.dumps(args).encode() for args in space(number)]
        await queries.enqueue(["no_op"] * len(payloads), payloads, [0] * len(payloads))

    _pgqueuer(url, enter)


def pgqueuer(url: str, number: str) -> None:
    from datetime import timedelta

    from pgqueuer import QueueManager
    from pgqueuer.types import QueueExecutionMode

    async def work(queries: Any) -> None:
        manager = QueueManager(queries)

        @manager.entrypoint("no_op")
        async def task(job: Any) -> None:
            no_op(json.loads(job.payload))

        ready()
        soon = timedelta(seconds=0.1)  # instead of 30 s, if the last are under way when it looks
        await manager.run(soon, batch_size=500, mode=QueueExecutionMode.drain)
        done()

    _pgqueuer(url, work)


def _pgqueuer(url: str, use: Any) -> None:
    import asyncpg
    import uvloop
    from pgqueuer import AsyncpgDriver, Queries

    async def run() -> None:
        conn = await asyncpg.connect(url)
        await use(Queries(AsyncpgDriver(conn)))
        await conn.close()

    logging.getLogger("pgqueuer").setLevel(logging.ERROR)
    uvloop.run(run())


def process_pool(path: str, number: str) -> None:
    from concurrent.futures import ProcessPoolExecutor

    evals = space(number)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(no_op, evals[:10]))
        ready()
        list(pool.map(no_op, evals, chunksize=1))
        done()


def dask(path: str, number: str) -> None:
    from distributed import Client, LocalCluster

    evals = space(number)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        client = Client(cluster)
        client.gather(client.map(no_op, evals[:10], pure=False))
        ready()
        client.gather(client.map(no_op, evals, pure=False))
        done()


def ray(path: str, number: str) -> None:
    import ray

    evals = space(number)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    remote = ray.remote(no_op)
    ray.get([remote.remote(args) for args in evals[:10]])
    ready()
    ray.get([remote.remote(args) for args in evals])
    done()


def joblib(path: str, number: str) -> None:
    from joblib import Parallel, delayed

    evals = space(number)
    with Parallel(n_jobs=2) as pool:
        pool(delayed(no_op)(args) for args in evals[:10])
        ready()
        pool(delayed(no_op)(args) for args in evals)
        done()


prepare_litequeue_1000, litequeue_1000 = prepare_litequeue, litequeue

# Name: what pip installs, number of evaluations, number of processes that are started.
STORES = {
    "speval_0_1_1": ("speval==0.1.1", 1500, 2),
    "optuna_sqlite": ("optuna", 150, 2),
    "optuna_journal": ("optuna", 2000, 2),
    "jug": ("jug", 3000, 2),
    "huey": ("huey", 4000, 2),
    "litequeue": ("litequeue", 5000, 2),  # it slows down with the number: so the first 1000, in 0.1 s, too
    "litequeue_1000": ("litequeue", 1000, 2),
}
SERVERS = {
    "bare_loop": ("psycopg[binary]", 200_000, 8),
    "procrastinate": ("procrastinate psycopg[binary]", 5000, 8),
    "pgqueuer": ("pgqueuer[asyncpg]", 20_000, 8),
}
POOLS = {
    "process_pool": ("", 20_000, 1),
    "dask": ("distributed", 2000, 1),
    "ray": ("ray", 4000, 1),
    "joblib": ("joblib", 400_000, 1),
}


def install(target: pathlib.Path, requirement: str) -> bool:
    """Install a peer into a directory of its own."""
    if not requirement:
        return True
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(target), *requirement.split()]
    return subprocess.run(pip, stderr=subprocess.DEVNULL, check=False).returncode == 0


def rate(name: str, kind: tuple[str, int, int], package: pathlib.Path, path: object = None) -> float:
    """Return the evaluations per second of one run, by default in a file."""
    _, number, processes = kind
    number, path = scaled(number), path or database()
    if globals().get(f"prepare_{name}"):
        call(f"prepare_{name}", path, number, script="peers.py", package=package)
    return number / race(processes, name, path, number, script="peers.py", package=package)[0]


def done() -> None:
    """End a process whose evaluations are done, before it takes its pool down."""
    print(json.dumps([0, time.monotonic()]), flush=True)


if __name__ == "__main__":
    signal.alarm(600)
    warnings.simplefilter("ignore")
    what, *arguments = sys.argv[1:]
    globals()[what](*arguments)
    if what not in POOLS:
        done()
