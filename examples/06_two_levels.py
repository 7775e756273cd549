"""Two levels: each evaluation of the outer search is itself a search, by processes of its own."""

import os
import tempfile

from speval import current_eval, load_evals, speval

FOLDER = os.path.join(tempfile.gettempdir(), "06_two_levels")


def error(args):
    """Of the line a x + b at some points of the parabola x^2."""
    a, b = args
    return sum((a * x + b - x**2) ** 2 for x in range(11))


def best_b(a):
    fname = os.path.join(FOLDER, f"inner_{current_eval()['name']}.db")
    speval(error, [[a, b] for b in range(-20, 1)], fname, n_jobs=2)
    best = min(load_evals(fname), key=lambda e: e["result"])
    return {"b": best["args"][1], "error": best["result"]}


if __name__ == "__main__":
    outer = os.path.join(FOLDER, "outer.db")
    speval(best_b, range(6, 14), outer, n_jobs=2)
    best = min(load_evals(outer), key=lambda e: e["result"]["error"])
    print(f"best line: {best['args']} x + {best['result']['b']}, error {best['result']['error']}")
