"""Estimate pi with twenty seeds; what the function returns is kept in the database."""

import os
import random
import tempfile

from speval import speval

DATABASE = os.path.join(tempfile.gettempdir(), "02_store_results.db")
POINTS = 100_000


def estimate_pi(seed):
    rng = random.Random(seed)
    inside = sum(rng.random() ** 2 + rng.random() ** 2 < 1 for _ in range(POINTS))
    print(f"Returning {4 * inside / POINTS:g} from seed {seed}")
    return 4 * inside / POINTS


speval(estimate_pi, range(20), DATABASE)
