"""Do locks work in a directory? Tried by two processes there, or between hosts that mount it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..database import database, is_url
from ..database.locks import Locks
from ..database.sqlite import Sqlite
from ..errors import SpevalError
from ..process.background import notice
from ..process.machine import host, mount_of, process
from ..process.signals import Signals

__all__ = ["Finding", "examine", "hold", "lost_locks"]

WORKER = 12345  # the id whose byte is locked; a real worker's is random
HELD = ".speval-doctor"  # beside it, "-lock", is what is locked; it counts as long as somebody holds
BEAT = 0.5  # seconds from one count to the next
START = 300.0  # seconds, at most, in which a process starts and gets a lock: machine and mount may be slow
# Seconds in which a lock that was given up is gone, and a living process counts. A server that has started
# again does nothing for anybody for up to 90 s, and what a host sees of another may be a minute old.
PATIENCE, NETWORK_PATIENCE = 10.0, 120.0
LITTLE = 100_000_000  # bytes left on the disk that are too few
RECOVER = "/sys/module/nfs/parameters/recover_lost_locks"


class Finding(NamedTuple):
    """One thing that was looked at: what, whether it is well, and what was found."""

    what: str
    good: bool
    found: str


def examine(path: str) -> Iterator[Finding]:
    """Look at a directory, a database and its directory, or a server; yield one finding after the other.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    """
    if is_url(path):
        server: Any = database(path)
        yield Finding("Python", True, f"{sys.version.split()[0]} on {host()}")
        yield from itertools.starmap(Finding, server.examine())
        return
    path = os.path.realpath(path)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    os.stat(folder)
    yield Finding("Python", True, f"{sys.version.split()[0]} on {host()}")
    yield Finding("SQLite", sqlite3.sqlite_version_info >= (3, 26), sqlite3.sqlite_version)
    yield _mounted(folder)
    yield from lost_locks(os.path.join(folder, ""))
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
    mount = mount_of(os.path.join(folder, ""))
    if mount.local_locks:
        found = f"{mount.kind}, whose locks stay local to each host ({mount.local_locks})"
        return Finding("mount", False, found)
    if mount.is_network:
        return Finding(
            "mount", True, f"{mount.kind}; try it between hosts: `speval doctor --hold` on one of them"
        )
    return Finding("mount", True, mount.kind or "unknown")


NFS_3 = (
    "locks are lost without a word when the server's lock service starts again, and those of a host that dies"
    " may stay: prefer vers=4.2, and set a timeout"
)
NFS_4 = (
    "a server that forgets its clients, or a partition longer than its lease (90 s by default), takes the"
    " locks; workers take them again at their next transaction, and what ran is evaluated again"
)
RECOVERED = (
    "recover_lost_locks is Y: the kernel takes lost locks again that others may have had meanwhile, which can"
    " damage the database: set it to N, its default"
)


def lost_locks(path: str, table: str = "/proc/self/mounts", recover: str = RECOVER) -> Iterator[Finding]:
    """Say what may take the locks of the living on NFS, and keep those of the dead."""
    mount = mount_of(path, table)
    if not mount.kind.startswith("nfs"):
        return
    version = next((o for o in mount.options if o.startswith("vers=")), f"vers={mount.kind[3:]}")
    if not version.startswith("vers=4"):
        yield Finding("NFS", True, NFS_3)
    elif _contents(recover).strip() == "Y":
        yield Finding("NFS", False, RECOVERED)
    else:
        yield Finding("NFS", True, NFS_4)


def _contents(name: str) -> str:
    """Return what is in a small file, "" if it cannot be read."""
    with contextlib.suppress(OSError), open(name, errors="backslashreplace") as file:
        return file.read()
    return ""


def _patience(folder: str) -> float:
    return NETWORK_PATIENCE if mount_of(os.path.join(folder, "")).is_network else PATIENCE


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
            return _seen_and_gone(ours, holder)
        finally:
            holder.kill()


def _seen_and_gone(folder: str, holder: subprocess.Popen[str]) -> Finding:
    """Try the lock of a process; only what was seen of it counts against the locks."""
    locks = Locks(os.path.join(folder, HELD))
    asked = "a process that was to hold a lock"

    def has_begun() -> bool:
        return _count(folder) is not None or holder.poll() is not None

    if not _until(has_begun, START, f"{asked} to start"):
        return Finding("answer", False, f"within {START:.0f} s from {asked}: try it again, or elsewhere")
    free = _is_free(locks)
    if holder.poll() is not None:
        _, said = holder.communicate()
        if holder.returncode == 2:
            return Finding("locks", False, f"cannot be held: {said.strip().rpartition('speval: ')[2]}")
        return Finding("answer", False, f"from {asked}, it ended with {holder.returncode}: try it again")
    if free:
        return Finding("locks", False, "the lock of one process is not seen by another")
    holder.kill()
    holder.wait()
    patience = _patience(folder)
    if not _until(lambda: _is_free(locks), patience, "the lock of a killed process to go"):
        found = f"the lock of a killed process is still there after {patience:.0f} s: set a timeout"
        return Finding("locks", False, found)
    return Finding("locks", True, "seen by another process, and gone when theirs is killed")


def _between_hosts(folder: str) -> Iterator[Finding]:
    """See whether somebody who holds a lock here, on another host, is seen to do so."""
    before = _count(folder)
    if before is None:
        return
    name = os.path.join(folder, HELD)
    locks = Locks(name)
    who = f"`doctor --hold`, {before.partition(' ')[2]}"
    counts = _counts(folder, who)
    free = not os.path.exists(locks.path) or _is_free(locks)
    if counts and free:  # it may have ended just now: its lock counts only if it goes on
        counts = _counts(folder, who)
    silent = f"of {who}, which has not counted for {_patience(folder):.0f} s, are"
    if not os.path.exists(name):  # it has ended, and has taken its files away
        return
    if counts:
        seen = "are not seen here: use one host, or another mount" if free else "are seen"
        yield Finding("locks", not free, f"of {who}, {seen}")
    elif free:
        _clear(name)
        yield Finding("locks", True, f"{silent} gone")
    else:
        yield Finding("locks", False, f"{silent} still there: is it stopped? If it is dead, set a timeout")


def _counts(folder: str, who: str) -> bool:
    """Tell whether somebody who holds a lock counts on."""
    before, name = _count(folder), os.path.join(folder, HELD)

    def is_known() -> bool:
        return _count(folder) not in (None, before) or not os.path.exists(name)

    return _until(is_known, _patience(folder), f"{who} to count") and os.path.exists(name)


def _is_free(locks: Locks) -> bool:
    with locks.opened(create=False):
        return locks.is_dead(WORKER)


def _count(folder: str) -> str | None:
    """Return what `hold` has written last, None if it has never been there."""
    return "".join(filter(str.isprintable, _contents(os.path.join(folder, HELD)))) or None


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
                file.write(f"{count} {process()}")
            os.replace(name + ".new", name)
            wait(BEAT)
    finally:
        _clear(name)


def _clear(name: str) -> None:
    for left in name, name + ".new", name + "-lock":
        with contextlib.suppress(OSError):
            os.unlink(left)


def _until(condition: Callable[[], bool], seconds: float, what: str) -> bool:
    end = time.monotonic() + seconds
    with notice(lambda: f"waiting for {what}"):
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
    return True


def _database(path: str) -> Iterator[Finding]:
    """Check a copy of a database, which takes long: so nobody waits for that."""
    db = Sqlite(path)
    try:
        db.require()
        with Signals(), db.read() as conn:
            current = db.is_prepared(conn)
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
