"""PostgreSQL: the same promises on a server, which may go away, come back, or end connections."""

from __future__ import annotations

import collections
import importlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from conftest import PRELUDE, PYTHON, SAYS, Sandbox, until
from nursery import LIMIT
from server import Server, as_user, free_port

from speval import SpevalError, count_evals, iter_evals, load_evals, reading, reset_evals, speval, workers
from speval.database import database, insist
from speval.errors import NotWritable
from speval.view import survey

job = importlib.import_module("speval.speval")
where = importlib.import_module("speval.database")

DONE = ["completed"]


@pytest.fixture
def alone() -> Iterator[Server]:
    """A server of one test, which may do with it what it likes."""
    server = Server.make()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def calls(sandbox: Sandbox) -> collections.Counter[str]:
    return collections.Counter(sandbox.calls())


SLOW = """
def func(x):
    note(x)
    time.sleep(0.05)
    return x

speval(func, range(int(sys.argv[2])), sys.argv[1])
"""


class TestDeath:
    def test_what_a_killed_worker_held_is_reclaimed_after_a_moment(
        self, sandbox: Sandbox, table: str
    ) -> None:
        script = """
def func(x):
    note(x, os.getpid())
    if not os.path.exists("killed"):
        wait_for("never")

speval(func, [1], sys.argv[1])
"""
        doomed = sandbox.start(script, table)
        until(sandbox.calls)
        other = sandbox.start(script, table)
        until(lambda: len(survey.survey(table).workers) == 2)
        sandbox.touch("killed")
        sandbox.end_by(doomed, signal.SIGKILL)
        sandbox.end(other)
        (row,) = load_evals(table)
        assert (row["status"], row["attempt"], row["losses"]) == ("completed", 2, 1)

    def test_a_child_of_func_that_goes_on_does_not_keep_its_dead_parent_alive(
        self, sandbox: Sandbox, table: str
    ) -> None:
        script = """
def func(x):
    if not os.path.exists("forked"):
        if os.fork() == 0:
            note(os.getpid())
            wait_for("over")
            os._exit(0)
        open("forked", "w")
        wait_for("never")

speval(func, [1], sys.argv[1])
"""
        doomed = sandbox.start(script, table)
        until(lambda: (sandbox.path / "forked").exists() and sandbox.calls())
        child = int(sandbox.calls()[0])
        os.kill(doomed.pid, signal.SIGKILL)
        try:
            sandbox.run(script, table)
            assert load_evals(table)[0]["losses"] == 1
            os.kill(child, 0)
        finally:
            sandbox.touch("over")

    def test_a_storm_of_kills_loses_nothing(self, sandbox: Sandbox, table: str) -> None:
        script = """
import random
def func(x):
    time.sleep(0.002)
    if random.random() < 0.05:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

try:
    speval(func, range(300), sys.argv[1], max_attempts=1000)
except KeyboardInterrupt:
    pass
"""
        running = [sandbox.start(script, table) for _ in range(4)]
        until(lambda: _restarted(sandbox, script, table, running))
        assert [row["result"] for row in load_evals(table)] == list(range(300))


def _restarted(sandbox: Sandbox, script: str, table: str, running: list[Any]) -> bool:
    """Start again those that were killed; tell whether all have ended well."""
    for index, instance in enumerate(running):
        if instance.poll() == -signal.SIGKILL:
            running[index] = sandbox.start(script, table)
    return all(instance.poll() == 0 for instance in running)


class TestServer:
    def test_a_restart_costs_a_pause_and_nothing_else(self, sandbox: Sandbox, alone: Server) -> None:
        table = alone.url("sweep")
        instances = [sandbox.start(SLOW, table, "200") for _ in range(4)]
        until(lambda: len(sandbox.calls()) > 40 and len(survey.survey(table).workers) == 4)
        alone.stop(signal.SIGQUIT)  # as `pg_ctl restart -m immediate`
        alone.start()
        for instance in instances:
            sandbox.end(instance)
        rows = load_evals(table)
        assert [row["result"] for row in rows] == list(range(200))
        # A claim whose answer was lost is given back and taken again, which is no loss.
        assert {row["losses"] for row in rows} == {0}
        assert set(calls(sandbox).values()) == {1}

    def test_a_result_is_kept_until_the_server_is_back(self, sandbox: Sandbox, alone: Server) -> None:
        table = alone.url("sweep")
        script = """
import logging
logging.getLogger("speval").addHandler(logging.StreamHandler())
logging.getLogger("speval").addFilter(lambda record: note("kept", record.getMessage()) or True)

def func(x):
    note(x)
    wait_for("stopped")
    return 17

speval(func, [1], sys.argv[1])
"""
        instance = sandbox.start(script, table)
        until(sandbox.calls)
        alone.stop()
        sandbox.touch("stopped")
        until(lambda: "1 finished evaluations are kept in memory" in "".join(sandbox.calls()))
        alone.start()
        sandbox.end(instance)
        (row,) = load_evals(table)
        assert (row["result"], row["attempt"], row["losses"]) == (17, 1, 0)

    def test_who_leaves_tries_again_what_is_refused_for_a_moment(self, server: Server, table: str) -> None:
        db = database(table)
        with job.Space([1]) as space:
            job.populate(db, space, "func")
        worker = job.Worker(db, None, 3)
        worker.exchange(1)
        worker.done.append(job.Outcome(worker.todo.popleft(), "17", None, 1.0, 2.0))
        name = table.rpartition("=")[2]
        for statement in (
            f"CREATE SEQUENCE {name}_ends",  # which counts what is rolled back, too
            f"""CREATE FUNCTION {name}_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('{name}_ends') = 1 THEN RAISE USING ERRCODE = 'deadlock_detected'; END IF;
                RETURN NEW;
            END $$""",
            f"""CREATE TRIGGER refuse BEFORE UPDATE ON {name} FOR EACH ROW
                WHEN (NEW.status = 'completed') EXECUTE FUNCTION {name}_refuse()""",
        ):
            server.execute(statement)
        assert worker.leave() == {"pending": 0, "in_progress": 0, "completed": 1, "failed": 0}
        assert [row["result"] for row in load_evals(table)] == [17]

    def test_connections_that_are_cut_cost_nothing(
        self, sandbox: Sandbox, server: Server, table: str
    ) -> None:
        name = table.partition("table=")[2]
        instances = [sandbox.start(SLOW, f"{table}&application_name={name}", "60") for _ in range(4)]
        cut = 0
        until(lambda: database(table).exists() and len(survey.survey(table).workers) == 4)
        while any(instance.poll() is None for instance in instances):
            cut += len(
                server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", name
                )
            )
            time.sleep(0.5)
        for instance in instances:
            sandbox.end(instance)
        rows = load_evals(table)
        assert cut > 3
        assert [row["result"] for row in rows] == list(range(60))
        assert {row["losses"] for row in rows} == {0}
        assert set(calls(sandbox).values()) == {1}

    def test_a_restart_costs_local_processes_and_who_watches_them_nothing(
        self, sandbox: Sandbox, alone: Server
    ) -> None:
        table = alone.url("sweep")
        instance = sandbox.start(SLOW.replace("sys.argv[1])", "sys.argv[1], n_jobs=3)"), table, "100")
        until(lambda: len(sandbox.calls()) > 20 and len(survey.survey(table).workers) == 3)
        alone.stop()
        alone.start()
        sandbox.end(instance)
        assert {(row["status"], row["losses"]) for row in load_evals(table)} == {("completed", 0)}
        assert set(calls(sandbox).values()) == {1}

    WAITS = """
def func(x):
    note(x, os.getpid())
    wait_for("go")
    return x

"""

    @pytest.mark.parametrize("killed", [1, 3])
    def test_a_process_that_takes_the_place_of_another_waits_until_the_server_is_back(
        self, sandbox: Sandbox, alone: Server, killed: int
    ) -> None:
        table = alone.url("sweep")
        call = "speval(func, range(6), sys.argv[1], n_jobs=3)"
        instance = sandbox.start(SAYS + self.WAITS + call, table)
        until(lambda: len(sandbox.calls()) == 3)
        alone.stop()
        for line in sandbox.calls()[:killed]:
            os.kill(int(line.split()[1]), signal.SIGKILL)
        until(lambda: sandbox.said().count("cannot begin: ") > killed)
        sandbox.touch("go")
        if killed == 1:
            until(lambda: "1 finished evaluations are kept in memory" in sandbox.said())
        alone.start()
        sandbox.end(instance)
        assert [row["result"] for row in load_evals(table)] == list(range(6))
        assert sum(row["losses"] for row in load_evals(table)) == killed

    def test_an_instance_waits_for_it_to_count_what_its_processes_have_done(
        self, sandbox: Sandbox, alone: Server
    ) -> None:
        script = """
from speval.process import jobs
start = jobs.run

def run(*args):
    start(*args)
    note("done")
    wait_for("stopped")

jobs.run = run
print(speval(abs, range(3), sys.argv[1], n_jobs=2))
"""
        instance = sandbox.start(SAYS + script, alone.url("sweep"))
        until(sandbox.calls)
        alone.stop()
        sandbox.touch("stopped")
        until(lambda: "next try in 1 s" in sandbox.said())
        alone.start()
        assert "'completed': 3" in sandbox.end(instance)

    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_an_instance_that_is_started_again_waits_until_the_server_is_back(
        self, sandbox: Sandbox, alone: Server, n_jobs: int
    ) -> None:
        table = alone.url("sweep")
        script = sandbox.path / "script.py"
        # It does not wait at all for one that was never there.
        begin = "from speval import database\ndatabase.AWAY = 0.0\n"
        call = f"speval(func, range(6), {table!r}, n_jobs={n_jobs})"
        script.write_text(PRELUDE + SAYS + begin + self.WAITS + call)
        command = [sys.executable, "-m", "speval", "run", "-n", "2", "--quiet", str(script)]
        run = subprocess.Popen(command, cwd=sandbox.path, stderr=subprocess.DEVNULL, text=True)
        sandbox.instances.append(run)
        until(lambda: len(sandbox.calls()) == 2 * n_jobs)
        alone.stop()
        with open(f"/proc/{run.pid}/task/{run.pid}/children") as children:
            os.kill(int(children.read().split()[0]), signal.SIGKILL)
        until(lambda: "(next try in 2 s)" in sandbox.said())
        sandbox.touch("go")
        until(lambda: "(1 finished evaluations are kept in memory, next try in 1 s)" in sandbox.said())
        alone.start()
        assert run.wait(LIMIT) == 0
        assert [row["result"] for row in load_evals(table)] == list(range(6))

    def test_an_instance_that_starts_says_that_it_waits_for_one_that_is_away(
        self, sandbox: Sandbox, alone: Server
    ) -> None:
        table = alone.url("sweep")
        alone.stop()
        instance = sandbox.start(SAYS + "print(speval(abs, range(3), sys.argv[1]))", table)
        until(lambda: "next try in 2 s" in sandbox.said())
        assert re.match(r".*cannot be used for now .* \(next try in 1 s\)\n", sandbox.said(), re.DOTALL)
        alone.start()
        assert "'completed': 3" in sandbox.end(instance)

    def test_so_does_one_that_finds_a_server_which_is_starting(self, sandbox: Sandbox, alone: Server) -> None:
        table = alone.url("sweep")
        alone.stop(signal.SIGINT)
        standby = pathlib.Path(alone.folder, "data", "standby.signal")
        standby.touch()
        if os.geteuid() == 0:
            shutil.chown(standby, as_user()["user"], as_user()["group"])
        alone.start("hot_standby=off", answers=False)
        instance = sandbox.start(SAYS + "print(speval(abs, range(3), sys.argv[1]))", table)
        until(lambda: "next try in 2 s" in sandbox.said())
        assert re.search("the database system is (starting up|not accepting connections)", sandbox.said())
        alone.stop()
        standby.unlink()
        alone.start()
        assert "'completed': 3" in sandbox.end(instance)

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_ends_the_wait_of_one_that_starts(
        self, sandbox: Sandbox, signum: signal.Signals
    ) -> None:
        instance = sandbox.start(
            SAYS + "speval(abs, [1], sys.argv[1])", "postgresql://u@127.0.0.1:1/d?table=t"
        )
        until(lambda: "next try in 1 s" in sandbox.said())
        sandbox.end_by(instance, signum)

    def test_one_that_stays_away_is_given_up_after_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(where, "AWAY", 1.0)  # in seconds, which no pause here takes
        db, pauses = database("postgresql://u@127.0.0.1:1/d?table=t"), list[float]()
        with pytest.raises(NotWritable, match="Connection refused"):
            insist(db, db.exists, lambda: False, pauses.append)
        assert pauses[:5] == [1, 2, 4, 5, 5]

    @pytest.mark.parametrize("wrong", ["dbname", "role", "password"])
    def test_what_no_wait_would_mend_is_raised_at_once(self, alone: Server, wrong: str) -> None:
        url = alone.url("sweep")
        if wrong == "dbname":
            url = url.replace("/postgres?", "/nowhere?")
        elif wrong == "role":
            url = url.replace("speval@", "nobody@")
        else:
            alone.execute("CREATE ROLE known LOGIN PASSWORD 'right'")
            rules = pathlib.Path(alone.folder, "data", "pg_hba.conf")
            rules.write_text("host all known all scram-sha-256\n" + rules.read_text())
            alone.execute("SELECT pg_reload_conf()")
            url = url.replace("speval@", "known:wrong@")
            until(lambda: not database(url.replace("wrong", "right")).exists())
        pauses = list[float]()
        db = database(url)
        said = {"dbname": "does not exist", "role": "does not exist", "password": "authentication failed"}
        with pytest.raises(NotWritable, match=said[wrong]):
            insist(db, db.exists, lambda: False, pauses.append)
        assert pauses == []

    def test_one_that_is_not_there_is_a_clear_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(where, "AWAY", 0.0)
        with pytest.raises(SpevalError, match=r"cannot be used for now .*Connection refused"):
            speval(abs, [1], "postgresql://u:hunter2@127.0.0.1:1/d?table=t")


class Host(NamedTuple):
    """A host behind a link: what is before a command that is to run there, and our end of the link."""

    command: list[str]
    link: str
    address: str


@pytest.fixture
def host() -> Iterator[Host]:
    """A host of its own, whose names and addresses no other process has."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("root, and the program ip, are needed to make a host")
    name, net = f"speval{os.getpid()}", f"10.77.{os.getpid() // 64 % 256}"
    here, there = f"{net}.{os.getpid() % 64 * 4 + 1}", f"{net}.{os.getpid() % 64 * 4 + 2}"
    lines = f"""netns add {name}
link add {name} type veth peer name eth0 netns {name}
addr add {here}/30 dev {name}
link set {name} up
-n {name} addr add {there}/30 dev eth0
-n {name} link set eth0 up
-n {name} link set lo up"""
    try:
        for line in lines.splitlines():
            subprocess.run(["ip", *line.split()], check=True)
        yield Host(["ip", "netns", "exec", name], name, here)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


class TestNetwork:
    def test_a_host_that_vanishes_is_known_to_be_dead_and_comes_back(
        self, sandbox: Sandbox, alone: Server, host: Host
    ) -> None:
        alone.stop()
        alone.start(address=f"127.0.0.1,{host.address}")
        script = """
def func(x):
    note(os.environ["PLACE"])
    if os.environ["PLACE"] == "there":
        wait_for("back")
    return os.environ["PLACE"]

print(speval(func, range(4), sys.argv[1], max_failures=None)["completed"])
"""
        table = alone.url("sweep")
        (sandbox.path / "sweep.py").write_text(PRELUDE + script)
        there = subprocess.Popen(
            [*host.command, *PYTHON[:1], "sweep.py", table.replace("127.0.0.1", host.address)],
            cwd=sandbox.path,
            env={**os.environ, "PLACE": "there"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        sandbox.instances.append(there)
        until(sandbox.calls)
        subprocess.run(["ip", "link", "set", host.link, "down"], check=True)
        here = sandbox.run('os.environ["PLACE"] = "here"\n' + script, table)
        assert here.splitlines()[-1] == "4"
        assert [(row["result"], row["losses"]) for row in load_evals(table)] == [("here", 1)] + [
            ("here", 0)
        ] * 3
        subprocess.run(["ip", "link", "set", host.link, "up"], check=True)
        sandbox.touch("back")
        assert sandbox.end(there).splitlines()[-1] == "4"
        assert collections.Counter(sandbox.calls()) == {"there": 1, "here": 4}
        assert load_evals(table)[0]["result"] == "here"


class TestProxy:
    def test_one_that_shares_connections_is_refused(self, server: Server) -> None:
        program = shutil.which("pgbouncer")
        if program is None:
            pytest.skip("pgbouncer is not installed")
        port = free_port()
        folder = pathlib.Path(tempfile.mkdtemp(prefix="speval-proxy-"))  # which another user may enter
        (folder / "ini").write_text(
            f"""[databases]
postgres = host=127.0.0.1 port={server.port} user=speval
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
ignore_startup_parameters = extra_float_digits
"""
        )
        for path in folder, folder / "ini":
            path.chmod(0o755)
        proxy = subprocess.Popen(
            [program, str(folder / "ini")], stderr=subprocess.PIPE, text=True, **as_user()
        )
        url = server.url("t").replace(str(server.port), str(port))

        def said() -> str:
            with pytest.raises(SpevalError) as caught:
                speval(abs, [1], url)
            return "" if "refused" in str(caught.value) else str(caught.value)

        try:
            assert "is a proxy that shares connections" in until(said)
        finally:
            proxy.kill()
            proxy.communicate(timeout=LIMIT)
            shutil.rmtree(folder)


class TestFunc:
    def test_it_may_close_all_descriptors_and_open_its_own(self, sandbox: Sandbox, table: str) -> None:
        script = """
def func(x):
    os.closerange(3, 1000)
    files = [open(f"{x}.{n}", "wb", 0) for n in range(20)]
    time.sleep(0.8)  # the lock has to be looked after meanwhile
    return all(os.fstat(file.fileno()).st_size == 0 for file in files)

speval(func, range(3), sys.argv[1])
"""
        sandbox.run(script, table)
        assert [(row["result"], row["losses"]) for row in load_evals(table)] == [(True, 0)] * 3
        assert not any(file.stat().st_size for file in sandbox.path.glob("[0-9].*"))

    def test_it_may_fork_whatever_the_child_does(self, sandbox: Sandbox, table: str) -> None:
        script = """
import gc

def func(x):
    note(x)
    child = os.fork()
    if child == 0:
        gc.collect()
        (os._exit if x % 2 else sys.exit)(count_evals(sys.argv[1])["in_progress"] == 0)
    return os.waitpid(child, 0)[1]

speval(func, range(10), sys.argv[1])
print(count_evals(sys.argv[1])["completed"])
"""
        assert sandbox.run(script, table).endswith("10\n")
        assert [(row["result"], row["losses"]) for row in load_evals(table)] == [(0, 0)] * 10
        assert set(calls(sandbox).values()) == {1}

    def test_it_may_fork_while_the_server_is_silent(self, sandbox: Sandbox, alone: Server) -> None:
        script = """
import psycopg

def func(x):
    note("pid", *[pid for (pid,) in psycopg.connect(own).execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'speval'")])
    connect, connecting = psycopg.connect, threading.Event()
    psycopg.connect = lambda *args, **more: connecting.set() or connect(*args, **more)
    connecting.wait()
    child = os.fork()
    if child == 0:
        os._exit(0)
    note("forked")
    return os.waitpid(child, 0)[1]

own = sys.argv[1].partition("?")[0]
speval(func, [1], sys.argv[1])
"""
        table = alone.url("sweep", connect_timeout="2")
        instance = sandbox.start(script, table)
        until(sandbox.calls)
        with alone.deaf():
            backend = int(sandbox.calls()[0].split()[1])
            os.kill(backend, signal.SIGTERM)  # as pg_terminate_backend does
            until(lambda: "forked" in sandbox.calls())
        sandbox.end(instance)
        assert [(row["result"], row["losses"]) for row in load_evals(table)] == [(0, 0)]

    def test_its_times_are_by_the_clock_of_the_server(self, sandbox: Sandbox, table: str) -> None:
        script = """
clock = time.time
time.time = lambda: clock() + 100_000
speval(abs, [1], sys.argv[1])
"""
        began = time.time()
        sandbox.run(script, table)
        (row,) = load_evals(table)
        assert began - 1 < row["started"] <= row["updated"] < time.time() + 1

    @pytest.mark.parametrize("limit", ["idle_session_timeout", "statement_timeout"])
    def test_limits_that_a_server_sets_do_not_end_its_connection(
        self, sandbox: Sandbox, table: str, limit: str
    ) -> None:
        script = """
from speval.database import database
known = database(sys.argv[1])

def connection():
    with known.read() as conn:
        return conn.execute("SELECT pg_backend_pid(), pg_sleep(0.3)").fetchall()[0][0]

def func(x):
    before = connection()
    time.sleep(0.3)
    return before == connection()

speval(func, [1], known)
"""
        sandbox.run(script, f"{table}&options=-c%20{limit}%3D100")
        assert [row["result"] for row in load_evals(table)] == [True]

    def test_text_that_a_server_does_not_take_costs_nothing(self, table: str) -> None:
        def func(x: int) -> Any:
            if x == 1:
                raise ValueError("a\0b")
            return {"a\0b\ud800": "ä\0"}

        speval(func, {"\0": 0, "%s :now ?": 1}, table)
        first, second = load_evals(table)
        assert first["result"] == {"a\0b\ud800": "ä\0"}
        assert second["name"] == "%s :now ?"
        assert second["error"].endswith("ValueError: a\\x00b\n")

    def test_it_may_leave_more_descriptors_open_than_select_takes(self, sandbox: Sandbox, table: str) -> None:
        script = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))
kept = [open(os.devnull) for _ in range(2000)]
print(speval(abs, range(3), sys.argv[1])["completed"])
"""
        assert sandbox.run(script, table) == "3\n"

    def test_what_a_handler_raises_in_mid_transaction_leaves_no_answer_behind(
        self, sandbox: Sandbox, table: str
    ) -> None:
        script = """
class Alarm(Exception):
    pass

def ring(*args):
    raise Alarm

db = sys.argv[1]
speval(abs, range(3), db)
signal.signal(signal.SIGALRM, ring)
from speval.database import database
known = database(db)
for number in range(200):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + number * 0.00002)
        count_evals(known)
        time.sleep(0.01)
    except (Alarm, SpevalError):
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert count_evals(known)["completed"] == 3
"""
        sandbox.run(script, table)

    def test_databases_that_are_used_no_more_hold_no_connection(self, sandbox: Sandbox, table: str) -> None:
        script = """
import gc
from speval.database import database
from speval.process import forks
gc.disable()
speval(abs, range(3), sys.argv[1] + "&application_name=" + sys.argv[2])
for _ in range(20):
    count_evals(sys.argv[1] + "&application_name=" + sys.argv[2])
with database(sys.argv[1]).read() as conn:
    asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"
    print(conn.execute(asked, {"name": sys.argv[2]}).fetchall()[0][0], len(forks._used))
"""
        assert sandbox.run(script, table, table[-20:]) == "0 1\n"


class TestProcesses:
    def test_local_ones_share_the_work(self, sandbox: Sandbox, table: str) -> None:
        sandbox.run("print(speval(abs, range(50), sys.argv[1], n_jobs=3))", table)
        assert [row["result"] for row in load_evals(table)] == list(range(50))

    def test_one_that_dies_is_replaced_and_how_it_died_is_stored(self, sandbox: Sandbox, table: str) -> None:
        script = """
def func(x):
    if x == 3 and not os.path.exists("died"):
        open("died", "w")
        os.write(2, b"last words")
        os.kill(os.getpid(), signal.SIGSEGV)
    return x

speval(func, range(10), sys.argv[1], n_jobs=2)
"""
        sandbox.run(script, table)
        row = load_evals(table)[3]
        assert (row["result"], row["losses"]) == (3, 1)


class TestUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://user:hunter2@127.0.0.1:1/db?table=t",
            "postgresql://user@127.0.0.1:1/db?table=t&password=hunter2",
            "postgres://user:hunter2@127.0.0.1:1/db",
        ],
    )
    def test_a_password_is_never_shown(self, url: str) -> None:
        db = database(url)
        with pytest.raises(SpevalError) as caught:
            load_evals(url)
        assert "hunter2" not in f"{caught.value}{db.path}{db!r}"
        assert db.name == url

    def test_nor_where_the_url_is_wrong(self) -> None:
        with pytest.raises(ValueError, match="none that libpq knows") as caught:
            load_evals("postgresql://user:hunter2@host:port/db?nonsense=hunter2")
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize(
        "url", ["postgresql://user:hun@ter2@host/d", "postgresql://user:hun/ter2@host/d"]
    )
    def test_nor_where_a_password_is_not_percent_encoded(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"has to be percent-encoded|none that libpq knows") as caught:
            database(url)
        assert "ter2" not in str(caught.value)

    def test_nor_in_the_command_by_which_to_go_on(self, sandbox: Sandbox, table: str) -> None:
        table = table.replace("speval@", "speval:hunter2@")
        script = (
            'def func(x):\n    note(x)\n    wait_for("over")\nspeval(func, [1, 2], sys.argv[1], n_jobs=2)'
        )
        path = sandbox.path / "sweep.py"
        path.write_text(PRELUDE + script)
        instance = subprocess.Popen(
            [*PYTHON[:1], str(path), table], cwd=sandbox.path, stderr=subprocess.PIPE, text=True
        )
        until(sandbox.calls)
        instance.send_signal(signal.SIGINT)
        _, said = instance.communicate(timeout=LIMIT)
        assert "to go on: " in said
        assert "hunter2" not in said

    @pytest.mark.parametrize("name", ["", "x" * 51])
    def test_a_name_that_no_table_can_have_is_refused(self, server: Server, name: str) -> None:
        with pytest.raises(ValueError, match="1 to 50 bytes"):
            database(server.url(name))

    def test_a_name_is_quoted(self, server: Server) -> None:
        url = server.url("%22; drop table x --%27 %25s :now ä")
        speval(abs, [1, 2], url)
        assert [row["result"] for row in load_evals(url)] == [1, 2]
        names = [name for (name,) in server.execute("SELECT relname FROM pg_class WHERE relkind = 'r'")]
        assert {"\"; drop table x --' %s :now ä" + more for more in ("", "_workers", "_spaces")} <= set(names)

    def test_without_psycopg_it_says_what_is_needed(self, sandbox: Sandbox) -> None:
        script = """
sys.modules["psycopg"] = None
try:
    load_evals("postgresql://localhost/db?table=t")
except SpevalError as exc:
    print(exc)
"""
        assert "needs the package psycopg" in sandbox.run(script)
        script = """
from speval.cli import main
sys.modules["psycopg"] = None
print([main([command, "postgresql://localhost/db?table=t"]) for command in ("status", "doctor")])
"""
        assert sandbox.run(script).endswith("[2, 2]\n")

    def test_what_libpq_knows_from_elsewhere_is_used(self, server: Server, sandbox: Sandbox) -> None:
        service = sandbox.path / "service"
        service.write_text(f"[lab]\nhost=127.0.0.1\nport={server.port}\nuser=speval\ndbname=postgres\n")
        script = f"""
os.environ["PGSERVICEFILE"] = {str(service)!r}
os.environ["PGSERVICE"] = "lab"
print(speval(abs, [1], "postgresql://?table=of_a_service")["completed"])
"""
        assert sandbox.run(script) == "1\n"


class TestTables:
    @pytest.mark.parametrize("ask", [load_evals, count_evals, reset_evals, lambda url: list(iter_evals(url))])
    def test_what_is_not_there_is_not_found_and_not_made(self, server: Server, table: str, ask: Any) -> None:
        with pytest.raises(FileNotFoundError):
            ask(table)
        assert not database(table).exists()

    def test_a_table_of_something_else_is_left_alone(self, server: Server) -> None:
        server.execute("CREATE TABLE IF NOT EXISTS accounts (id INTEGER)")
        for ask in (load_evals, lambda url: speval(abs, [1], url)):
            with pytest.raises(SpevalError, match="is a table of something else"):
                ask(server.url("accounts"))

    def test_one_of_a_newer_speval_is_left_alone(self, server: Server, table: str) -> None:
        speval(abs, [1], table)
        name = table.partition("table=")[2]
        server.execute(f"COMMENT ON TABLE {name} IS 'evaluations of speval, format 2'")
        with pytest.raises(SpevalError, match="use the newer one"):
            load_evals(table)

    def test_one_that_is_dropped_in_use_is_an_error(
        self, server: Server, sandbox: Sandbox, table: str
    ) -> None:
        instance = sandbox.start(SLOW, table, "1000")
        until(sandbox.calls)
        name = table.partition("table=")[2]
        server.execute(f"DROP TABLE {name}, {name}_names, {name}_workers, {name}_spaces")
        assert "was deleted while it was in use" in sandbox.end(instance, 1)
        with pytest.raises(FileNotFoundError):
            load_evals(table)

    def test_instances_that_start_at_once_make_them_once(self, sandbox: Sandbox, table: str) -> None:
        instances = [sandbox.start("speval(abs, range(20), sys.argv[1])", table) for _ in range(8)]
        for instance in instances:
            sandbox.end(instance)
        assert [row["result"] for row in load_evals(table)] == list(range(20))

    def test_a_database_in_another_encoding_is_refused(self, server: Server) -> None:
        server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
        with pytest.raises(SpevalError, match="not in UTF-8"):
            speval(abs, [1], server.url("t").replace("/postgres?", "/latin?"))


class TestScale:
    def test_a_table_that_was_small_is_used_by_its_indexes(self, server: Server, table: str) -> None:
        """Or what a worker executes would become slow with each row that is added, until the next ANALYZE."""
        speval(abs, range(30), table)
        sweep = table.partition("table=")[2]
        for name in (sweep, f"{sweep}_names", f"{sweep}_workers"):
            server.execute(f"VACUUM ANALYZE {name}")
        facts = {"first": 0, "room": 10, "worker": 1, "last": 5, "ids": [1, 2], "now": 0.0}
        db = database(table)
        with db.write() as conn:
            for statement in (
                *(job.FIND_PENDING, job.FIND_AND_CLAIM, job.CLAIM, job.FIRST_PENDING, job.COUNT_SOME_PENDING),
                *(
                    job.RELEASE,
                    job.CLAIMS_OF,
                    job.RECLAIM,
                    job.IS_REFUSED,
                    workers.OLDEST_CLAIM,
                    reading.LEFT,
                ),
                reading.LOOKUP.format("'0', '1'"),
            ):
                known = {
                    "id": 1,
                    "attempt": 1,
                    "max_attempts": 3,
                    "enough": 9,
                    "line": "",
                    "how": "",
                    "completed": 1,
                }
                plan = " ".join(line for (line,) in conn.execute(f"EXPLAIN {statement}", {**known, **facts}))
                assert "Index" in plan
                assert not re.search("Seq Scan|Hash|Merge", plan), f"{statement}\n{plan}"

    def test_large_results_are_not_all_in_memory_at_once(self, sandbox: Sandbox, table: str) -> None:
        script = """
import resource

speval(lambda x: "x" * 1_000_000, range(60), sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(len(row["result"]) for row in iter_evals(sys.argv[1])) == 60_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""
        assert float(sandbox.run(script, table).splitlines()[-1]) < 50  # MB

    def test_who_finds_only_what_somebody_has_locked_is_not_busy_with_that(
        self, server: Server, table: str
    ) -> None:
        db = database(table)
        with job.Space([1]) as space:
            job.populate(db, space, "func")
        slept: list[float] = []
        with server.connect() as conn:
            conn.execute("BEGIN")
            conn.execute(f"SELECT 1 FROM {table.partition('table=')[2]} FOR UPDATE")

            def sleep(seconds: float) -> None:
                slept.append(seconds)
                if len(slept) == 10:
                    conn.execute("ROLLBACK")

            worker = job.Worker(db, None, 3, sleep=sleep)
            exchanges, exchange = [0], worker.exchange
            worker.exchange = lambda *args: exchanges.append(0) or exchange(*args)
            assert worker.work(abs, None, True)["completed"] == 1
        assert slept[9] >= db.poll
        assert len(exchanges) < 15

    def test_who_looks_on_in_another_thread_gets_what_is_his(self, table: str) -> None:
        db = database(table)
        with job.Space(range(300)) as space:
            job.populate(db, space, "func")
        worker = job.Worker(db, None, 1)  # which claims each alone
        over, seen = threading.Event(), []

        def look() -> None:
            while not over.is_set():
                counts, live = workers.how_far(db)
                seen.append((sum(counts.values()), live <= 1))

        others = [threading.Thread(target=look) for _ in range(2)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for other in others:
                other.start()
            worker.work(lambda x: x, None, True)
        finally:
            sys.setswitchinterval(interval)
            over.set()
            for other in others:
                other.join()
        assert set(seen) == {(300, True)}
        assert [row["result"] for row in load_evals(table)] == list(range(300))

    def test_who_lives_is_known_after_the_connection_of_who_asks_broke(
        self, server: Server, sandbox: Sandbox, table: str
    ) -> None:
        instance = sandbox.start(SLOW, table, "100")
        until(sandbox.calls)
        db = database(table)
        assert workers.how_far(db)[1] == 1
        with db.read() as conn:
            ((pid,),) = conn.execute("SELECT pg_backend_pid()")
        server.execute("SELECT pg_terminate_backend(%s)", pid)
        until(lambda: server.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid) == [])
        assert workers.how_far(db)[1] == 1
        instance.kill()


class TestCommands:
    def run(self, sandbox: Sandbox, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*PYTHON[:1], "-m", "speval", *words],
            check=False,
            cwd=sandbox.path,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def test_all_of_them_work_and_show_no_password(self, sandbox: Sandbox, table: str) -> None:
        table = table.replace("speval@", "speval:hunter2@")
        speval(lambda x: {"loss": 1 / x}, range(5), table)
        said = [
            self.run(sandbox, "status", table, "--best", "loss", code=1),
            self.run(sandbox, "results", table, "--sort", "loss"),
            self.run(sandbox, "errors", table, code=1),
            self.run(sandbox, "errors", table, "0", code=1),
            self.run(sandbox, "retry", table),
            self.run(sandbox, "doctor", table),
        ]
        assert "4 completed" in said[0]
        assert said[4] == "1 evaluation is pending again\n"
        assert "hunter2" not in "".join(said)

    def test_instances_that_run_starts_are_shown(self, sandbox: Sandbox, table: str) -> None:
        (sandbox.path / "sweep.py").write_text(
            f"from speval import speval\nspeval(abs, range(30), {table!r})\n"
        )
        printed = self.run(sandbox, "run", "-n", "3", "sweep.py")
        assert "30/30" in printed
        assert count_evals(table)["completed"] == 30
