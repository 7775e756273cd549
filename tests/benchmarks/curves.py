"""The measurement of stopping: what is found of simulated learning curves, and after how many epochs."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from instances import EPOCHS, curve
from measures import Row
from processes import PACKAGE, call, database, race, scaled, spread

CURVES, WORKERS, ROUNDS, REPORTS = scaled(200), 8, 3, 1000


def stopping() -> Iterator[Row]:
    sys.path.insert(0, str(PACKAGE))
    for rule in ("none", "median", "halving"):
        seconds, epochs, gaps = zip(*(_trained(rule, seed) for seed in range(ROUNDS)))
        yield f"{rule}: seconds of {CURVES} curves, {WORKERS} workers", spread(seconds, ".1f"), ""
        if rule != "none":
            yield f"{rule}: epochs, of all", spread(epochs, ".3f"), "<= 0.4"
            yield f"{rule}: the best found, above the best of all", spread(gaps, ".4f"), "<= 0.01"
    shares = []
    for _ in range(ROUNDS):
        seconds, took = call("reports", database(), REPORTS)
        shares.append(took / seconds)
    yield f"{REPORTS} reports in a second: share of the time", spread(shares, ".3f"), "little"


def _trained(rule: str, seed: int) -> tuple[float, float, float]:
    """Return seconds, share of the epochs, and how much worse than the best is the best that was found."""
    import speval

    path = database()
    seconds, _ = race(WORKERS, "train", path, seed, CURVES, rule)
    rows = speval.load_evals(path, reports=True)
    epochs = sum(len(row["reports"]) for row in rows) / (CURVES * EPOCHS)
    best = min(curve(str(seed), number)[-1] for number in range(CURVES))
    return seconds, epochs, min(row["result"] for row in rows) / best - 1
