"""How many threads libraries like NumPy may use in one of several processes: its share of the CPUs."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

from .machine import cpus

__all__ = ["environment", "limit_threads"]

GENERAL = "OMP_NUM_THREADS"  # OpenBLAS, MKL, BLIS and NumExpr read it too, if their own is not set
VARIABLES = (
    GENERAL,
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# In the environment of a process that has its share: the number of threads, and the variables that have it
# from speval. All other variables are the user's.
SHARE = "SPEVAL_THREADS"
# What threadpoolctl calls a library that is loaded, and the variable that would have limited it.
LOADED = {
    "openmp": GENERAL,
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
}
USERS = {"numpy", "torch"}  # where neither is imported, there is hardly such a library


def environment(n: int, threads: int | None = None) -> dict[str, str]:
    """Return the environment variables that limit the threads of libraries in one of `n` processes.

    Parameters
    ----------
    n : int
        Number of processes that share the CPUs, >= 1. If this process is itself one of several that speval
        has started, they divide its share.
    threads : int, optional
        Number of threads, >= 1, that the user wants in each. By default the share, and nothing for a
        variable that the user has set.
    """
    if threads is not None:
        return {**dict.fromkeys(VARIABLES, str(threads)), SHARE: ""}
    number, *names = os.environ.get(SHARE, "").split() or [""]
    ours = [name for name in names if os.environ.get(name) == number]
    free = [name for name in VARIABLES if name in ours or name not in os.environ]
    if GENERAL not in free:  # its number counts for the other variables too
        return {}
    available = int(number) if ours and number.isdecimal() else cpus()
    share = str(max(1, available // n))
    return {**dict.fromkeys(free, share), SHARE: " ".join([share, *free])}


def limit_threads(n: int) -> None:
    """Limit the threads of libraries in this process, which is one of `n`.

    The environment limits libraries that are loaded later. In a forked process some are loaded already:
    these are limited with threadpoolctl, if that is installed. No limit is ever raised.
    """
    limits = environment(n)
    os.environ.update(limits)
    if not limits or not USERS & sys.modules.keys():  # importing threadpoolctl takes milliseconds
        return
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two OpenMP libraries in one process
        from threadpoolctl import ThreadpoolController

        for library in ThreadpoolController().lib_controllers:
            number = int(limits.get(LOADED.get(library.internal_api, ""), 0))
            if number and library.num_threads and library.num_threads > number:
                library.set_num_threads(number)
