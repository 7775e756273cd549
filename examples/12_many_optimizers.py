"""Local searches from many starts, each on processes of its own; those that do poorly are stopped."""

import math
import os
import random
import tempfile

from speval import current_eval, load_evals, report, speval
from speval.search import median, quasi, uniform

FOLDER = os.path.join(tempfile.gettempdir(), "12_many_optimizers")
STARTS = quasi([uniform(-4, 4), uniform(-4, 4)], n=6)


def height(point):
    """Of hills and valleys, the deepest of which is at (0, 0)."""
    return sum(x**2 + 4 * (1 - math.cos(3 * x)) for x in point)


def search(start):
    """Go to the lowest of some points around the present one, ever closer, until nothing is gained."""
    fname = os.path.join(FOLDER, f"search_{current_eval()['name']}.db")
    rng, points = random.Random(0), {"start": start}
    for step in range(8):
        speval(height, points, fname, n_jobs=2)
        best = min(load_evals(fname, "completed"), key=lambda e: e["result"])
        if report(best["result"], step):
            break
        around = [[rng.gauss(x, 1.5 * 0.6**step) for x in best["args"]] for _ in range(6)]
        points = {f"{step}-{number}": point for number, point in enumerate(around)}
    return {"height": best["result"], "at": best["args"]}


if __name__ == "__main__":
    outer = os.path.join(FOLDER, "outer.db")
    speval(search, STARTS, outer, n_jobs=4, stop=median(warmup=3, startup=3))
    evals = load_evals(outer)
    best = min((e["result"] for e in evals), key=lambda result: result["height"])
    print(f"{sum(e['stopped'] is not None for e in evals)} of {len(evals)} searches were stopped")
    print(f"lowest: {best['height']:.2g} at ({best['at'][0]:.1f}, {best['at'][1]:.1f})")
