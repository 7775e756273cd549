"""Tune a small neural network: parameters are suggested by what all have found, poor ones are stopped."""

import math
import os
import random
import tempfile

from speval import load_evals, report, speval
from speval.search import TPE, integers, loguniform, median, uniform

DATABASE = os.path.join(tempfile.gettempdir(), "10_tune_network.db")
DATA = [(x / 10, math.sin(x / 5)) for x in range(-20, 21)]
SPACE = {"units": integers(1, 12), "rate": loguniform(1e-4, 1), "spread": uniform(0.1, 5)}


def train(args):
    """Fit tanh units to a sine by gradient descent; return the mean square error."""
    rng = random.Random(0)
    units = [[rng.gauss(0, args["spread"]), rng.gauss(0, 1), 0.0] for _ in range(args["units"])]
    for epoch in range(50):
        loss = 0.0
        for x, y in DATA:
            outputs = [math.tanh(weight * x + bias) for weight, bias, _ in units]
            error = sum(unit[2] * output for unit, output in zip(units, outputs)) - y
            loss += error**2 / len(DATA)
            for unit, output in zip(units, outputs):
                slope = args["rate"] * max(-1.0, min(error, 1.0))
                change = slope * unit[2] * (1 - output**2)
                unit[:] = unit[0] - change * x, unit[1] - change, unit[2] - slope * output
        if report(loss, epoch):
            break
    return loss


if __name__ == "__main__":
    speval(train, TPE(SPACE, n=60), DATABASE, n_jobs=4, stop=median(warmup=5))
    evals = load_evals(DATABASE, "completed")
    best = min(evals, key=lambda e: e["result"])
    print(f"{sum(e['stopped'] is not None for e in evals)} of {len(evals)} were stopped early")
    print(f"best: {best['args']}, mean square error {best['result']:.2g}")
