"""Estimate pi by eight processes of one script, with a line of progress. One of them crashes on the way."""

import os
import random
import tempfile

from speval import current_eval, load_evals, speval

FNAME = os.path.join(tempfile.gettempdir(), "05_local_processes.db")


def func(seed):
    if seed == 7 and current_eval()["attempt"] == 1:
        os.abort()  # as a library in C may do: another process takes the place of this one
    points = random.Random(seed)
    n = 50_000
    inside = sum(points.random() ** 2 + points.random() ** 2 < 1 for _ in range(n))
    return 4 * inside / n


if __name__ == "__main__":
    speval(func, range(100), FNAME, timeout=60, n_jobs=8, progress=True)
    results = [e["result"] for e in load_evals(FNAME, "completed")]
    print(f"{len(results)} evaluations, pi is about {sum(results) / len(results):.3f}")
