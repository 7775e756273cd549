"""Print the best line that 03_fit_line.py has found so far: `03_get_best_fit.py [rand|grid]`."""

import argparse
import os
import tempfile

from speval import iter_evals

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("method", choices=["rand", "grid"], nargs="?", default="rand")
METHOD = parser.parse_args().method
DATABASE = os.path.join(tempfile.gettempdir(), f"03_fit_line_{METHOD}.db")

best = min(iter_evals(DATABASE, "completed"), key=lambda e: e["result"])

print(f"Best parameters found: a = {best['args']['a']:g}, b = {best['args']['b']:g}")
print("True parameters:       a = 123, b = 456")
print(f"Mean square error:     {best['result']:g}")
