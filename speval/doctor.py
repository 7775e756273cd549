"""Do locks work in a directory? Tried by two processes there, or between hosts that mount it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .speval import CURRENT, Database, Locks, Signals, SpevalError, _host, _mount

__all__ = ["Finding", "examine", "hold"]

WORKER = 12345  # the id whose byte is locked; a real worker's is random
HELD = ".speval-doctor"  # beside it, "-lock", is what is locked; it counts as long as somebody holds
BEAT = 0.5  # seconds from one count to the next
PATIENCE = 10.0  # seconds in which another process has to do what it should
LITTLE = 100_000_000  # bytes left on the disk that are too few


class Finding(NamedTuple):
    """One thing that was looked at: what, whether it is well, and what was found."""

    what: str
    good: bool
    found: str


def examine(path: str) -> Iterator[Finding]:
    """Look at a directory, or at a database and its directory, and yield one finding after the other.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    """
    path = os.path.realpath(path)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    os.stat(folder)
    yield Finding("Python", True, f"{sys.version.split()[0]} on {_host()}")
    yield Finding("SQLite", sqlite3.sqlite_version_info >= (3, 26), sqlite3.sqlite_version)
    yield _mounted(folder)
    free = shutil.disk_usage(folder).free
    yield Finding("space left", free >= LITTLE, f"{free / 1e9:.1f} GB")
    if os.access(folder, os.W_OK | os.X_OK):
        try:
            yield _between_processes(folder)
            yield from _between_hosts(folder)
        except OSError as exc:
            yield Finding("locks", False, f"cannot be tried: {exc}")
    else:
        yield Finding("permission", False, f"you may not write to {folder}")
    if os.path.isfile(path):
        yield from _database(path)
    elif path != folder:
        yield Finding("database", False, f"there is no file {path}")


def _mounted(folder: str) -> Finding:
    kind, shared, local = _mount(os.path.join(folder, ""))
    if local:
        return Finding("mount", False, f"{kind}, whose locks stay local to each host ({local})")
    if shared:
        return Finding("mount", True, f"{kind}; try it between hosts: `speval doctor --hold` on one of them")
    return Finding("mount", True, kind or "unknown")


def _between_processes(folder: str) -> Finding:
    """See the lock of another process, kill that, and see that the lock is gone."""
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".speval-doctor-") as ours,
        subprocess.Popen(
            [sys.executable, "-m", "speval", "doctor", "--hold", ours],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as holder,
    ):
        try:
            locks = Locks(os.path.join(ours, HELD))
            if not _until(lambda: _count(ours) is not None or holder.poll() is not None):
                return Finding("locks", False, "another process could not take one in time")
            if holder.poll() is not None and holder.stderr is not None:
                why = holder.stderr.read().strip().rpartition("speval: ")[2]
                return Finding("locks", False, f"cannot be held: {why}")
            if _is_free(locks):
                return Finding("locks", False, "the lock of one process is not seen by another")
            holder.kill()
            holder.wait()
            if not _until(lambda: _is_free(locks)):
                return Finding("locks", False, "the lock of a killed process stays: set a timeout")
        finally:
            holder.kill()
    return Finding("locks", True, "seen by another process, and gone when theirs is killed")


def _between_hosts(folder: str) -> Iterator[Finding]:
    """See whether somebody who holds a lock here, on another host, is seen to do so."""
    before = _count(folder)
    if before is None:
        return
    locks = Locks(os.path.join(folder, HELD))
    held = _until(lambda: _count(folder) != before, 10 * BEAT)
    free = not os.path.exists(locks.path) or _is_free(locks)
    who = f"`doctor --hold`, {before.partition(' ')[2]}"
    if held:
        what = (
            f"of {who}, are not seen here: use one host, or another mount" if free else f"of {who}, are seen"
        )
        yield Finding("locks", not free, what)
    elif free:
        _clear(os.path.join(folder, HELD))
        yield Finding("locks", True, f"of {who}, which was killed, are gone")
    else:
        yield Finding("locks", False, f"of {who}, which counts no more, stay: set a timeout")


def _is_free(locks: Locks) -> bool:
    with locks.opened(create=False):
        return locks.is_dead(WORKER)


def _count(folder: str) -> str | None:
    """Return what `hold` has written last, None if it has never been there."""
    with contextlib.suppress(OSError), open(os.path.join(folder, HELD)) as file:
        return file.read() or None
    return None


def hold(folder: str, wait: Callable[[float], object] = time.sleep) -> None:
    """Hold a lock in a directory until interrupted, and count, for `examine` on another host.

    Raises
    ------
    SpevalError
        If there are no locks.
    """
    if not os.path.isdir(folder):
        folder = os.path.dirname(os.path.realpath(folder))
    name = os.path.join(os.path.realpath(folder), HELD)
    locks = Locks(name)
    if os.path.exists(locks.path) and not _is_free(locks):
        raise SpevalError(f"somebody holds it already: {(_count(folder) or '').partition(' ')[2]}")
    count = 0
    try:
        with open(name, "w"):  # whose mode the file of locks gets
            locks.add(WORKER)
        with locks.opened(create=True):
            if locks.blind:
                raise SpevalError(f"there are no locks in {folder}: set a timeout")
        while True:
            count += 1
            with open(name + ".new", "w") as file:
                file.write(f"{count} process {os.getpid()} on {_host()}")
            os.replace(name + ".new", name)
            wait(BEAT)
    finally:
        _clear(name)


def _clear(name: str) -> None:
    for left in name, name + ".new", name + "-lock":
        with contextlib.suppress(OSError):
            os.unlink(left)


def _until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _database(path: str) -> Iterator[Finding]:
    """Check a copy of a database, which takes long: so nobody waits for that."""
    db = Database(path)
    try:
        with Signals(), db.read() as conn:
            current = db.format(conn) == CURRENT
    except SpevalError as exc:
        yield Finding("database", False, str(exc))
        return
    yield Finding("format", True, "of this version" if current else "of speval 0.1.1, or empty")
    with tempfile.TemporaryDirectory(prefix="speval-doctor-") as folder:
        copy = os.path.join(folder, "copy.db")
        with contextlib.closing(sqlite3.connect(copy)) as target:
            try:
                with Signals(), db.read() as conn:
                    conn.backup(target)
                found = [line for (line,) in target.execute("PRAGMA integrity_check(3)").fetchall()]
            except (sqlite3.Error, SpevalError) as exc:
                found = [str(exc)]
                if shutil.disk_usage(folder).free < os.path.getsize(path):
                    found = [f"not done: no room for a copy in {tempfile.gettempdir()}, set TMPDIR"]
    yield Finding("integrity_check", found == ["ok"], "; ".join(found))
