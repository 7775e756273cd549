"""Forks: none happens in the middle of what this process has under way, and no child goes on with it.

What no fork may happen in is a `Section`. Each fork takes three steps, also where one interrupts another::

        before     signals are held, background threads paused, sections closed
        parent     sections opened, threads go on, signals let through
        child      sections are forgotten, then as in the parent
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from . import background
from .resend import add_hook, resender

__all__ = [
    "Section",
    "at_gate",
    "closed",
    "in_child",
    "keep",
    "watch",
]

_gate = threading.RLock()  # a fork holds it, and so does who begins or ends to use a section
_used: collections.Counter[Section] = collections.Counter()  # by threads inside, and by who attends
_forgetting: list[Callable[[], None]] = []  # in a child
# `stack`: of each fork of this thread that is under way, the innermost last, the signals that were blocked
# before, and what it holds up.
_forks = threading.local()


class Section:
    """What one thread at a time may be in, and no fork may happen in.

    Parameters
    ----------
    forget : callable
        A method, called in a forked child if somebody was inside, or attended.
    """

    def __init__(self, forget: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self.thread = 0  # that is inside, as from threading.get_ident()
        self._forget = weakref.WeakMethod(forget)

    def attend(self, number: int) -> None:
        """Have children forget it from now on, with 1, or not any more, with -1."""
        with at_gate():
            _used[self] += number
            if _used[self] <= 0:
                del _used[self]

    @contextlib.contextmanager
    def entered(self) -> Iterator[bool]:
        """Be inside; yield False if this thread was already, which a signal handler has interrupted."""
        self.attend(1)
        try:
            with self.lock:
                if self.thread:
                    yield False
                    return
                try:
                    try:
                        self.thread = threading.get_ident()
                        yield True
                    finally:
                        self.thread = 0
                finally:  # Python 3.9 may raise what a handler of the user's raises at the start of the other
                    self.thread = 0
        finally:
            self.attend(-1)

    @contextlib.contextmanager
    def tried(self) -> Iterator[bool]:
        """Be inside if nobody is; yield False otherwise."""
        self.attend(1)
        try:
            got = self.lock.acquire(blocking=False)
            free = got and not self.thread
            try:
                if free:
                    self.thread = threading.get_ident()
                yield free
            finally:
                if free:
                    self.thread = 0
                if got:
                    self.lock.release()
        finally:
            self.attend(-1)

    def forget(self) -> None:
        self.thread = 0
        self.lock = threading.RLock()  # of the old one, another thread may be the owner
        forget = self._forget()
        if forget is not None:
            forget()


def _is_inside() -> bool:
    """Tell whether this thread is in a section: then a signal handler asks, which has interrupted it."""
    me = threading.get_ident()
    return any(section.thread == me for section in list(_used))


@contextlib.contextmanager
def at_gate() -> Iterator[None]:
    """Let no fork, and no other thread at the gate, come between."""
    with contextlib.nullcontext() if _is_inside() else _gate:
        yield


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Let no other thread of this process be in a section, nor enter one, in the block."""
    with contextlib.ExitStack() as held:
        if not _is_inside():  # else in one of a signal handler's: whoever forks elsewhere waits for that
            held.enter_context(_gate)
            _close_sections(held)
        yield


def _close_sections(held: contextlib.ExitStack) -> None:
    lacking: Any = _gate
    while lacking is not None:
        with lacking:  # and with no other in hand, which its owner may need in a signal handler
            pass
        with contextlib.ExitStack() as ours:
            locks = [section.lock for section in list(_used)]
            lacking = next((lock for lock in locks if not _acquired(lock, ours)), None)
            if lacking is None:
                held.push(ours.pop_all())


def _acquired(lock: Any, held: contextlib.ExitStack) -> bool:
    got: bool = lock.acquire(blocking=False)
    if got:
        held.callback(lock.release)
    return got


def _before() -> None:
    """Hold up what no fork may happen in, and the threads beside which none should.

    Signals wait too: what they raise here is lost, and one that reaches the child before that is ready,
    Python forgets.
    """
    mask, held = signal.pthread_sigmask(signal.SIG_BLOCK, ()), contextlib.ExitStack()
    vars(_forks).setdefault("stack", []).append((mask, held))
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # may raise: the old mask is kept
    held.enter_context(background.paused())
    held.enter_context(closed())
    held.enter_context(background.paused_notices())  # last: they may have to say what we wait for


def _after() -> None:
    stack = vars(_forks).get("stack")
    if not stack:  # the hooks were not there when it began
        return
    mask, held = stack.pop()
    held.close()
    if threading.current_thread() is threading.main_thread():
        # Their handlers run as soon as they are allowed below, and what those raise here is ignored.
        for signum in signal.sigpending() - mask:
            if callable(signal.getsignal(signum)):
                resender.start(signum)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_in_child() -> None:
    global _gate  # noqa: PLW0603 - it is that of the process
    if not vars(_forks).get("stack"):  # the hooks were not there when it began: another thread may be at it
        _gate = threading.RLock()
    for section in list(_used):
        section.forget()
    _used.clear()
    background.forget()
    resender.forget()
    for forget in _forgetting:
        forget()
    _after()


for _hook in _before, _after, _after_in_child:
    add_hook(_hook.__code__)


def in_child(forget: Callable[[], None]) -> None:
    """Have `forget` called in each forked child."""
    _forgetting.append(forget)


def keep(inherited: object) -> None:
    """Never let an object end, which would close what is not ours."""
    import ctypes  # here, because nobody else needs it: it takes milliseconds

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


@functools.cache
def watch() -> None:
    """Have the hooks called from now on; a process that only imports this module needs none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
