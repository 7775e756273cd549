"""Evaluation spaces: all of a grid, some at random or evenly spread, or suggested one by one.

What comes out is what JSON has, and depends on nothing but what was given: the domains, a seed, and for
what is suggested the evaluations so far. So all instances agree on it.

Sources: A. B. Owen, "A randomized Halton algorithm in R" (2017); J. Bergstra et al., "Algorithms for
hyper-parameter optimization" (2011); S. Watanabe, "Tree-structured Parzen estimator: understanding its
algorithm components and their roles for better empirical performance" (2023).
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .domains import (
    Choice,
    Point,
    Range,
    Shape,
    choice,
    combinations,
    fill,
    integers,
    loguniform,
    uniform,
    whole_number,
)
from .stopping import halving, median
from .values import encode, from_json

__all__ = [
    "TPE",
    "choice",
    "grid",
    "halving",
    "integers",
    "loguniform",
    "median",
    "quasi",
    "sample",
    "uniform",
]

Weighted = tuple[Point, float]


def grid(space: Any, levels: int = 5) -> list[Any]:
    """Return arguments for each combination of evenly spread numbers, and of options.

    Parameters
    ----------
    space : dict or other
        Domains, at any depth of dicts and lists, beside constants.
    levels : int
        So many numbers of each range, the bounds among them (of one, the middle); of whole numbers not more
        than there are.

    Returns
    -------
    list
        An evaluation space, none in it twice, the last parameter changing fastest.

    Examples
    --------
    >>> grid({"x": uniform(0, 1), "n": integers(1, 2), "epochs": 10}, levels=2)
    ... # doctest: +NORMALIZE_WHITESPACE
    [{'x': 0.0, 'n': 1, 'epochs': 10}, {'x': 0.0, 'n': 2, 'epochs': 10},
     {'x': 1.0, 'n': 1, 'epochs': 10}, {'x': 1.0, 'n': 2, 'epochs': 10}]
    """
    number = whole_number("levels", levels, 1)
    texts = dict.fromkeys(map(encode, combinations(Shape(space).tree, number)))
    return [from_json(text, "arguments of the grid") for text in texts]


def sample(space: Any, n: int, seed: int = 0) -> list[Any]:
    """Return `n` arguments at random, each independent of the others.

    A list that is longer, with the same seed, begins with the same arguments.

    Examples
    --------
    >>> sample({"x": integers(1, 6)}, n=3) == sample({"x": integers(1, 6)}, n=4)[:3]
    True
    """
    shape = Shape(space)
    number = whole_number("n", n, 1)
    rng = random.Random(f"sample {whole_number('seed', seed)}")
    return [fill(shape.tree, [rng.random() for _ in shape.parameters]) for _ in range(number)]


def quasi(space: Any, n: int, seed: int = 0) -> list[Any]:
    """Return `n` arguments that fill the space more evenly than random ones: a scrambled Halton sequence.

    A list that is longer, with the same seed, begins with the same arguments.

    Examples
    --------
    >>> sorted(args["x"] for args in quasi({"x": integers(1, 4)}, n=4))
    [1, 2, 3, 4]
    """
    shape = Shape(space)
    number = whole_number("n", n, 1)
    sequence = Halton(len(shape.parameters), whole_number("seed", seed))
    return [fill(shape.tree, sequence.at(index)) for index in range(number)]


class Halton:
    """Points of the unit cube that are evenly spread, each digit permuted at random (Owen, 2017)."""

    def __init__(self, dimensions: int, seed: int) -> None:
        rng = random.Random(f"halton {seed}")
        self._bases = [(base, _permutations(base, rng)) for base in itertools.islice(_primes(), dimensions)]

    def at(self, index: int) -> list[float]:
        return [_inverse(index, base, permutations) for base, permutations in self._bases]


def _inverse(index: int, base: int, permutations: list[list[int]]) -> float:
    share, scale = 0.0, 1.0
    for permutation in permutations:
        index, digit = divmod(index, base)
        scale /= base
        share += permutation[digit] * scale
    return min(share, 1 - 2**-53)


def _permutations(base: int, rng: random.Random) -> list[list[int]]:
    """Return one for each digit that a float has; of sorted(), whose result no version of Python changes."""
    number = math.ceil(52 / math.log2(base))
    return [sorted(range(base), key=[rng.random() for _ in range(base)].__getitem__) for _ in range(number)]


def _primes() -> Iterator[int]:
    found: list[int] = []
    for number in itertools.count(2):
        if all(number % prime for prime in found):
            found.append(number)
            yield number


START = 15  # evaluations that are evenly spread, before there is anything to learn from
GOOD, MOST = 0.15, 50  # share of the results that are good, and how many at most
OPEN = 0.1  # weight of what is in progress, among what is not good
CANDIDATES = 24
NARROWEST = 0.01  # width of a kernel, as a share of the range
EVEN = 0.1  # weight of an even spread beside the good, where their spread is estimated
ROOM = 200  # evaluations that are not good, at most, with which candidates are compared
TRIES = 100  # to come upon something new by chance
FEW = 10_000  # arguments that are then gone through, at most


class Past:
    """What is known of the evaluations so far. At each call only those are read that have changed."""

    def __init__(self, shape: Shape, maximize: bool, key: str | None) -> None:
        self._shape, self._maximize, self._key = shape, maximize, key
        self._evals: list[Mapping[str, Any]] = []
        self.points: list[Point | None] = []  # None: it is not of this space
        self.ranking: list[tuple[float, int]] = []  # loss and index of those that have a result
        self.others: list[int] = []  # indices of those that have none (yet)
        self.tried: set[tuple[float, ...]] = set()  # coordinates

    def take_in(self, history: Sequence[Mapping[str, Any]]) -> None:
        changed = [i for i, same in enumerate(map(operator.is_, self._evals, history)) if not same]
        if len(history) < len(self._evals) or not all(self._was_open(i, history[i]) for i in changed):
            for its in (self._evals, self.points, self.ranking, self.others, self.tried, changed):
                its.clear()
        for index in changed:
            if self.points[index]:
                self.others.remove(index)
        new = range(len(self._evals), len(history))
        self.points.extend(self._shape.place(history[index]["args"]) for index in new)
        for index in [*changed, *new]:
            self._rank(index, self.points[index], self._loss(history[index]))
        self._evals[:] = history

    def _was_open(self, index: int, its: Mapping[str, Any]) -> bool:
        same = its["args"] == self._evals[index]["args"]
        return same and (self.points[index] is None or index in self.others)

    def _rank(self, index: int, point: Point | None, loss: float | None) -> None:
        if point is None:
            return
        self.tried.add(point.coords)
        if loss is None:
            bisect.insort(self.others, index)
        else:
            bisect.insort(self.ranking, (loss, index))

    def _loss(self, its: Mapping[str, Any]) -> float | None:
        """Return what is to be small; None if there is no such number, or only one of an early end."""
        if its["status"] != "completed" or its.get("stopped") is not None:
            return None
        value = its["result"]
        if self._key is not None:
            value = value.get(self._key) if isinstance(value, dict) else None
        if not isinstance(value, (int, float)) or value != value:  # noqa: PLR0124 - NaN is not
            return None
        return -value if self._maximize else value

    def split(self) -> tuple[list[Weighted], list[Weighted]]:
        """Return the good ones, and others: if they are many, the best and some of the rest for all."""
        m = min(math.ceil(GOOD * len(self.ranking)), MOST)
        weights = [math.log(m + 1) - math.log(rank) for rank in range(1, m + 1)]
        order = [index for _, index in self.ranking] + self.others
        good = self._weighted(order[:m], m / math.fsum(weights))
        good = [(point, factor * weight) for (point, factor), weight in zip(good, weights)]
        if len(order) - m <= ROOM:
            return good, self._weighted(order[m:], 1.0)
        half, rest = ROOM // 2, order[m + ROOM // 2 :]
        step = len(rest) / half
        some = [rest[int(number * step)] for number in range(half)]
        return good, self._weighted(order[m : m + half], 1.0) + self._weighted(some, step)

    def _weighted(self, indices: list[int], weight: float) -> list[Weighted]:
        found = []
        for index in indices:
            point, status = self.points[index], self._evals[index]["status"]
            if point:
                found.append((point, weight * (OPEN if status in ("pending", "in_progress") else 1.0)))
        return found


class Kernels:
    """A density: at each of some points a kernel, a normal distribution of all parameters at once.

    An option that differs is a distance too, so that a kernel takes one `math.dist`. One of weight 1 more
    is even, over all that there is.
    """

    def __init__(self, shape: Shape, points: list[Weighted], widths: list[float]) -> None:
        total = math.fsum(weight for _, weight in points) + 1
        self._even: list[float] = []  # by parameter: how dense that one is, beside the middle of a kernel
        self._factors: list[float] = []  # by coordinate, for exp(-distance ** 2) to be a kernel
        for its, width in zip(shape.parameters, widths):
            if isinstance(its, Range):
                self._even.append(width * math.sqrt(2 * math.pi))
                self._factors.append(math.sqrt(0.5) / width)
            else:
                number = len(its.options)
                self._even.append((total + number) / (total + 1) / number)
                self._factors.extend([math.sqrt(0.5 * math.log(total + 1))] * number)
        self._weights = [weight for _, weight in points]
        self._centres = [self._scaled(point) for point, _ in points]

    def _scaled(self, point: Point) -> tuple[float, ...]:
        return tuple(map(operator.mul, point.coords, self._factors))

    def log_density(self, point: Point) -> float:
        """Return its logarithm, but for a constant."""
        even = [self._even[which] for which in point.parts]
        distances = map(math.dist, self._centres, itertools.repeat(self._scaled(point)))
        near = [math.exp(-distance * distance) for distance in distances]
        density = math.prod(even) + sum(map(operator.mul, near, self._weights))
        return math.log(max(density, 1e-300)) - sum(map(math.log, even))


class TPE:
    """An evaluation space whose arguments are suggested one by one, by what the evaluations so far gave.

    A tree-structured Parzen estimator: it suggests where good evaluations are dense, compared with all
    others. What is in progress counts among these, as does what failed, was ended early, or has no number as
    its result.

    Parameters
    ----------
    space : dict or other
        Domains, at any depth of dicts and lists, beside constants.
    n : int
        Number of evaluations in all.
    maximize : bool
        Whether large results are good. By default small ones are.
    key : str, optional
        Of a result that is a dict, where the number is that counts. By default the result is that number.
    seed : int
        Another one gives other suggestions.

    Examples
    --------
    >>> space = TPE({"x": uniform(-1, 1)}, n=50)
    >>> history = []
    >>> for _ in range(len(space)):
    ...     args = space.suggest(history)
    ...     history.append({"args": args, "status": "completed", "result": (args["x"] - 0.3) ** 2})
    >>> min(evaluation["result"] for evaluation in history) < 1e-3
    True
    """

    def __init__(
        self, space: Any, n: int, *, maximize: bool = False, key: str | None = None, seed: int = 0
    ) -> None:
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key is the text under which results have their number, not {key!r}")
        self.maximize, self.key, self.seed = bool(maximize), key, whole_number("seed", seed)
        self._number = whole_number("n", n, 1)
        self._shape = Shape(space)
        self._halton = Halton(len(self._shape.parameters), self.seed)
        self._past = Past(self._shape, self.maximize, key)

    def __len__(self) -> int:
        return self._number

    def suggest(self, history: Sequence[Mapping[str, Any]]) -> Any:
        """Return the arguments to evaluate next.

        Nothing counts but the space, the seed and the history: who asks with the same gets the same.

        Parameters
        ----------
        history : sequence of dict
            All evaluations, in the order in which they were made, with status, args and result as from
            `load_evals`, perhaps ``"stopped"`` (None, or the step at which it was ended early). One that has
            not changed since the last call has to be the same object. Those that are not of this space are
            ignored.
        """
        self._past.take_in(history)
        rng = random.Random(f"tpe {self.seed} {len(history)}")
        known = len(self._past.ranking) + len(self._past.others)
        for args in self._ordered(known, rng):
            point = self._shape.place(args)
            if point is None or point.coords not in self._past.tried:
                return args
        return fill(self._shape.tree, [rng.random() for _ in self._shape.parameters])

    def _ordered(self, known: int, rng: random.Random) -> Iterator[Any]:
        """Yield what to evaluate, in the order in which it is wanted, for the case that it was tried."""
        if known >= START and self._past.ranking:
            yield from self._candidates(rng)
        for index in range(known, known + TRIES):
            yield fill(self._shape.tree, self._halton.at(index))
        yield from itertools.islice(combinations(self._shape.tree, FEW), FEW)

    def _candidates(self, rng: random.Random) -> list[Any]:
        points, others = self._past.split()
        widths = self._widths(points)
        good, bad = Kernels(self._shape, points, widths), Kernels(self._shape, others, widths)
        sums = list(itertools.accumulate([weight for _, weight in points], initial=1.0))
        starts: list[dict[int, float]] = [{}, *(point.parts for point, _ in points)]  # the first: anywhere

        def drawn() -> dict[int, float]:
            return starts[bisect.bisect(sums, rng.random() * sums[-1], hi=len(points))]

        found: list[tuple[float, Any]] = []
        for _ in range(CANDIDATES):
            # Anywhere, or each parameter of another: what makes this one good may go with what makes that so.
            one = drawn()
            start = [drawn().get(which, one.get(which)) if one else None for which in range(len(widths))]
            args = fill(self._shape.tree, self._near(start, widths, sums[-1], rng))
            point = self._shape.place(args)
            if point is not None:
                found.append((bad.log_density(point) - good.log_density(point), args))
        return [args for _, args in sorted(found, key=operator.itemgetter(0))]

    def _widths(self, points: list[Weighted]) -> list[float]:
        """Return how wide kernels are in each parameter: less than the good evaluations are apart."""
        # By fsum(), because sum() is another one since Python 3.12.
        exponent = -1 / (4 + len(self._shape.parameters))
        widths = []
        for its in self._shape.parameters:
            shares = [(point.parts[its.which], w) for point, w in points if its.which in point.parts]
            total = math.fsum(w for _, w in shares) + EVEN
            mean = (math.fsum(w * share for share, w in shares) + EVEN * 0.5) / total
            square = math.fsum(w * (share - mean) ** 2 for share, w in shares)
            square += EVEN * ((0.5 - mean) ** 2 + 1 / 12)
            step = its.step if isinstance(its, Range) else 0.0
            width = math.sqrt(square / total) * max(len(shares), 1) ** exponent
            widths.append(max(width, NARROWEST, step / 2))
        return widths

    def _near(self, start: list[float | None], widths: list[float], total: float, rng: Any) -> list[float]:
        """Return shares drawn from a kernel; at random where it has none."""
        shares = []
        for its, at, width in zip(self._shape.parameters, start, widths):
            share = rng.random()
            if at is not None and isinstance(its, Range):
                share = _reflected(at + width * _normal(rng))
            elif at is not None and isinstance(its, Choice):
                number = len(its.options)
                if rng.random() < (total + 1) / (total + number):
                    share = (at + 0.5) / number
            shares.append(share)
        return shares


def _normal(rng: random.Random) -> float:
    """Return a normal deviate, the same in each version of Python (Box and Muller, 1958)."""
    return math.sqrt(-2 * math.log(1 - rng.random())) * math.cos(2 * math.pi * rng.random())


def _reflected(share: float) -> float:
    """Return a share within [0, 1]: what leaves it comes back."""
    share = abs(share) % 2
    return 2 - share if share > 1 else share
