"""Signals whose handlers raise where Python ignores exceptions: sent again until they are handled elsewhere.

Python ignores exceptions in `__del__`, in callbacks of C code, in hooks of a fork, and in the warning that a
process with several threads forks.
"""

from __future__ import annotations

import signal
import threading
import types
from typing import Any

from .background import Ticker

__all__ = ["Resender", "add_hook", "is_in_hook", "resender"]

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0  # seconds between two times that a signal is sent; each pause doubles
WARNINGS = ("warnings", "_py_warnings")  # since Python 3.14 the code of the former stands in the latter

_hooks: set[types.CodeType] = set()


def add_hook(hook: types.CodeType) -> None:
    """Add code that Python calls as a hook, for `is_in_hook`."""
    _hooks.add(hook)


def is_in_hook(frame: types.FrameType | None) -> bool:
    """Return whether Python would ignore an exception in this frame without calling `sys.unraisablehook`."""
    while frame is not None:
        if frame.f_code in _hooks or frame.f_globals.get("__name__") in WARNINGS:
            return True
        frame = frame.f_back
    return False


class Resender:
    """Sends signals to the main thread again and again, until their handlers have run outside of all hooks.

    Sending once is not enough. A signal that comes just before the main thread waits in the kernel does not
    end that wait, and Python calls the handler only afterwards. Until then this object's own handler is in
    place, which knows whether the signal has come. Only the main thread calls the methods.

    Attributes
    ----------
    waiting : dict
        For each signal that is sent: its handler, and the exception of the handler that Python ignored. The
        exception is None if the handler has not run.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[Any, BaseException | None]] = {}
        self._sending = threading.RLock()  # a handler may interrupt the main thread that has it
        self._ticker = Ticker(self._send)
        self._pause = FIRST_PAUSE

    def start(self, signum: int, exc: BaseException | None = None) -> None:
        """Send a signal until its handler has run, or until `exc` is raised, which Python has ignored."""
        handler, raised = self.waiting.get(signum, (signal.getsignal(signum), None))
        self.waiting[signum] = handler, raised if exc is None else exc
        signal.signal(signum, self._handle)
        self._pause = FIRST_PAUSE
        self._ticker.start(FIRST_PAUSE)

    def _send(self) -> float | None:
        """Send what is waiting; return the seconds until the next time. The ticker's thread calls this."""
        with self._sending:
            for signum in list(self.waiting):
                if signal.getsignal(signum) == self._handle:  # `func` may have set a handler of its own
                    _send_to_main_thread(signum)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return self._pause if self.waiting else None

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        if signum not in self.waiting or is_in_hook(frame):
            return
        handler, exc = self._take(signum)
        if exc is not None:
            raise exc
        if handler is not None:
            handler(signum, frame)

    def _take(self, signum: int) -> tuple[Any, BaseException | None]:
        """Stop sending a signal and put its handler back; return the handler and its ignored exception.

        Both are None if the signal came just now, and its handler has run.
        """
        handler, exc = self.waiting.pop(signum, (None, None))
        if handler is None:
            return None, None
        try:
            with self._sending:  # the thread has sent the signal for the last time
                pass
            if hasattr(signal, "pthread_sigmask"):  # Python calls handlers here: `_handle` ignores the signal
                signal.pthread_sigmask(signal.SIG_BLOCK, ())
        finally:
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, handler)
        return handler, exc

    def deliver(self) -> None:
        """Call the handlers of all waiting signals now; raise their ignored exceptions."""
        for signum in list(self.waiting):
            handler, exc = self._take(signum)
            if exc is not None:
                raise exc
            if handler is not None:
                signal.raise_signal(signum)

    def cancel(self) -> list[int]:
        """Stop sending all signals; return those whose handlers have not run."""
        taken = [(signum, self._take(signum)) for signum in list(self.waiting)]
        return [signum for signum, (handler, exc) in taken if handler is not None and exc is None]

    def forget(self) -> None:
        """In a forked child: put the handlers back. The signals were sent to the parent."""
        self._sending = threading.RLock()  # the thread that held it is not in the child
        self.cancel()


def _send_to_main_thread(signum: int) -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
    else:  # Windows, where os.kill() would end the process
        signal.raise_signal(signum)


resender = Resender()
