"""What runs now: the evaluations of a context, and on which databases this process works."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import operator
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

from .database import LAST
from .process.signals import INTERRUPTS, Signals, Terminated
from .reports import Reports
from .values import from_json

__all__ = [
    "Claim",
    "current_eval",
    "ends_process",
    "known_at_work",
    "report",
    "running",
    "waiting_for_this",
]


class Claim(NamedTuple):
    """An evaluation that a worker holds; `id` and `attempt` together are given out once."""

    id: int
    name: str
    args: str
    attempt: int


# The evaluations that run now in this context, the innermost last: path of the database, claim, its reports.
running: contextvars.ContextVar[tuple[tuple[str, Claim, Reports], ...]]
running = contextvars.ContextVar("speval", default=())
# What the main thread works on, and the threads that were there when it began.
_at_work: list[tuple[str, list[threading.Thread]]] = []


@contextlib.contextmanager
def known_at_work(path: str) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _at_work.append((path, threading.enumerate()))
    try:
        yield
    finally:
        _at_work.pop()


def waiting_for_this() -> set[str]:
    """Return the paths of the databases on which an evaluation waits for what this thread does.

    `func` runs in this thread, or has started it: it is younger than the work of the main thread.
    """
    thread = threading.current_thread()
    return {path for path, *_ in running.get()} | {path for path, older in _at_work if thread not in older}


def ends_process(exc: BaseException, signals: Signals, worker: int) -> bool:
    """Return True if what `func` raised is to end this process, and not only to fail the evaluation.

    True for an interrupt. True for SystemExit if an interrupt came, if a handler of any signal raised it, or
    in a child that `func` forked from the process `worker`. Also while a handler of `func` for an interrupt
    is installed: `func` may exit because of what that has noted.
    """
    if not isinstance(exc, SystemExit):
        return isinstance(exc, (KeyboardInterrupt, Terminated))
    handlers = [signal.getsignal(signum) for signum in signals.handlers if signum in INTERRUPTS]
    return (
        signals.has_come
        or os.getpid() != worker
        or _is_from_handler(exc)
        or any(callable(handler) and not _is_known(handler, signals) for handler in handlers)
    )


def _is_from_handler(exc: BaseException) -> bool:
    """Return True if a signal handler, for example of a batch system's SIGUSR2, has raised an exception."""
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = set(map(_code_of, handlers)) - {None}
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_code not in codes:
        trace = trace.tb_next
    return trace is not None


def _code_of(handler: Any) -> Any:
    """Return the code that a handler runs: a function, a method, a `functools.partial` or an object."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__code__") and callable(handler):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)


def _is_known(handler: Any, signals: Signals) -> bool:
    """Return True for a handler of `signals`, and for the one with which Python starts."""
    return handler is signal.default_int_handler or getattr(handler, "__self__", None) is signals


def current_eval() -> dict[str, Any] | None:
    """Return the evaluation that runs now, inside `func`; None elsewhere.

    Returns
    -------
    dict or None
        ``"name"`` (str), ``"attempt"`` (int, > 0, grows with each claim of this evaluation) and
        ``"args"``: to name a directory for checkpoints, say.

    Examples
    --------
    >>> current_eval() is None
    True
    """
    if not running.get():
        return None
    _, claim, _ = running.get()[-1]
    return {"name": claim.name, "attempt": claim.attempt, "args": from_json(claim.args, "the arguments")}


def report(value: SupportsFloat, step: SupportsIndex | None = None) -> bool:
    """Report, inside `func`, how good the evaluation is so far; tell whether it should stop.

    Reports are stored, some at once, together with those of the others; `load_evals` returns them. Those of
    an evaluation that was lost stay, and its next attempt replaces them step by step. Outside of an
    evaluation, in other processes, and in threads without the context of `func`, nothing is done.

    Parameters
    ----------
    value : float
        What is to become small, or large, as the result will be; NaN is worst.
    step : int, optional
        At which step that was, an epoch say, >= 0. What is reported again for a step replaces what was. By
        default the one after the last.

    Returns
    -------
    bool
        True if `speval` was given a rule `stop`, and the evaluation is not promising by that: then `func`
        should return what it has. It is completed then, with the step of its last report as
        ``"stopped"``; it is taken for stopped, too, if it goes on all the same.

    Raises
    ------
    TypeError, ValueError
        If `value` is no number, or `step` no whole number from 0 to 2**63 - 1.

    Examples
    --------
    >>> report(0.5, step=3)
    False
    """
    if isinstance(value, (str, bytes)):
        raise TypeError(f"what is reported has to be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError as exc:
        raise ValueError(f"what is reported has to be a float: {exc}") from exc
    at = None if step is None else operator.index(step)
    if at is not None and not 0 <= at <= LAST:
        raise ValueError(f"a step is a whole number from 0 to {LAST}, not {at}")
    if not running.get():
        return False
    _, claim, reports = running.get()[-1]
    return reports.add(claim, number, at)
