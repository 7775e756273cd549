"""Measure speval: ``python tests/benchmarks/run.py [name ...]`` prints a table; README.rst explains it."""

from __future__ import annotations

import compileall
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time

from measures import ALL, figures
from processes import HERE, PACKAGE, directory, gaps, ms


def conditions() -> str:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", directory], stdout=subprocess.PIPE, text=True, check=False
    )
    times = [time.monotonic()]
    with open(directory / "synced", "wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.monotonic())
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f};"
        f" {kind.stdout.strip()}, fsync of 4 KiB {ms(gaps(times, times[0], times[-1]))};"
        f" {platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def keep() -> None:
    """Add the figures to those that are kept, and draw what they show."""
    path = HERE / "figures.json"
    kept = {**(json.loads(path.read_text()) if path.exists() else {}), **json.loads(json.dumps(figures))}
    path.write_text(json.dumps(kept) + "\n")
    try:
        import plots
    except ImportError as exc:
        print(f"nothing is drawn: {exc}")
    else:
        for name in figures:
            plots.draw(name, kept[name], HERE / f"{name}.png")


def main(names: list[str]) -> None:
    try:
        shutil.copytree(HERE.parents[1] / "speval", PACKAGE / "speval")
        compileall.compile_dir(PACKAGE, quiet=1, force=True)  # as pip does
        print(conditions())
        for measure in ALL:
            if not names or measure.__name__ in names:
                began = time.monotonic()
                for what, figure, asked in measure():
                    print(f"{measure.__name__:10} {what:52} {figure:44} {asked}", flush=True)
                print(f"{measure.__name__:10} took {time.monotonic() - began:.0f} s", flush=True)
                keep()
                figures.clear()
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
