"""Rules by which evaluations that are not promising are stopped: see `speval.report`."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

__all__ = ["halving", "median"]


def median(warmup: int = 5, *, startup: int = 5, maximize: bool = False) -> Median:
    """Stop what is worse than half of the others were.

    An evaluation is stopped when the best value that it has reported so far is worse than the median of what
    the others have reported for the same step (Golovin et al., 2017: Google Vizier).

    Parameters
    ----------
    warmup : int
        Steps, >= 0, in which none is stopped: from step `warmup` on it may be.
    startup : int
        Number, >= 1, of others that have to have reported for a step.
    maximize : bool
        The largest values are the best.

    Raises
    ------
    TypeError, ValueError
        If a number is none, or too small.

    Examples
    --------
    >>> median(warmup=5).stops([0.9, 0.8], [0.5, 0.6, 0.7, 0.8, 0.9])
    True
    """
    return Median(_whole("warmup", warmup, 0), _whole("startup", startup, 1), maximize)


def halving(factor: int = 3, *, first: int = 1, maximize: bool = False) -> Halving:
    """Let only the best part go on, at steps that grow: asynchronous successive halving (Li et al., 2020).

    At each rung, the steps `first`, ``first * factor``, ``first * factor**2`` and so on, an evaluation is
    stopped unless it is among the best of those that have come so far, one of `factor`.

    Parameters
    ----------
    factor : int
        One of how many goes on, >= 2.
    first : int
        The first step, >= 1, at which any is stopped.
    maximize : bool
        The largest values are the best.

    Raises
    ------
    TypeError, ValueError
        If a number is none, or too small.

    Examples
    --------
    >>> rule = halving(factor=3)
    >>> [step for step in range(30) if rule.decides_at(step, step - 1)]
    [1, 3, 9, 27]
    >>> [rule.stops([value], [0.1, 0.2, 0.6, 0.5, 0.3]) for value in (0.4, 0.15)]
    [True, False]
    """
    return Halving(_whole("factor", factor, 2), _whole("first", first, 1), maximize)


class Median(NamedTuple):
    """See `median`."""

    warmup: int
    startup: int
    maximize: bool

    def decides_at(self, step: int, before: int) -> bool:
        return step >= self.warmup

    def stops(self, own: Sequence[float], others: Sequence[float]) -> bool:
        if len(others) < self.startup:
            return False
        middle = statistics.median(_badness(value, self.maximize) for value in others)
        return min(_badness(value, self.maximize) for value in own) > middle


class Halving(NamedTuple):
    """See `halving`."""

    factor: int
    first: int
    maximize: bool

    def decides_at(self, step: int, before: int) -> bool:
        rung = self.first
        while rung <= before:
            rung *= self.factor
        return rung <= step

    def stops(self, own: Sequence[float], others: Sequence[float]) -> bool:
        bad = _badness(own[-1], self.maximize)
        better = sum(_badness(value, self.maximize) < bad for value in others)
        return better >= math.ceil((len(others) + 1) / self.factor)


def _badness(value: float, maximize: bool) -> float:
    """Return a value of which the smallest is best; NaN is worst."""
    return math.inf if math.isnan(value) else -value if maximize else value


def _whole(name: str, value: SupportsIndex, least: int) -> int:
    number = operator.index(value)
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name} is a whole number from {least} on, not {value!r}")
    return number
