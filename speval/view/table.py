"""Rows as a table that fits the terminal."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["flat", "table"]

NARROW = 6  # a column is cut to this before others are left out
SEEN = 1000  # rows by which the columns get their widths


def table(heads: list[str], rows: Iterable[list[Any]]) -> Iterator[str]:
    """Yield the lines of a table; where they do not fit the terminal, they are cut."""
    rows = iter(rows)
    first = [[_cell(value) for value in row] for row in itertools.islice(rows, SEEN)]
    heads = [_cell(head) for head in heads]
    widths = [max(map(len, column)) for column in zip(heads, *first)]
    pad = _whole
    if sys.stdout.isatty():
        pad = _cut
        widths = _fitting(widths, shutil.get_terminal_size().columns)
    left_out = " .." if len(widths) < len(heads) else ""
    heads = _apart(heads[: len(widths)], widths)
    for row in itertools.chain([heads], first, ([_cell(value) for value in row] for row in rows)):
        cells = [pad(cell, width) for cell, width in zip(row, widths)]
        yield "  ".join(cells).rstrip() + left_out


def _fitting(widths: list[int], columns: int) -> list[int]:
    """Return widths whose table has at most so many columns: the widest are cut, the last left out."""
    room = columns - 1
    while len(widths) > 1 and sum(min(width, NARROW) + 2 for width in widths) > room:
        widths, room = widths[:-1], columns - 4
    widths = [min(width, max(room, NARROW)) for width in widths]
    while sum(widths) + 2 * len(widths) - 2 > room and max(widths) > NARROW:
        widest = widths.index(max(widths))
        widths = [*widths[:widest], widths[widest] - 1, *widths[widest + 1 :]]
    return widths


def _apart(heads: list[str], widths: list[int]) -> list[str]:
    """Return the heads, cut so that what is left of each fits no other; with its number if that cannot be."""
    found = []
    for number, (head, width) in enumerate(zip(heads, widths), 1):
        others = [other for other in heads if other != head]
        ways = _cuts(head, width) if len(head) > width else iter([[head]])
        own = (parts for parts in ways if len(parts) == 1 or not any(_fits(parts, o) for o in others))
        mark = f"..{number}"
        found.append("..".join(next(own, [])) or head[: max(width - len(mark), 0)] + mark)
    return found


def _cuts(text: str, width: int) -> Iterator[list[str]]:
    """Yield what can be left of a text: both ends, as equal as can be first, then parts from within."""
    room = width - 2
    for front in sorted(range(room + 1), key=lambda front: abs(2 * front - room)):
        yield [text[:front], text[len(text) - room + front :]]
    for start in range(1, len(text) - room + 2):
        yield ["", text[start : start + room - 2], ""]


def _fits(parts: list[str], text: str) -> bool:
    return text.startswith(parts[0]) and text.endswith(parts[-1]) and all(part in text for part in parts)


def flat(value: Any) -> Any:
    """Return what is nested as JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(flat(value))
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _whole(cell: str, width: int) -> str:
    return cell.ljust(width)


def _cut(cell: str, width: int) -> str:
    return cell.ljust(width) if len(cell) <= width else f"{cell[: max(width - 2, 0)]}.."
