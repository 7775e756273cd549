"""What is raised, and how it quotes what others have written."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = [
    "INTERRUPTED",
    "REPLACED",
    "NotWritable",
    "SpaceMismatch",
    "SpevalError",
    "Unreadable",
    "cut",
    "last_line",
    "message",
    "plain",
    "visible",
]

REPLACED = "{path} was replaced while it was in use: start again"
INTERRUPTED = (
    "a signal handler has interrupted a transaction on {path}, and cannot use it before that is over: set a"
    " flag there, and look at it later"
)


class SpevalError(Exception):
    """What went wrong with a database of evaluations, and what to do about it."""


class SpaceMismatch(SpevalError):
    """The evaluation space differs from the stored one under the same name.

    Attributes
    ----------
    path : str
        The database.
    name : str
        Name of the first evaluation that differs.
    stored, given : object
        Its arguments in the database and in the evaluation space.
    """

    def __init__(self, path: str, name: str, stored: object, given: object) -> None:
        changes = list(itertools.islice(_changes(stored, given), MOST_CHANGES))
        said = "; ".join(itertools.starmap(_change, changes[:3])) + "; and more" * (len(changes) > 3)
        super().__init__(
            f"the evaluation space differs from that of {path}: in evaluation {name!r}, {said}."
            f" {_what_to_do(name, changes)}"
        )
        self.path, self.name, self.stored, self.given = path, name, stored, given

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.path, self.name, self.stored, self.given)


ABSENT = object()
MOST_CHANGES, DEPTH = 100, 10  # that are looked at, in so many dicts and lists inside each other


def _changes(stored: Any, given: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Yield the places where arguments differ, with what is stored and what is given there, or ABSENT."""
    keys: Iterable[Any] = ()
    if len(where) < DEPTH and type(stored) is type(given):
        if isinstance(stored, dict):
            keys = {**stored, **given}
        elif isinstance(stored, list) and len(stored) == len(given) and not _are_moved(stored, given):
            keys = range(len(stored))
    for key in keys:
        was, now = (of.get(key, ABSENT) if isinstance(of, dict) else of[key] for of in (stored, given))
        yield from _changes(was, now, (*where, key))
    if not keys and repr(stored) != repr(given):  # which tells 1 from 1.0 and True, and not NaN from NaN
        yield "args" + "".join(f"[{cut(repr(key), 60)}]" for key in where), stored, given


def _are_moved(stored: Any, given: Any) -> bool:
    """Tell whether two lists have the same elements in another order."""
    if not (isinstance(stored, list) and isinstance(given, list)):
        return False
    texts = [list(map(repr, elements)) for elements in (stored, given)]
    return texts[0] != texts[1] and sorted(texts[0]) == sorted(texts[1])


def _change(where: str, stored: Any, given: Any) -> str:
    if stored is ABSENT:
        return f"{where} is new, {cut(repr(given), 100)}"
    if given is ABSENT:
        return f"{where} is gone, it was {cut(repr(stored), 100)}"
    texts = [repr(stored), repr(given)]
    differ = (at for at, (one, other) in enumerate(zip(*texts)) if one != other)
    same = next(differ, min(map(len, texts))) - 20
    if same > 0 and max(map(len, texts)) > 100:
        texts = [f"[...] {text[same:]}" for text in texts]
    return f"{where} was {cut(texts[0], 100)}, now it is {cut(texts[1], 100)}"


def _what_to_do(name: str, changes: list[tuple[str, Any, Any]]) -> str:
    """Return what helps in most cases where that has changed, before what helps in others."""
    pairs = [(stored, given) for _, stored, given in changes]
    keep = "Use another file; or, to keep the results that are there,"
    if all(stored is ABSENT for stored, _ in pairs):
        return f"{keep} leave out what is new and give it a default in func."
    if all(given is ABSENT for _, given in pairs):
        return f"{keep} put back what is gone."
    if any(ABSENT in pair for pair in pairs):
        return f"{keep} leave their arguments as they were."
    new = "add what is new at the end of the list" if name.isdigit() else "give what is new another name"
    other = f"use another file, or {new}"
    if all(_are_moved(*pair) for pair in pairs):
        return f"Sort what comes from a set or from os.listdir, seed what is shuffled. Or {other}."
    if all(isinstance(value, float) and len(repr(value)) > 10 for pair in pairs for value in pair):
        return f"If they are random, seed the generator, for all instances to get the same. If not, {other}."
    if all(isinstance(value, str) for pair in pairs for value in pair):
        return f"If they come from a set or from os.listdir, sort them. If not, {other}."
    return (
        f"If the change is meant, {other}. If not, seed the random generator and sort what comes from a set"
        " or from os.listdir, for all instances to get the same."
    )


class NotWritable(SpevalError):
    """The database cannot be written for now: disk full, quota, read-only, input/output error."""


class Unreadable(SpevalError):
    """A stored value is JSON, but has more digits or levels than this Python reads."""


def cut(text: str, room: int = 200) -> str:
    """Return `text` with its middle left out if it has more than `room` characters."""
    return text if len(text) <= room else f"{text[: room // 2]} [...] {text[-room // 2 :]}"


def plain(text: str, room: int) -> str:
    """Return `text` cut, and fit for UTF-8."""
    return cut(text, room).encode(errors="backslashreplace").decode()


def visible(stored: object, kept: str = "") -> str:
    """Return what somebody has stored as one line, with escapes for what might move the cursor."""
    return "".join(c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in str(stored))


def message(exc: BaseException) -> str:
    """Return what an exception says; its type if that is nothing, or raises."""
    try:
        text = str(exc)
    except Exception:  # noqa: BLE001 - its str() may raise anything
        text = ""
    return plain(text or type(exc).__name__, 1000)


def last_line(text: str | None) -> str:
    """Return the last line with a word in it: the traceback of an exception group ends with a rule."""
    lines = reversed((text or "").splitlines())
    return visible(cut(next((line for line in lines if re.search(r"\w", line)), "")))
