"""The machine: its name, its CPUs and mounts, and what it knows of this process."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = [
    "Mount",
    "command",
    "cpu_seconds",
    "cpus",
    "duplicate_high",
    "host",
    "identity",
    "is_alive",
    "is_stopped",
    "make_room_for_high",
    "mount_of",
    "process",
    "programs_ended",
    "waits_locally",
]

HIGH = 500  # the least number of a descriptor that is kept out of the way of others
NETWORKS = ("nfs", "cifs", "smb", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.")
LOCAL_LOCKS = ("nolock", "local_lock=all", "local_lock=posix", "localflock")


def host() -> str:
    """Return the name of this machine."""
    return os.uname().nodename if hasattr(os, "uname") else os.environ.get("COMPUTERNAME", "localhost")


def process() -> str:
    """Return the name of this process, for people who look for it."""
    return f"process {os.getpid()} on {host()}"


def command(shown: Callable[[str], str]) -> str | None:
    """Return the line that has started this program, each word as it may be `shown`.

    None if it is no script, but a notebook, say.
    """
    import shlex  # here, because few need it, and importing it takes a millisecond

    if getattr(sys.modules.get("__main__"), "__file__", None) is None:
        return None
    words = getattr(sys, "orig_argv", [sys.executable, *sys.argv])  # Python 3.9 has none
    return shlex.join(map(shown, words))


def programs_ended() -> int:
    """Return a number that changes when a child of this process has ended and was waited for."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt


def identity(fd: int) -> tuple[int, int] | None:
    """Return what tells the file of a descriptor from all others; None if it is not open."""
    try:
        found = os.stat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_alive(pid: object) -> bool:
    """Return True if a process of this machine has that number, and has not ended (Linux: a zombie has)."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # of another user
        pass
    except (OSError, OverflowError):
        return False
    return _state(pid) not in ("Z", "X")


def is_stopped(pid: int) -> bool:
    """Tell whether a process is stopped, by Ctrl-Z or a debugger say; False if that is not known."""
    return _state(pid) in ("T", "t")


def _state(pid: int) -> str:
    """Return the kernel's letter for what a process does, nothing if that is not known."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()[0]
    return ""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds (Linux); elsewhere infinity."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
        user, system = stat.read().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return math.inf


def waits_locally(pid: int) -> bool:
    """Return True if the main thread of a process waits for another thread or at a pipe (Linux).

    Also if the kernel does not tell for what it waits.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/wchan") as wchan:
        place = wchan.read()
        return place in ("", "0") or "futex" in place or "pipe" in place
    return sys.platform == "linux"


def duplicate_high(fd: int) -> int:
    """Duplicate a descriptor to a number that a program gets only if it asks for it."""
    import fcntl

    # PyPy has no F_DUPFD_CLOEXEC.
    high: int = fcntl.fcntl(fd, getattr(fcntl, "F_DUPFD_CLOEXEC", fcntl.F_DUPFD), HIGH)
    os.set_inheritable(high, False)
    return high


def make_room_for_high() -> None:
    """Have the kernel enlarge this process's table of descriptors, as `duplicate_high` needs it.

    Beside other threads, which share the table, the kernel takes 10 to 20 ms for that: so it is done early.
    """
    with contextlib.suppress(ImportError, OSError), open(os.devnull, "rb") as file:
        os.close(duplicate_high(file.fileno()))


def cpus() -> int:
    """Return the number of CPUs that this process may use, by its affinity and the quota of its cgroup."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *quotas()]))


def quotas(table: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> Iterator[int]:
    """Yield the quotas, in CPUs, of the cgroups that this process is in, of either version."""
    with contextlib.suppress(OSError), open(table, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            folder = path.rstrip("/")
            while True:
                yield from _quota(f"{mount}/cpu{folder}" if controllers else mount + folder)
                if not folder:
                    break
                folder = folder.rpartition("/")[0]


def _quota(folder: str) -> Iterator[int]:
    for names in ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"):
        with contextlib.suppress(OSError, ValueError):
            words: list[str] = []
            for name in names:
                with open(f"{folder}/{name}") as file:
                    words += file.read().split()
            quota, period = map(int, words)  # "max" is none
            if quota > 0:
                yield math.ceil(quota / period)


class Mount:
    """How a directory is mounted: the kind, ``""`` if that is not known, and the options."""

    def __init__(self, kind: str, options: list[str]) -> None:
        self.kind = kind
        self.options = options

    @property
    def is_network(self) -> bool:
        return self.kind == "fuse" or self.kind.startswith(NETWORKS)  # fuseblk is a disk

    @property
    def local_locks(self) -> str:
        """The option by which locks of a network mount stay local to each host, ``""`` if there is none."""
        return next((o for o in self.options if self.is_network and o in LOCAL_LOCKS), "")


def mount_of(path: str, table: str = "/proc/self/mounts") -> Mount:
    """Return the mount that a file is on; a directory's path ends with a slash."""
    best, kind, options = "", "", ""
    with contextlib.suppress(OSError), open(table, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, point, its_kind, its_options, *_ = line.split(" ")
            point = point.replace("\\040", " ").rstrip("/") + "/"
            if path.startswith(point) and len(point) >= len(best):
                best, kind, options = point, its_kind, its_options
    return Mount(kind, options.split(","))
