"""What an instance tells `speval run`, which has started it: the databases that it uses, and what it does.

Both have a folder. Each instance writes what it uses to one file there; for what changes often, it has its
part of another, which is in memory that both see.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator

from ..errors import visible
from .background import Ticker

__all__ = [
    "HEADING",
    "Board",
    "announce",
    "announced",
    "counted",
    "environment",
    "head",
    "is_launched",
    "is_used",
    "log_of",
    "redirect",
]

# In the environment of an instance:
FOLDER, NUMBER, LOGS = "SPEVAL_RUN_FOLDER", "SPEVAL_RUN_NUMBER", "SPEVAL_RUN_LOGS"
HEADING = "speval: evaluation "
SIZE = 32  # bytes of a board
ORPHAN = 1.0  # seconds between two looks of an instance at its parent

_free = threading.Lock()  # whoever counts on the board of this process has it


class Board:
    """Some numbers of one instance that both it and its launcher see.

    Attributes
    ----------
    launcher : int
        Process that has started the instance: the board is of no other.
    value : int
        A count that is odd while a piece of work is under way.
    limit : float
        Seconds that a piece may take; 0: any number.
    is_untied : bool
        The kernel will not end the instance with its launcher.
    """

    def __init__(self, memory: memoryview) -> None:
        self._numbers, self._seconds = memory[:24].cast("Q"), memory[24:].cast("d")

    @staticmethod
    def make(folder: str, n: int) -> list[Board]:
        """Return the boards of `n` instances: in one file, since each that is mapped takes a descriptor."""
        with open(_boards(folder), "xb") as file:
            file.write(bytes(n * SIZE))
        boards = _opened(folder)
        for board in boards:
            board._numbers[0] = os.getpid()
        return boards

    @property
    def launcher(self) -> int:
        return self._numbers[0]

    @property
    def value(self) -> int:
        return self._numbers[1]

    @value.setter
    def value(self, value: int) -> None:
        self._numbers[1] = value

    @property
    def is_untied(self) -> bool:
        return bool(self._numbers[2])

    @is_untied.setter
    def is_untied(self, is_untied: bool) -> None:
        self._numbers[2] = is_untied

    @property
    def limit(self) -> float:
        return self._seconds[0]

    @limit.setter
    def limit(self, limit: float) -> None:
        self._seconds[0] = limit


def environment(folder: str, number: str, logs: str | None = None) -> dict[str, str]:
    """Return what is in the environment of the instance with that number, whose output `logs` may keep."""
    return {FOLDER: folder, NUMBER: number, **({LOGS: os.path.abspath(logs)} if logs else {})}


def is_launched() -> bool:
    """Tell whether a launcher has started this process."""
    return _board() is not None


def announce(database: str, used: bool = False) -> None:
    """Tell the launcher, if there is one, which database this instance uses; let the instance end with it.

    `used`: a worker has joined the database.
    """
    folder = os.environ.get(FOLDER)
    if folder:
        with contextlib.suppress(OSError), open(_databases(folder, used), "a", encoding="utf-8") as file:
            file.write(json.dumps(database) + "\n")
    board = _board()
    if board is not None and board.is_untied:
        _end_with(board.launcher)


@functools.cache  # one thread does
def _end_with(launcher: int) -> None:
    """End this instance when its launcher has ended, as the kernel does on Linux.

    Not by a pipe from the launcher: `func` might close it, and the programs that `func` starts inherit it.
    """

    def look() -> float | None:
        if os.getppid() == launcher:
            return ORPHAN
        os.kill(os.getpid(), signal.SIGTERM)
        return None

    Ticker(look).start(ORPHAN)


def is_used(database: str) -> bool:
    """Return True if a worker of any instance that the launcher has started has joined a database."""
    folder = os.environ.get(FOLDER)
    return folder is not None and database in announced(folder, used=True)


def announced(folder: str, used: bool = False) -> list[str]:
    """Return the databases that instances have announced, each once."""
    with contextlib.suppress(OSError), open(_databases(folder, used), encoding="utf-8") as lines:
        return list(dict.fromkeys(json.loads(line) for line in lines if line.endswith("\n")))
    return []


def _databases(folder: str, used: bool) -> str:
    return os.path.join(folder, "used" if used else "databases")


@contextlib.contextmanager
def counted(limit: float | None) -> Iterator[Board | None]:
    """Let the launcher end this process if a piece of its work takes longer; yield what is to count them.

    None if there is no launcher; or if somebody in this process counts already, around this or beside it.
    """
    board, pid = _board(), os.getpid()
    if board is None or not _free.acquire(blocking=False):
        yield None
        return
    try:
        board.limit = limit or 0.0
        yield board
    finally:
        if os.getpid() == pid:  # a child that was forked meanwhile has no say
            board.limit = 0.0
            board.value += board.value % 2
            _free.release()


def _board() -> Board | None:
    """Return the board of this process; not in those that it starts, though they have its environment."""
    folder, number = os.environ.get(FOLDER), os.environ.get(NUMBER)
    if folder and number:
        with contextlib.suppress(OSError, ValueError, IndexError):
            board = _opened(folder)[int(number) - 1]
            return board if board.launcher == os.getppid() else None
    return None


def _boards(folder: str) -> str:
    return os.path.join(folder, "boards")


@functools.cache  # never closed: by then its descriptor may be another's, if `func` has closed it
def _opened(folder: str) -> list[Board]:
    import mmap  # here, because only instances of `speval run` need it

    with open(_boards(folder), "r+b") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0))
    return [Board(memory[at : at + SIZE]) for at in range(0, len(memory), SIZE)]


def head(name: str, attempt: int) -> None:
    """Where the output of this process is kept, write there which evaluation the rest is of."""
    if _is_logged:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # it is full, closed, or None
            sys.stderr.write(f"{HEADING}{visible(name)}, attempt {attempt}\n")
            sys.stderr.flush()


def log_of(worker: int) -> str | None:
    """Return the file for the output of a worker process of this instance, if it is to be kept."""
    return f"{os.environ[LOGS]}/{os.environ[NUMBER]}.{worker}.txt" if _is_logged else None


def redirect(log: str) -> None:
    """Let this process write to the end of a file what it writes to stdout and stderr."""
    global _is_logged  # noqa: PLW0603 - it is that of the process
    _is_logged = True
    with contextlib.suppress(OSError):
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for stream in 1, 2:
            os.dup2(fd, stream)
        if fd > 2:
            os.close(fd)


_is_logged = LOGS in os.environ and _board() is not None  # as in the processes that are forked from it
