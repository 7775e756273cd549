"""Signals that end or stop a process: held while it may not be disturbed, let through while it may."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any, TypeVar

from . import forks
from .resend import add_hook, is_in_hook, resender

__all__ = ["INTERRUPTS", "Signals", "Stop", "Terminated"]

T = TypeVar("T")
INTERRUPTS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
STOP: Any = getattr(signal, "SIGTSTP", None)  # Ctrl-Z
CONTINUE: Any = getattr(signal, "SIGCONT", None)
HELD = [*INTERRUPTS, STOP, CONTINUE] if STOP else INTERRUPTS
CANCELLED = 1.0  # seconds before SIGTSTP in which SIGCONT cancels it, see `Stop`
SAME = 2.0  # seconds in which a further SIGTERM or SIGHUP is the same

HOLDING, OPEN, LEAVING, OVER = range(4)


class Terminated(BaseException):
    """A signal has come that ends the process by default."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Stop:
    """A stop, asked for by SIGTSTP, that waits for a transaction or for C code to end. SIGCONT cancels it.

    A batch system that suspends and resumes a job sends both. A stop after that would last for ever.

    Attributes
    ----------
    asked : float or None
        When SIGTSTP came (monotonic, seconds).
    """

    def __init__(self) -> None:
        self.asked: float | None = None
        self._continued = -math.inf  # when SIGCONT came

    def ask(self) -> None:
        """Record SIGTSTP."""
        self.asked = time.monotonic()

    def cancel(self) -> None:
        """Record SIGCONT."""
        self._continued = time.monotonic()

    @property
    def is_wanted(self) -> bool:
        # Python runs the handlers of signals that came during a call of C code in the order of their numbers.
        # So the handler of SIGTSTP may run shortly after that of the SIGCONT that came later.
        return self.asked is not None and self.asked > self._continued + CANCELLED

    def end(self) -> None:
        """Record that the stop is over, or was left to another handler."""
        self.asked = None


class Signals(contextlib.AbstractContextManager["Signals"]):
    """Hold back SIGINT, SIGTERM, SIGHUP and SIGTSTP in the block: nothing breaks into a transaction.

    They are let through while `func` runs and while a worker sleeps, and when the block is over; a
    second interrupt of its kind does not wait. (But for a SIGTERM or SIGHUP that comes within 2 s of any:
    many send one to all processes, of which one passes it on.) Where the default stands for an interrupt, it
    raises in `func` and ends the process, as by default, when the block is over. What was ignored stays
    ignored.

    Masking them in the main thread would not be enough: the kernel then gives them to any other thread
    (of a BLAS, say), and Python runs the handler in the main thread all the same.

    Attributes
    ----------
    interrupt : BaseException or None
        What an interrupt has raised, even if `func` caught it.
    has_come : bool
        An interrupt has come. Its handler may have done no more than set a flag.
    handlers : dict
        The handlers that are put back at the end. Only of the main thread, elsewhere none is touched.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Any] = {}
        self.interrupt: BaseException | None = None
        self._came: float | None = None  # the first of late, at
        self._held: list[int] = []  # to be heeded when they are let through
        self._heeded = 0  # the last that was
        self.has_come = False
        self._stop = Stop()
        self._now = HOLDING
        self._hook: Callable[[Any], Any]

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            resender.deliver()  # before its handlers are replaced
            try:
                for signum in HELD:
                    handler = signal.getsignal(signum)
                    if callable(handler) or handler is signal.SIG_DFL:
                        self.handlers[signum] = handler
                        signal.signal(signum, self._handle)
                self._hook, sys.unraisablehook = sys.unraisablehook, self._save
            except BaseException:
                self._restore()
                raise
        return self

    def _handle(self, signum: int, frame: types.FrameType | None) -> None:
        handler = self.handlers[signum]
        if self._now == OVER:  # somebody kept this handler, and put it back too late
            signal.signal(signum, handler)
            signal.raise_signal(signum)
        elif signum == CONTINUE:
            self._stop.cancel()
            if callable(handler):
                handler(signum, frame)
        elif self._now == OPEN and is_in_hook(frame):  # Python would ignore the exception of the handler
            resender.start(signum)
        elif signum == STOP:
            self._stop.ask()
            if self._now == OPEN:
                try:
                    self._heed(signum, frame)
                finally:
                    self._stop.end()
        elif self._is_the_same(signum):
            return
        elif self._now == OPEN:
            self._heed(signum, frame)
        elif self._now == HOLDING and signum not in self._held:
            self._held.append(signum)
        elif callable(handler) and (self._now == HOLDING or _is_ours(handler)):
            handler(signum, frame)
        else:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def _heed(self, signum: int, frame: types.FrameType | None) -> None:
        handler = self.handlers[signum]
        self._heeded = signum
        self.has_come |= signum in INTERRUPTS
        try:
            if callable(handler):
                handler(signum, frame)
            elif signum == STOP:
                self._stop_now()
            else:
                raise Terminated(signum)
        except (KeyboardInterrupt, SystemExit, Terminated) as exc:
            if not isinstance(self.interrupt, Terminated):  # which is to end the process, whatever comes
                self.interrupt = exc
            raise

    def _save(self, lost: Any) -> None:
        """Raise an interrupt again elsewhere if Python ignored it, as it does in `__del__`."""
        is_ours = lost.exc_value is not None and lost.exc_value is self.interrupt
        if self._now == OPEN and is_ours:
            resender.start(self._heeded, self.interrupt)
        else:
            self._hook(lost)

    def _stop_now(self) -> None:
        """Stop, but in no transaction of any thread, which all others would wait for."""
        with forks.closed():
            signal.pthread_sigmask(
                signal.SIG_BLOCK, ()
            )  # Python runs the handler of SIGCONT here, if it came
            if self._stop.is_wanted:
                signal.raise_signal(signal.SIGSTOP)  # the default of the other stops nobody without a shell

    def _is_the_same(self, signum: int) -> bool:
        handler = self.handlers[signum]
        if callable(handler) and handler is not signal.default_int_handler:
            return False
        now = time.monotonic()
        if self._came is None or now >= self._came + SAME:
            self._came = now
        return signum != signal.SIGINT and self._came < now

    def renew(self) -> None:
        """Take the signals again whose handlers `func` has put back to the default, as asyncio does."""
        for signum in self.handlers:
            if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(signum, self._handle)

    def let_through(self, func: Callable[..., T], *args: Any) -> T:
        """Call `func` with `args`; signals may interrupt it, also those that came before.

        Raise the interrupt again if `func` swallowed it, so that a half-finished result is never used.
        """
        before = self.interrupt
        self._now = OPEN
        try:
            if self._stop.asked is not None and self._stop.is_wanted:
                signal.raise_signal(STOP)
            while self._held:
                self._came = None
                signal.raise_signal(self._held.pop(0))  # as they came: Ctrl-C behind another is a second
            result = func(*args)
        except (KeyboardInterrupt, SystemExit, Terminated):
            raise
        except BaseException as exc:
            if self.interrupt is not None and self.interrupt is not before:
                raise self.interrupt from exc
            raise
        finally:
            self._now = HOLDING
            if resender.waiting and self.handlers:
                self._held += resender.cancel()
        if self.interrupt is not None and self.interrupt is not before:
            raise self.interrupt
        return result

    def leave(self) -> None:
        """If one was heeded already, let the signals end the process at once, until the end of the block."""
        if self.interrupt is None:
            return
        self._now = LEAVING
        if signal.SIGINT in self.handlers:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _restore(self) -> None:
        for signum, handler in reversed(self.handlers.items()):  # SIGINT last: from then on it interrupts
            if signal.getsignal(signum) in (self._handle, signal.SIG_DFL):  # not if `func` set its own
                signal.signal(signum, handler)
        if sys.unraisablehook == self._save:
            sys.unraisablehook = self._hook

    def __exit__(self, *exc_info: object) -> None:
        self._now = OVER
        self._restore()
        if self._stop.is_wanted:
            signal.raise_signal(STOP)
        heeded = [self.interrupt.signum] if isinstance(self.interrupt, Terminated) else []
        for signum in sorted({*self._held, *heeded}, key=lambda signum: signum == signal.SIGINT):
            signal.raise_signal(signum)
        if heeded:  # process 1 of a container, to which the default does nothing
            raise SystemExit(128 + heeded[0])


def _is_ours(handler: Any) -> bool:
    return isinstance(getattr(handler, "__self__", None), Signals)


def _give_up_handlers() -> None:
    """In a forked child: put back the handlers that we replaced, the child is not the worker."""
    for signum in HELD:
        handler = signal.getsignal(signum)
        while _is_ours(handler):
            handler = handler.__self__.handlers[signum]  # type: ignore[union-attr]
            signal.signal(signum, handler)


forks.in_child(_give_up_handlers)
add_hook(Signals._save.__code__)
