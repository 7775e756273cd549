"""The arguments of `speval()`, checked before anything is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from .errors import cut
from .space import adaptive

__all__ = ["check"]


def check(
    func: object,
    eval_space: object,
    timeout: object,
    n_jobs: object,
    max_attempts: object,
    max_failures: object,
    stop: object,
) -> None:
    """Raise TypeError or ValueError, with what to do, for the first argument that is wrong."""
    if not callable(func):
        raise TypeError(f"func has to be callable, {func!r} is not")
    if isinstance(eval_space, (str, bytes)) or not (isinstance(eval_space, Iterable) or adaptive(eval_space)):
        raise TypeError(
            "eval_space has to be a list, an iterable, a dict or an adaptive space, not"
            f" {type(eval_space).__name__}"
        )
    if stop is not None and not (hasattr(stop, "decides_at") and hasattr(stop, "stops")):
        raise TypeError(f"stop has to be a rule, median() or halving() of speval.search, not {stop!r}")
    if timeout is not None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"timeout has to be a number of seconds or None, not {timeout!r}")
        if not 0 < timeout <= (sys.float_info.max if isinstance(timeout, int) else float("inf")):
            raise ValueError(f"timeout has to be positive, or None for none, not {cut(repr(timeout), 50)}")
    numbers = {"n_jobs": n_jobs, "max_attempts": max_attempts, "max_failures": max_failures}
    for name, number in numbers.items():
        if (name, number) in (("max_failures", None), ("n_jobs", -1)):
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} has to be an int, not {number!r}")
        if number < 1:
            also = ", or -1 for one per CPU" if name == "n_jobs" else ""
            raise ValueError(f"{name} has to be at least 1{also}; {number} is not")
