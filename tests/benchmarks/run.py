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
from typing import Any

import measures
from creep import cold, creep
from curves import stopping
from measures import figures
from processes import HERE, PACKAGE, directory, gaps, ms
from searches import search
from servers import server

ALL = [*measures.ALL, creep, cold, search, stopping, server]


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
    release = platform.release().split("-")[0]
    return (
        f"{platform.system()} {release}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f};"
        f" {kind.stdout.strip()}, fsync of 4 KiB {ms(gaps(times, times[0], times[-1]))};"
        f" {platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def keep(name: str, rows: list[tuple[str, str, str]], where: str) -> None:
    """Add a measurement to those that are kept, write the table of all, and draw what it shows."""
    path = HERE / "figures.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[name] = {"where": where, "rows": rows, "figures": figures.get(name)}
    path.write_text(json.dumps(kept) + "\n")
    if name in figures:
        try:
            import plots
        except ImportError as exc:
            print(f"nothing is drawn: {exc}")
        else:
            plots.draw(name, json.loads(json.dumps(figures[name])), HERE / f"{name}.png")
    (HERE / "RESULTS.rst").write_text(table(kept))


def table(kept: dict[str, Any]) -> str:
    lines = ["Results", "=======", "", "Written by ``run.py``; README.rst says what each figure means.", ""]
    for name in (measure.__name__ for measure in ALL if measure.__name__ in kept):
        its = kept[name]
        lines += [name, "-" * len(name), "", its["where"], "", "::", ""]
        lines += [f"    {what:56} {figure:44} {asked}".rstrip() for what, figure, asked in its["rows"]]
        lines += [""] + ([f".. image:: {name}.png", ""] if its["figures"] else [])
    return "\n".join(lines)


def main(names: list[str]) -> None:
    try:
        shutil.copytree(HERE.parents[1] / "speval", PACKAGE / "speval")
        compileall.compile_dir(PACKAGE, quiet=1, force=True)  # as pip does
        where = conditions()
        print(where)
        for measure in ALL:
            if not names or measure.__name__ in names:
                began, rows = time.monotonic(), []
                for row in measure():
                    rows.append(row)
                    print(f"{measure.__name__:10} {row[0]:56} {row[1]:44} {row[2]}", flush=True)
                print(f"{measure.__name__:10} took {time.monotonic() - began:.0f} s", flush=True)
                keep(measure.__name__, rows, where)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
