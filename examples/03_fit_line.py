"""Look for the line through given points, by random search or on a grid: `03_fit_line.py [rand|grid]`."""

import argparse
import os
import random
import tempfile

from speval import speval

XS = range(-100, 101)
YS = [123 * x + 456 for x in XS]
N = 20

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("method", choices=["rand", "grid"], nargs="?", default="rand")
METHOD = parser.parse_args().method


def search_space():
    if METHOD == "grid":
        return [{"a": 50 * i, "b": 50 * j} for i in range(N) for j in range(N)]
    rng = random.Random(12345)  # the same seed in all instances: they need the same space
    return [{"a": rng.uniform(0, 1000), "b": rng.uniform(0, 1000)} for _ in range(N * N)]


def mean_square_error(args):
    errors = [y - (args["a"] * x + args["b"]) for x, y in zip(XS, YS)]
    return sum(e**2 for e in errors) / len(errors)


speval(mean_square_error, search_space(), os.path.join(tempfile.gettempdir(), f"03_fit_line_{METHOD}.db"))
