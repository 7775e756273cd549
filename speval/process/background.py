"""Threads that do something later, or now and then: each is one ticker, and all can be paused."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["LONG_WAIT", "Ticker", "forget", "notice", "paused", "paused_notices", "take_no_signals", "weakly"]

log = logging.getLogger("speval")

LONG_WAIT = 10.0  # seconds after which somebody says so


def take_no_signals() -> None:
    """Leave the signals to the other threads: they are to wake the main one."""
    if hasattr(signal, "pthread_sigmask"):  # but for two that programs need, which a log handler may run
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD, signal.SIGPIPE})


class Ticker:
    """A thread that calls `action` after some seconds, and again after as many as it says.

    Until `stop`; or until it says None and nobody has called `start` meanwhile.
    """

    def __init__(self, action: Callable[[], float | None]) -> None:
        self._action = action
        self._thread: threading.Thread | None = None
        # The thread ends when it gets it. (An Event would take no signal handler inside.)
        self._over = threading.Lock()
        self._starting = threading.RLock()
        self._starts = 0

    def start(self, pause: float) -> None:
        with self._starting:
            self._starts += 1
            _tickers.add(self)
            if self._thread is None or not self._thread.is_alive():
                self._over = over = threading.Lock()
                over.acquire()
                self._thread = threading.Thread(
                    target=self._run, args=(over, pause), name="speval", daemon=True
                )
                with contextlib.suppress(RuntimeError):  # no more threads are to be had: it does not tick
                    self._thread.start()

    def _run(self, over: Any, pause: float) -> None:
        take_no_signals()
        while not over.acquire(timeout=max(pause, 0.0)):
            starts = self._starts
            again = self._action()
            if again is None:
                with self._starting:
                    if over is not self._over:  # a signal handler has started another thread meanwhile
                        return
                    if starts == self._starts and self._thread is not None:
                        self._thread = None
                        _tickers.discard(self)
                        return
            pause = again or 0.0

    def stop(self) -> None:
        """End the thread, and wait for what it does just now."""
        with self._starting:
            _tickers.discard(self)
        self._pause(None)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """End the thread for the block; wait for what it does just now, at most a second."""
        self._pause(1.0)  # not longer: it may wait for a log handler that forks
        try:
            yield
        finally:
            if self in _tickers:  # not in a forked child, where somebody may hold `_starting` for good
                self._go_on()

    def _go_on(self) -> None:
        with self._starting:
            if self in _tickers:  # nobody has stopped it meanwhile
                self.start(0.0)

    def forget(self) -> None:
        self._thread = None
        self._starting = threading.RLock()  # of the old one, another thread may be the owner

    def _pause(self, patience: float | None) -> None:
        with self._starting:
            thread, self._thread = self._thread, None
            with contextlib.suppress(RuntimeError):  # a signal handler was quicker
                self._over.release()
        if thread is not None and thread is not threading.current_thread():
            with contextlib.suppress(RuntimeError):  # it has not begun
                thread.join(patience)


def weakly(method: Callable[[], float | None]) -> Callable[[], float | None]:
    """Return what calls a method for as long as its object is there: a ticker is not to keep that."""
    weak = weakref.WeakMethod(method)

    def call() -> float | None:
        known = weak()
        return None if known is None else known()

    return call


class Wait:
    """Something that may take long: what to say of it, since when, and when to say it next."""

    def __init__(self, message: Callable[[], str]) -> None:
        self.message = message
        self.began = time.monotonic()
        self.due = self.began + LONG_WAIT


def _say_what_takes_long() -> float | None:
    now = time.monotonic()
    for wait in [wait for wait in list(_waits) if wait.due <= now]:
        wait.due = 2 * now - wait.began  # at twice the time, four times, and so on
        log.warning("%s: for %.0f s by now", wait.message(), now - wait.began)
    pauses = [wait.due - now for wait in list(_waits)]
    return min(LONG_WAIT, *pauses) if pauses else None  # not longer: another may have come meanwhile


_tickers: set[Ticker] = set()  # that have been started and not stopped
_waits: set[Wait] = set()
_notices = Ticker(_say_what_takes_long)


@contextlib.contextmanager
def notice(message: Callable[[], str]) -> Iterator[None]:
    """Say so when the block takes long; from another thread, because this one waits in the kernel.

    That stays for the next block, until there is none for some time: to start it takes 0.2 ms.
    """
    wait = Wait(message)
    try:
        _waits.add(wait)
        _notices.start(LONG_WAIT)
        yield
    finally:
        _waits.discard(wait)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Let no ticker of this process run in the block, but for the notices."""
    with contextlib.ExitStack() as held:
        for ticker in [ticker for ticker in list(_tickers) if ticker is not _notices]:
            held.enter_context(ticker.paused())
        yield


@contextlib.contextmanager
def paused_notices() -> Iterator[None]:
    with _notices.paused():
        if not _waits:  # they have nothing to go on with
            _tickers.discard(_notices)
        yield


def forget() -> None:
    """In a forked child: it has none of these threads, and nothing of what they were to say."""
    for ticker in {*_tickers, _notices}:
        ticker.forget()
    _tickers.clear()
    _waits.clear()
