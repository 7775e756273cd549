"""Instances for the tests: real processes, in a directory of their own, none of which outlives its test."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import os
import pathlib
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from nursery import LIMIT, Instance, Nursery, is_of_coverage

from speval import load_evals

if TYPE_CHECKING:
    from server import Server

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Hundreds of processes are started. So they are forked where speval is imported, or find it compiled, and do
# not look through site-packages, which takes longer than all else (but for coverage, which is there).
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
MEASURED = any(map(is_of_coverage, os.environ))
PYTHON = [sys.executable] if MEASURED else [sys.executable, "-S"]
# These show nothing of the core that others do not, and to measure them takes longer than to run them.
UNMEASURED = ("cli", "damage", "examples", "launchers", "notebook", "readme", "state_machine", "stress")
# Their thousands of commits need not reach a disk: nothing here outlives a crash of the machine.
MEMORY = "/dev/shm"
ROOM = 2_000_000_000  # bytes, some six times what the tests leave
with contextlib.suppress(OSError):
    if shutil.disk_usage(MEMORY).free > ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # or it warns, in versions for Python 3.9

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what is to run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # and so does nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

PRELUDE = f"""
import os, signal, sys, threading, time
from speval import *


def note(*words):
    with open("calls", "ab", 0) as calls:
        calls.write((" ".join(map(str, words)) + "\\n").encode())


def wait_for(name):
    end = time.monotonic() + {LIMIT}
    while not os.path.exists(name):
        if time.monotonic() > end:
            os._exit(99)
        time.sleep(0.005)

"""

# Waits for 1000 s, also if a signal comes in the first tenth of a second: Python calls its handler before the
# next bytecode, and there is none before the wait.
MISS_A_WAKEUP = (
    "from functools import partial; from hashlib import pbkdf2_hmac; list(map(partial.__call__, ("
    "partial(pbkdf2_hmac, 'sha256', b'', b'', 400_000), partial(time.sleep, 1000))))"
)


# What an instance logs also goes to a file, where a test finds it at once.
SAYS = """
import logging
logging.getLogger("speval").addHandler(logging.StreamHandler())
logging.getLogger("speval").addHandler(logging.FileHandler("said"))
"""


def until(condition: Callable[[], Any]) -> Any:
    """Wait until `condition` returns something true, and return that."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < LIMIT:
        value = condition()
        if value:
            return value
        time.sleep(min(max(waited / 10, 0.002), 0.05))
    raise AssertionError("waited in vain")


def state(pid: int) -> str:
    """Return the letter of the kernel for what a process does, "T" if it is stopped."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def has_signal(pid: int, mask: str, signum: int) -> bool:
    """Return whether a mask in /proc has a signal: SigCgt (has a handler), SigBlk, ShdPnd (not delivered)."""
    with open(f"/proc/{pid}/status") as lines:
        (found,) = (line.split()[1] for line in lines if line.startswith(mask))
    return bool(int(found, 16) >> (signum - 1) & 1)


def is_locked(fname: str, byte: int) -> bool:
    """Tell whether another open file has a lock on a byte of the file."""
    with open(fname, "r+b") as file:
        asked = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def fill(disk: pathlib.Path) -> pathlib.Path:
    """Fill a small disk; return the file to delete."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "ab", 0) as file:
        while True:
            file.write(bytes(1024))
    return ballast


class Sandbox:
    """A directory in which instances run, with the file of calls that they write."""

    def __init__(self, path: pathlib.Path, nursery: Nursery) -> None:
        self.path = path
        self._nursery = nursery
        self.instances: list[Instance | subprocess.Popen[str]] = []

    def start(self, code: str, *args: str, measured: bool = True) -> Instance | subprocess.Popen[str]:
        """Start an instance of a script; it has what PRELUDE defines.

        One that is interrupted at any moment is not measured by coverage, whose own locks would hang.
        """
        script = self.path / f"script_{len(self.instances)}.py"
        script.write_text(PRELUDE + code)
        env = {k: v for k, v in os.environ.items() if measured or not is_of_coverage(k)}
        instance = self._nursery.start(script, *args, env=env)
        self.instances.append(instance)
        return instance

    def run(self, code: str, *args: str) -> str:
        """Run an instance to its good end; return what it printed."""
        return self.end(self.start(code, *args))

    @staticmethod
    def end(instance: Instance | subprocess.Popen[str], returncode: int = 0) -> str:
        """Wait until an instance ends as it should; return what it printed."""
        output, _ = instance.communicate(timeout=LIMIT)
        assert instance.returncode == returncode, output
        return output

    @staticmethod
    def end_by(instance: Instance, how: signal.Signals) -> str:
        """End an instance by a signal, and wait until it has heeded it; return what it printed."""
        instance.send_signal(how)
        return Sandbox.end(instance, -how)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the database locked in the block, longer than any instance does."""
        with contextlib.closing(sqlite3.connect(self.db, isolation_level=None)) as conn:
            conn.execute("BEGIN EXCLUSIVE")
            yield
            conn.execute("ROLLBACK")

    @property
    def db(self) -> str:
        return str(self.path / "evals.db")

    def touch(self, name: str) -> None:
        (self.path / name).touch()

    def calls(self) -> list[str]:
        """Return the lines that instances have noted."""
        file = self.path / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def said(self) -> str:
        """Return what instances that begin with `SAYS` have logged."""
        file = self.path / "said"
        return file.read_text() if file.exists() else ""

    def column(self, key: str) -> list[Any]:
        return [row[key] for row in load_evals(self.db)]

    def close(self) -> None:
        for instance in self.instances:
            if instance.poll() is None:
                os.kill(instance.pid, signal.SIGKILL)
                os.kill(instance.pid, signal.SIGCONT)
            with contextlib.suppress(ValueError):  # its output was read before
                print(
                    instance.args, instance.communicate(timeout=LIMIT)[0]
                )  # pytest shows it if a test fails


def pytest_collection_finish() -> None:
    if hasattr(gc, "freeze"):  # PyPy has none
        # What has been imported by now stays: no need to look at it again, nor to copy it in forks.
        gc.freeze()


@pytest.fixture(autouse=True)
def _unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not MEASURED or request.path.stem.partition("_")[2] not in UNMEASURED:
        yield
        return
    import coverage

    for name in filter(is_of_coverage, list(os.environ)):
        monkeypatch.delenv(name)
    measure = coverage.Coverage.current()
    assert measure is not None
    measure.stop()
    yield
    measure.start()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with contextlib.closing(Nursery()) as nursery:
        yield nursery


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A PostgreSQL server, of all processes in which tests run."""
    from server import program, shared

    try:
        program("initdb")
    except FileNotFoundError as exc:
        pytest.skip(f"{exc}: the tests of a server are left out")
    folder = tmp_path_factory.getbasetemp()
    with shared(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder, until) as server:
        yield server


@pytest.fixture
def table(server: Server, request: pytest.FixtureRequest) -> str:
    """The URL of a table that is not there yet."""
    return server.url(f"t{hashlib.md5(request.node.nodeid.encode()).hexdigest()}")


@pytest.fixture
def sandbox(tmp_path: pathlib.Path, nursery: Nursery) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path, nursery)
    try:
        yield sandbox
    finally:
        sandbox.close()


@pytest.fixture
def small_disk(sandbox: Sandbox) -> Iterator[pathlib.Path]:
    disk = sandbox.path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        sandbox.close()
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def public() -> Iterator[pathlib.Path]:
    """A directory for two users."""
    if os.geteuid() != 0:
        pytest.skip("two users are needed, and root to be both")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        yield pathlib.Path(directory)
