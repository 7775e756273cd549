"""What has become slower than a fixed commit, and sweeps that are started cold: rows as in measures.py."""

from __future__ import annotations

import compileall
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

from measures import ROUNDS, Row
from processes import HERE, PACKAGE, Copies, database, directory, race, ratios, scaled, spread

REFERENCE = "ac68753"  # is never changed, so that small losses cannot add up unseen
WHOLE = "import speval; speval.speval(lambda args: None, range({size}), {path!r})"


def reference() -> pathlib.Path | None:
    """Return a package of the reference commit; None if this is no checkout with its history."""
    package, root = directory / REFERENCE, HERE.parents[1]
    if not package.exists():
        archive = subprocess.run(
            ["git", "-C", str(root), "archive", REFERENCE, "speval"], capture_output=True, check=False
        )
        if archive.returncode:
            return None
        package.mkdir()
        subprocess.run(["tar", "-x", "-C", str(package)], input=archive.stdout, check=True)
        compileall.compile_dir(package, quiet=1, force=True)
    return package


def whole(size: int, package: pathlib.Path) -> tuple[float, float]:
    """Return the seconds of CPU and of the clock that a whole process takes, from its start to its end."""
    path = database()
    code = WHOLE.format(size=size, path=str(path))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(package)}, cwd=directory
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    seconds = time.monotonic() - began
    shutil.rmtree(path.parent)
    if status:
        raise RuntimeError(f"{code} ended with {status}")
    return used.ru_utime + used.ru_stime, seconds


def creep() -> Iterator[Row]:
    before = reference()
    if before is None:
        yield f"commit {REFERENCE}", "is not in the history of this checkout", ""
        return
    packages = PACKAGE, before
    for size, rounds in [(scaled(100_000), 2 * ROUNDS), (1, 6 * ROUNDS)]:
        pairs = []
        for turn in range(rounds):  # in turn, the one or the other first
            order = packages[:: 1 if turn % 2 else -1]
            found = {package: whole(size, package) for package in order}
            pairs.append([found[package] for package in packages])
        for index, what in enumerate(("CPU", "time")):
            values = [[its[index] for its in side] for side in zip(*pairs)]
            yield f"whole process, {size} no-ops, {what}, s", spread(values[0], ".3f"), ""
            yield f"  / {REFERENCE}", spread(ratios(*values), ".3f"), "<= 1.0"
    size = scaled(200_000)
    copies = Copies(size, "range")
    for number in (8, 64):
        rates: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for package, values in zip(packages, rates):
                with copies.copy() as path:
                    values.append(size / race(number, "start", path, size, package=package)[0])
        yield f"{number} instances with the whole space, evaluations/s", spread(rates[0], ".0f"), ""
        yield f"  / {REFERENCE}", spread(ratios(*rates), ".3f"), ">= 1.0"


def cold() -> Iterator[Row]:
    """Start 8 workers together on a database that is not there yet, beside bare loops in both modes."""
    before = reference()
    kinds = ["this package", "bare sqlite3, WAL", "bare sqlite3, TRUNCATE"]
    for what, size, job, asked in [
        ("1 ms of sleep", scaled(8000), ["sleep", "0.001"], ">= 0.9"),
        ("no-ops", scaled(20_000), [], ">= 0.5"),
    ]:
        rates: dict[str, list[float]] = {kind: [] for kind in [*kinds, *([REFERENCE] if before else [])]}
        for _ in range(ROUNDS):
            for kind, values in rates.items():
                package = before if before and kind == REFERENCE else PACKAGE
                path, mode = database(), kind.rpartition(" ")[2]
                arguments = [mode, *job] if kind.startswith("bare") else job
                role = "race" if kind.startswith("bare") else "start"
                values.append(size / race(8, role, path, size, *arguments, package=package)[0])
                shutil.rmtree(path.parent)
        for kind, values in rates.items():
            yield f"8 workers, {size} {what}, {kind}, evaluations/s", spread(values, ".0f"), ""
            if kind != "this package":
                wanted = ">= 1.0" if kind == REFERENCE else asked
                yield f"  this package / {kind}", spread(ratios(rates["this package"], values), ".3f"), wanted
