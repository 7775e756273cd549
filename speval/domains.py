"""Where arguments may be: ranges and choices, at any depth of dicts and lists; and where in them some are."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .values import encode, from_json, to_json

__all__ = [
    "Choice",
    "Point",
    "Range",
    "Shape",
    "choice",
    "combinations",
    "fill",
    "integers",
    "loguniform",
    "uniform",
    "whole_number",
]

LARGEST = 1e300  # bound, that the distance of two of them is a float


class Range:
    """Numbers from `low` to `high`, both of them included: made by `uniform`, `loguniform`, `integers`."""

    def __init__(self, kind: str, low: float, high: float) -> None:
        if low > high:
            raise ValueError(f"{kind}({low!r}, {high!r}): the lower bound comes first")
        if kind == "loguniform" and low <= 0:
            raise ValueError(f"{kind}({low!r}, {high!r}): a logarithm needs bounds above 0")
        self.kind, self.low, self.high = kind, low, high
        self.which = -1  # number of the parameter, once it is in a shape
        self.step = 1 / (high - low + 1) if kind == "integers" else 0.0  # of the way, to the next
        self._first = self._scaled(low)
        self._length = self._scaled(high) - self._first + bool(self.step)

    def __repr__(self) -> str:
        return f"{self.kind}({self.low!r}, {self.high!r})"

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.kind == "loguniform" else float(value)  # so that decades are round

    def at(self, share: float) -> float:
        """Return the number at a share, from 0 to 1, of the way from the lowest to the highest."""
        if self.kind == "loguniform":
            value: float = 10 ** (self._first + share * self._length)
        else:
            value = self.low + (int if self.step else float)(share * self._length)
        return min(max(value, self.low), self.high)

    def place(self, value: Any) -> float | None:
        """Return the share at which a value is (whole numbers: its middle), None if it is not there."""
        if type(value) not in ((int,) if self.step else (int, float)) or not self.low <= value <= self.high:
            return None
        return (self._scaled(value) - self._first) / self._length + self.step / 2 if self._length else 0.5

    def levels(self, number: int) -> list[float]:
        """Return so many numbers, evenly spread, the bounds among them; of one, the middle."""
        if not self.step and number > 1 and self.low < self.high:
            return [self.low, *(self.at(i / (number - 1)) for i in range(1, number - 1)), self.high]
        if not self.step:
            return [self.at(0.5)]
        gaps = min(number - 1, int(self.high - self.low))
        if gaps == 0:
            return [(self.low + self.high) // 2]
        return [self.low + (2 * (self.high - self.low) * i + gaps) // (2 * gaps) for i in range(gaps + 1)]


class Choice:
    """One of several options: made by `choice`; `which` as of a `Range`."""

    def __init__(self, options: list[Any]) -> None:
        self.options, self.which = options, -1

    def __repr__(self) -> str:
        return f"choice({self.options!r})"


def uniform(low: float, high: float) -> Range:
    """Return the domain of the numbers between two bounds.

    Examples
    --------
    >>> from speval.search import grid
    >>> grid(uniform(0, 1), levels=3)
    [0.0, 0.5, 1.0]
    """
    return Range("uniform", _number("low", low), _number("high", high))


def loguniform(low: float, high: float) -> Range:
    """Return the domain of the positive numbers between two bounds, spread evenly in their logarithm.

    Examples
    --------
    >>> from speval.search import grid
    >>> grid(loguniform(1, 100), levels=3)
    [1.0, 10.0, 100.0]
    """
    return Range("loguniform", _number("low", low), _number("high", high))


def integers(low: int, high: int) -> Range:
    """Return the domain of the whole numbers from `low` to `high`, both of them included.

    Examples
    --------
    >>> from speval.search import grid
    >>> grid(integers(1, 3))
    [1, 2, 3]
    """
    return Range("integers", whole_number("low", low), whole_number("high", high))


def choice(options: Iterable[Any]) -> Choice:
    """Return the domain of some options, each of which may be anything: a constant, a domain, a whole space.

    Examples
    --------
    >>> from speval.search import grid
    >>> grid({"model": choice([{"kind": "svm", "C": loguniform(0.1, 10)}, "naive"])}, levels=2)
    [{'model': {'kind': 'svm', 'C': 0.1}}, {'model': {'kind': 'svm', 'C': 10.0}}, {'model': 'naive'}]
    """
    if isinstance(options, (str, bytes, Mapping, set, frozenset)) or not isinstance(options, Iterable):
        raise TypeError(f"choice() takes a list of options, not {options!r}: their order has to be the same")
    its = list(options)
    if not its:
        raise ValueError("choice() has no options: give it one at least")
    return Choice(its)


def _number(what: str, value: Any) -> float:
    if isinstance(value, (bool, str)) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{what} has to be a number, not {value!r}")
    if not abs(value) <= LARGEST:  # which NaN is not either
        raise ValueError(f"{what} has to be a number within +-{LARGEST:g}, not {value!r}")
    return float(value)


def whole_number(what: str, value: Any, least: float = -LARGEST) -> int:
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{what} has to be a whole number (int), not {value!r}")
    if not least <= value <= LARGEST:
        raise ValueError(f"{what} has to be a number from {least:g} to {LARGEST:g}, not {value!r}")
    return operator.index(value)


class Point(NamedTuple):
    """Where arguments are in a space."""

    parts: dict[int, float]  # by parameter that they have: the share of the way, or the number of the option
    coords: tuple[float, ...]  # of all: the share, 0.5 if they have it not; for each option 1 or 0


class Shape:
    """A space whose parameters, those of all branches, are numbered."""

    def __init__(self, space: Any) -> None:
        self.parameters: list[Range | Choice] = []
        self.tree = self._grow(space)  # with constants as JSON has them

    def _grow(self, space: Any) -> Any:
        if isinstance(space, (Range, Choice)):
            its = copy.copy(space)
            its.which = len(self.parameters)
            self.parameters.append(its)
            if isinstance(its, Choice):
                its.options = list(map(self._grow, its.options))
            return its
        if isinstance(space, dict):
            tree = {_key(key): self._grow(inner) for key, inner in space.items()}
            if len(tree) < len(space):
                raise ValueError(f"two keys of the space are equal as text, among {list(space)}")
            return tree
        if isinstance(space, (list, tuple)):
            return list(map(self._grow, space))
        return from_json(to_json(space), "a constant of the space")

    def place(self, args: Any) -> Point | None:
        """Return where arguments are, None if they are not of this space."""
        parts: dict[int, float] = {}
        if not _fits(self.tree, args, parts):
            return None
        coords: list[float] = []
        for its in self.parameters:
            if isinstance(its, Range):
                coords.append(parts.get(its.which, 0.5))
            else:
                chosen = parts.get(its.which)
                coords.extend([float(number == chosen) for number in range(len(its.options))])
        return Point(parts, tuple(coords))


def _key(key: Any) -> str:
    (text,) = from_json(to_json({key: None}), "a key of the space")
    return str(text)


def fill(tree: Any, shares: Sequence[float]) -> Any:
    """Return arguments at these shares, one for each parameter, of the way from its first to its last."""
    if isinstance(tree, dict):
        return {key: fill(inner, shares) for key, inner in tree.items()}
    if isinstance(tree, list):
        return [fill(inner, shares) for inner in tree]
    if isinstance(tree, Range):
        return tree.at(shares[tree.which])
    if isinstance(tree, Choice):
        number = int(shares[tree.which] * len(tree.options))
        return fill(tree.options[min(number, len(tree.options) - 1)], shares)
    return tree


def combinations(tree: Any, levels: int) -> Iterable[Any]:
    if isinstance(tree, dict):
        rows = itertools.product(*(combinations(inner, levels) for inner in tree.values()))
        return (dict(zip(tree, row)) for row in rows)
    if isinstance(tree, list):
        return map(list, itertools.product(*(combinations(inner, levels) for inner in tree)))
    if isinstance(tree, Range):
        return tree.levels(levels)
    if isinstance(tree, Choice):
        return itertools.chain.from_iterable(combinations(option, levels) for option in tree.options)
    return [tree]


def _fits(tree: Any, value: Any, parts: dict[int, float]) -> bool:
    """Tell whether a value is of a space, and put into `parts` where each of its parameters is."""
    if isinstance(tree, dict):
        if not isinstance(value, dict) or value.keys() != tree.keys():
            return False
        return all(_fits(inner, value[key], parts) for key, inner in tree.items())
    if isinstance(tree, list):
        if not isinstance(value, list) or len(value) != len(tree):
            return False
        return all(map(_fits, tree, value, itertools.repeat(parts)))
    if isinstance(tree, Range):
        share = tree.place(value)
        parts[tree.which] = share or 0.0
        return share is not None
    if isinstance(tree, Choice):
        return _fits_option(tree, value, parts)
    return type(tree) is type(value) and (tree == value or encode(tree) == encode(value))  # NaN is NaN


def _fits_option(tree: Choice, value: Any, parts: dict[int, float]) -> bool:
    for number, option in enumerate(tree.options):
        inside: dict[int, float] = {}
        if _fits(option, value, inside):
            parts.update(inside)
            parts[tree.which] = number
            return True
    return False
