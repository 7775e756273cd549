"""The measurement of adaptive spaces: what they find, beside a peer, and what a suggestion takes."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from measures import Row, figures
from peers import install
from processes import PACKAGE, SCALE, database, directory, ms

EVALS, SEEDS = 100, max(2, round(20 * SCALE))
Vector = list[float]
Run = list[float]  # the best value after each evaluation


def branin(x: Vector) -> float:
    a, b = x
    return (b - 5.1 / (4 * math.pi**2) * a * a + 5 / math.pi * a - 6) ** 2 + 10 * (
        (1 - 1 / (8 * math.pi)) * math.cos(a) + 1
    )


SHARES = 1.0, 1.2, 3.0, 3.2
SLOPES = {
    3: [(3, 10, 30), (0.1, 10, 35), (3, 10, 30), (0.1, 10, 35)],
    6: [
        (10, 3, 17, 3.5, 1.7, 8),
        (0.05, 10, 17, 0.1, 8, 14),
        (3, 3.5, 1.7, 10, 17, 8),
        (17, 8, 0.05, 10, 0.1, 14),
    ],
}
PEAKS = {
    3: [(0.3689, 0.117, 0.2673), (0.4699, 0.4387, 0.747), (0.1091, 0.8732, 0.5547), (0.0382, 0.5743, 0.8828)],
    6: [
        (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
        (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
        (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.665),
        (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
    ],
}


def hartmann(x: Vector) -> float:
    return -sum(
        share * math.exp(-sum(s * (a - p) ** 2 for s, a, p in zip(slopes, x, peak)))
        for share, slopes, peak in zip(SHARES, SLOPES[len(x)], PEAKS[len(x)])
    )


def rosenbrock(x: Vector) -> float:
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in zip(x, x[1:]))


def rastrigin(x: Vector) -> float:
    return sum(a * a - 10 * math.cos(2 * math.pi * a) + 10 for a in x)


def ackley(x: Vector) -> float:
    waves = sum(math.cos(2 * math.pi * a) for a in x) / len(x)
    return 20 - 20 * math.exp(-0.2 * math.hypot(*x) / math.sqrt(len(x))) + math.e - math.exp(waves)


def styblinski_tang(x: Vector) -> float:
    return sum(a**4 - 16 * a * a + 5 * a for a in x) / 2


def models(args: dict[str, Any]) -> float:
    """Return what tuning three kinds of models might give, each with its own parameters."""
    model, loss = args["model"], 0.05 * (math.log10(args["lr"]) + 3.2) ** 2
    if model["kind"] == "svm":
        c, gamma = math.log10(model["C"]) - 1, math.log10(model["gamma"]) + 2
        return loss + 0.12 + 0.03 * c**2 + 0.04 * (gamma - 0.4 * c) ** 2
    if model["kind"] == "knn":
        return loss + 0.2 + 0.0006 * (model["k"] - 7) ** 2 + 0.03 * (model["weights"] == "uniform")
    criterion = {"gini": 0.02, "entropy": 0.0, "log": 0.05}[model["criterion"]]
    return loss + 0.09 + 0.005 * (model["depth"] - 6) ** 2 + 0.06 * abs(model["part"] - 0.72) + criterion


def problems() -> dict[str, tuple[Callable[[Any], float], Any, float]]:
    """Return functions by name, each with its space and its least value."""
    from speval.search import choice, integers, loguniform, uniform

    def cube(low: float, high: float, dimensions: int) -> list[Any]:
        return [uniform(low, high) for _ in range(dimensions)]

    kinds = [
        {"kind": "svm", "C": loguniform(0.01, 1000), "gamma": loguniform(1e-5, 10)},
        {"kind": "knn", "k": integers(1, 30), "weights": choice(["uniform", "distance"])},
        {
            "kind": "forest",
            "depth": integers(1, 20),
            "part": uniform(0.1, 1),
            "criterion": choice(["gini", "entropy", "log"]),
        },
    ]
    return {
        "Branin": (branin, [uniform(-5, 10), uniform(0, 15)], 0.397887),
        "Hartmann 3": (hartmann, cube(0, 1, 3), -3.86278),
        "Hartmann 6": (hartmann, cube(0, 1, 6), -3.32237),
        "Rosenbrock 5": (rosenbrock, cube(-5, 10, 5), 0.0),
        "Rastrigin 5": (rastrigin, cube(-5.12, 5.12, 5), 0.0),
        "Ackley 10": (ackley, cube(-32.768, 32.768, 10), 0.0),
        "Styblinski-Tang 5": (styblinski_tang, cube(-5, 5, 5), -195.83083),
        "models": (models, {"lr": loguniform(1e-5, 1e-1), "model": choice(kinds), "epochs": 10}, 0.09),
    }


class Ours:
    """Suggestions of this package."""

    def __init__(self, space: Any, seed: int, workers: int) -> None:
        from speval.search import TPE

        self._space, self._history = TPE(space, EVALS, seed=seed), list[dict[str, Any]]()

    def suggest(self) -> tuple[int, Any]:
        args = self._space.suggest(self._history)
        self._history.append({"name": "", "status": "in_progress", "args": args, "result": None})
        return len(self._history) - 1, args

    def tell(self, which: int, value: float) -> None:
        self._history[which] = {**self._history[which], "status": "completed", "result": value}


class Random:
    """Arguments of a list, at random."""

    def __init__(self, space: Any, seed: int, workers: int) -> None:
        from speval import search

        self._args = enumerate(getattr(search, self.kind)(space, EVALS, seed=seed))

    kind = "sample"

    def suggest(self) -> tuple[int, Any]:
        return next(self._args)

    def tell(self, which: int, value: float) -> None:
        pass


class Quasi(Random):
    """Arguments of a list, evenly spread."""

    kind = "quasi"


class Optuna:
    """Suggestions of Optuna's TPE at its defaults; with several workers by `constant_liar`."""

    def __init__(self, space: Any, seed: int, workers: int) -> None:
        import optuna

        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=workers > 1)
        self._space, self._study = space, optuna.create_study(sampler=sampler)

    def suggest(self) -> tuple[Any, Any]:
        its = self._study.ask()
        return its, _ask(its, self._space, "")

    def tell(self, which: Any, value: float) -> None:
        self._study.tell(which, value)


def _ask(its: Any, space: Any, path: str) -> Any:
    """Return what Optuna suggests for a space of ours."""
    if isinstance(space, dict):
        return {key: _ask(its, inner, f"{path}.{key}") for key, inner in space.items()}
    if isinstance(space, list):
        return [_ask(its, inner, f"{path}.{number}") for number, inner in enumerate(space)]
    if hasattr(space, "options"):
        number = its.suggest_categorical(path, list(range(len(space.options))))
        return _ask(its, space.options[number], f"{path}.{number}")
    if not hasattr(space, "kind"):
        return space
    if space.kind == "integers":
        return its.suggest_int(path, space.low, space.high)
    return its.suggest_float(path, space.low, space.high, log=space.kind == "loguniform")


def run(kind: Callable[..., Any], func: Callable[[Any], float], space: Any, seed: int, workers: int) -> Run:
    """Simulate workers whose evaluations take 0.3 to 1.7 of some time; return the best value after each."""
    its, rng = kind(space, seed, workers), random.Random(f"durations {seed}")
    under_way: list[tuple[float, int, Any, Any]] = []
    best, now, values = math.inf, 0.0, Run()
    for number in itertools.count():
        if number >= workers:
            now, _, which, args = heapq.heappop(under_way)
            value = func(args)
            its.tell(which, value)
            best = min(best, value)
            values.append(best)
        if number < EVALS:
            heapq.heappush(under_way, (now + rng.uniform(0.3, 1.7), number, *its.suggest()))
        if len(values) == EVALS:
            return values
    raise AssertionError


def search() -> Iterator[Row]:
    sys.path.insert(0, str(PACKAGE))
    kinds: dict[str, Callable[..., Any]] = {"TPE": Ours, "random": Random, "quasi": Quasi}
    package = directory / "optuna"
    try:
        install(package, "optuna")
        sys.path.append(str(package))
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds["Optuna"] = Optuna
        yield f"Optuna {optuna.__version__}", "TPESampler", ""
    except ImportError as exc:
        yield "Optuna", f"cannot be measured here: {exc}", ""
    found: dict[tuple[str, int], dict[tuple[str, int], Run]] = {}
    for workers in (1, 8):
        for kind, make in kinds.items():
            if workers == 1 or kind in ("TPE", "Optuna"):
                found[kind, workers] = {
                    (name, seed): run(make, func, space, seed, workers)
                    for name, (func, space, _) in problems().items()
                    for seed in range(SEEDS)
                }
        yield from _beside(found, workers)
    yield "1 worker: median and mean rank, 1 is best", _ranks({its: found[its, 1] for its in kinds}), ""
    yield "TPE, 8 workers, ahead of 1 worker", _ahead(found["TPE", 8], found["TPE", 1])[0], "some half"
    if "Optuna" in kinds:
        yield "Optuna, 8 workers, ahead of 1 worker", _ahead(found["Optuna", 8], found["Optuna", 1])[0], ""
    yield "TPE, 8 workers, ahead of random", _ahead(found["TPE", 8], found["random", 1])[0], ""
    figures["search"] = {"evals": EVALS, "regrets": _regrets(found)}
    yield from _times("Optuna" in kinds)


def _ranks(found: dict[str, dict[tuple[str, int], Run]]) -> str:
    """Return the median and the mean rank of each kind among all, over functions and seeds."""
    ranks: dict[str, list[float]] = {kind: [] for kind in found}
    for one in next(iter(found.values())):
        ends = {kind: runs[one][-1] for kind, runs in found.items()}
        for kind, end in ends.items():
            equal = sum(its == end for its in ends.values())
            ranks[kind].append(sum(its < end for its in ends.values()) + (equal + 1) / 2)
    return ", ".join(f"{kind} {median(its):g} ({sum(its) / len(its):.2f})" for kind, its in ranks.items())


def _beside(found: dict[tuple[str, int], dict[tuple[str, int], Run]], workers: int) -> Iterator[Row]:
    ours, text = found["TPE", workers], f"{workers} worker{'s' * (workers > 1)}"
    for other, asked in (("Optuna", "> half, p < 0.05"), ("random", "far"), ("quasi", "far")):
        if (other, workers) in found:
            yield f"{text}: ahead of {other}", _ahead(ours, found[other, workers])[0], asked
    if ("Optuna", workers) in found:
        _, wins = _ahead(ours, found["Optuna", workers])
        for name, number in wins.items():
            medians = [f"{_best(found[kind, workers], name):.4g}" for kind in ("TPE", "Optuna")]
            yield f"{text}, {name}: ahead of Optuna", f"{number:g} of {SEEDS}; {' / '.join(medians)}", ""


def _best(runs: dict[tuple[str, int], Run], name: str) -> float:
    return median(values[-1] for (its, _), values in runs.items() if its == name)


def _ahead(
    ours: dict[tuple[str, int], Run], others: dict[tuple[str, int], Run]
) -> tuple[str, dict[str, float]]:
    """Return in how many pairs of one function and seed ours is better, a sign test, and this by function."""
    wins: dict[str, float] = {}
    for name, seed in ours:
        mine, its = ours[name, seed][-1], others[name, seed][-1]
        wins[name] = wins.get(name, 0.0) + (0.5 if mine == its else float(mine < its))
    number, total = len(ours), sum(wins.values())
    tail = sum(math.comb(number, k) for k in range(math.ceil(max(total, number - total)), number + 1))
    return f"{total:g} of {number} pairs, p = {min(1.0, 2 * tail / 2**number):.2g}", wins


def _regrets(found: dict[tuple[str, int], dict[tuple[str, int], Run]]) -> dict[str, Run]:
    """Return the median over all runs of how far the best so far is from the least value, as a share.

    1 is what random arguments have after the first evaluation, in the median.
    """
    scales = {}
    for name, (_, _, least) in problems().items():
        first = median(values[0] for (its, _), values in found["random", 1].items() if its == name)
        scales[name] = least, first - least
    return {
        f"{kind}, {workers} worker{'s' * (workers > 1)}": [
            median((values[i] - scales[name][0]) / scales[name][1] for (name, _), values in runs.items())
            for i in range(EVALS)
        ]
        for (kind, workers), runs in found.items()
    }


def _times(beside: bool) -> Iterator[Row]:
    from speval.search import TPE, quasi, uniform

    space = [uniform(-5, 5) for _ in range(10)]
    for number, asked in ((100, "< 5 ms"), (1000, "< 10 ms"), (10_000, "< 50 ms")):
        history = [
            {"name": "", "status": "completed", "args": args, "result": rosenbrock(args)}
            for args in quasi(space, number)
        ]
        its, seconds = TPE(space, 2 * number), []
        its.suggest(history)
        for _ in range(30):
            began = time.perf_counter()
            args = its.suggest(history)
            seconds.append(time.perf_counter() - began)
            history.append({"name": "", "status": "completed", "args": args, "result": rosenbrock(args)})
        yield f"a suggestion, 10 parameters, {number} evaluations", ms(seconds), asked
        yield f"the same, through sqlite, {number} evaluations", ms(_through_sqlite(number)), ""
        if beside and number <= 1000:  # to enter 10,000 takes a quarter of an hour
            yield f"Optuna, through sqlite, {number} evaluations", ms(_optuna_through_sqlite(number)), "more"


def _through_sqlite(number: int) -> list[float]:
    """Return the seconds between calls of a function for which arguments are suggested, and stored."""
    from speval import speval
    from speval.search import TPE, quasi, uniform

    space, path, called = [uniform(-5, 5) for _ in range(10)], database(), list[float]()

    def func(args: Any) -> float:
        called.append(time.perf_counter())
        return rosenbrock(args)

    speval(func, quasi(space, number), path)
    called.clear()
    speval(func, TPE(space, number + 21), path)
    return [after - before for before, after in zip(called, called[1:])]


def _optuna_through_sqlite(number: int) -> list[float]:
    import optuna

    from speval.search import quasi, uniform

    names, called = [f"x{i}" for i in range(10)], list[float]()
    distribution = optuna.distributions.FloatDistribution(-5, 5)

    def func(trial: Any) -> float:
        args = [trial.suggest_float(name, -5, 5) for name in names]
        called.append(time.perf_counter())
        return rosenbrock(args)

    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(storage=f"sqlite:///{database()}", sampler=sampler)
    known = [
        optuna.trial.create_trial(
            params=dict(zip(names, args)),
            distributions=dict.fromkeys(names, distribution),
            value=rosenbrock(args),
        )
        for args in quasi([uniform(-5, 5)] * 10, number)
    ]
    study.add_trials(known)
    study.optimize(func, n_trials=21)
    return [after - before for before, after in zip(called, called[1:])]
