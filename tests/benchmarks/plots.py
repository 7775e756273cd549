"""A PNG for each measurement, from its figures."""

from __future__ import annotations

import pathlib
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(name: str, its: Any, path: pathlib.Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    globals()[name](axes, its)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _bars(axes: Any, values: dict[str, list[float]], unit: str, form: str = ",.0f") -> None:
    """Draw medians as horizontal bars, with a point for each round."""
    names = list(values)[::-1]
    bars = axes.barh(names, [median(values[name]) for name in names], color="tab:blue", alpha=0.6)
    axes.bar_label(bars, fmt=lambda value: f"{value:{form}}", padding=4)
    for row, name in enumerate(names):
        axes.plot(values[name], [row] * len(values[name]), "k.", markersize=3)
    axes.set_xlabel(unit)


def _asked(axes: Any, value: float, what: str, across: bool = False) -> None:
    (axes.axvline if across else axes.axhline)(value, color="tab:red", linestyle="--", label=what)
    axes.legend()


def throughput(axes: Any, its: dict[str, list[float]]) -> None:
    _bars(axes, its, "evaluations/s")
    _asked(axes, 100_000, "asked: 100,000/s", across=True)
    axes.set_title("No-op, 1 worker, against a bare loop with 1,000 evaluations a transaction")


def workers(axes: Any, its: list[tuple[int, list[float]]]) -> None:
    numbers, rates = [n for n, _ in its], [median(values) for _, values in its]
    axes.semilogx(numbers, rates, "o-", base=2)
    for number, values in its:
        axes.plot([number] * len(values), values, "k.", markersize=3)
    _asked(axes, rates[0], "one worker: asked of 8")
    _asked(axes, 0.8 * rates[0], "0.8 of one worker: asked of 64")
    axes.set_xticks(numbers, list(map(str, numbers)))
    axes.set_ylim(0)
    axes.set(xlabel="workers", ylabel="evaluations/s", title="No-op, 1,000,000 evaluations, start to end")


def stores(axes: Any, its: dict[str, list[float]]) -> None:
    _bars(axes, its, "evaluations/s, logarithmic")
    axes.set_xscale("log")
    axes.set_xlim(10, 1e6)
    axes.set_title("No-op, 2 workers, against what stores its results")


def pools(axes: Any, its: dict[str, list[float]]) -> None:
    stores(axes, its)
    axes.set_title("No-op, 2 workers, stored, against what stores nothing")


def size(axes: Any, its: dict[str, Any]) -> None:
    step, called = its["step"], its["called"]
    costs = [1e6 * (after - before) / step for before, after in zip(called, called[1:])]
    axes.plot([step * (i + 1) / 1e6 for i in range(len(costs))], costs, ".-", label="one whole sweep")
    first = median(next(iter(its["costs"].values())))
    axes.plot([], [], " ", label="\n".join(f"{what}: {median(v):.1f} us" for what, v in its["costs"].items()))
    _asked(axes, 1.15 * first, "1.15 of the first 100,000")
    axes.set_ylim(0)
    axes.set(
        xlabel="evaluations that are done, in millions", ylabel="cost of one, us", title="No-op, 1 worker"
    )


def ideal(axes: Any, its: dict[str, list[float]]) -> None:
    _bars(axes, its, "share of the ideal: bare loops that store nothing", ".3f")
    for row, asked in zip((2, 1, 0), (0.9, 0.97, 0.95)):
        axes.plot([asked, asked], [row - 0.4, row + 0.4], "r--", label="asked" if row == 0 else None)
    axes.set_xlim(0, 1.15)
    axes.legend(loc="lower left")
    axes.set_title("Evaluations that take their time")


def fairness(axes: Any, its: dict[str, Any]) -> None:
    for number, found in its.items():
        axes.plot(
            sorted(found["shares"]),
            [1000 * w for w in sorted(found["waits"])],
            ".",
            label=f"{number} workers",
        )
    _asked(axes, 1500, "asked of 64: under 1,500 ms")
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.set(
        xlabel="evaluations of a worker in 10 s (sorted)", ylabel="longest wait of a worker, ms (sorted)"
    )
    axes.set_title("No-op: what the least and the most served of the workers get")


def tail(axes: Any, its: dict[str, Any]) -> None:
    names = [f"worker {number}" for number in range(len(its["ends"]))]
    axes.barh(names, its["ends"], color="tab:blue", alpha=0.6)
    axes.axvline(max(its["ends"]), color="k", linewidth=0.5)
    _asked(axes, 0.95 * max(its["ends"]), "asked: nobody idle before this", across=True)
    axes.set_xlim(0.8 * max(its["ends"]))
    axes.set_xlabel("seconds from the start to the end of the last evaluation (from 80 %)")
    axes.set_title(
        f"End of a sweep: idle {median(its['idle']):.1f} % of the whole (median of {len(its['idle'])})"
    )


def populate(axes: Any, its: dict[str, Any]) -> None:
    _bars(axes, its["rates"], "evaluations/s that are added")
    _asked(axes, 150_000, "asked: 150,000/s", across=True)
    memory = ", ".join(f"{number:,}: {grown / 1024:.1f} MiB" for number, grown in its["memory"])
    axes.set_title(f"Populating 1,000,000; growth of memory: {memory}", fontsize=10)


def large(axes: Any, its: dict[str, list[tuple[int, float, float]]]) -> None:
    for what, points in its.items():
        axes.loglog([length for length, *_ in points], [ms for _, ms, _ in points], "o-", label=what)
    axes.legend(fontsize=8)
    axes.set(
        xlabel="characters", ylabel="ms for one evaluation", title="What a large argument or result costs"
    )


def server(axes: Any, its: dict[str, list[float]]) -> None:
    _bars(axes, its, "evaluations/s")
    _asked(axes, 30_000, "asked: 30,000/s", across=True)
    axes.set_title("No-op, 8 workers, on a PostgreSQL server of this machine")


def search(axes: Any, its: dict[str, Any]) -> None:
    for what, regrets in its["regrets"].items():
        kind, workers = what.split(", ")
        color = {"TPE": "tab:blue", "Optuna": "tab:orange", "random": "tab:gray", "quasi": "tab:green"}[kind]
        style = "-" if workers == "1 worker" else "--"
        axes.semilogy(range(1, its["evals"] + 1), regrets, style, color=color, label=what)
    axes.legend(fontsize=8)
    axes.set(xlabel="evaluations", ylabel="distance of the best so far from the optimum")
    axes.set_title("Eight functions, 20 seeds each: median; 1 is what the first random arguments give")
