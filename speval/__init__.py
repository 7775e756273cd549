"""Evaluate a function over a list of arguments, in parallel, with results kept in one sqlite3 file."""

from .speval import (
    SpaceMismatch,
    SpevalError,
    count_evals,
    current_eval,
    iter_evals,
    load_evals,
    reset_evals,
    speval,
)

__all__ = [
    "SpaceMismatch",
    "SpevalError",
    "count_evals",
    "current_eval",
    "iter_evals",
    "load_evals",
    "reset_evals",
    "speval",
]
__version__ = "0.2.0"
