"""What is raised, and how it quotes what others have written."""

from __future__ import annotations

import re

__all__ = ["NotWritable", "SpaceMismatch", "SpevalError", "cut", "last_line", "message", "plain", "visible"]


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
        super().__init__(
            f"evaluation {name!r} of {path} has the arguments {cut(repr(stored))}, but the evaluation"
            f" space now says {cut(repr(given))}. All instances have to get the same evaluation space:"
            " seed the random generator, sort what came from a set or from os.listdir, name the"
            " evaluations with a dict, or use another file for another space."
        )
        self.path, self.name, self.stored, self.given = path, name, stored, given

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.path, self.name, self.stored, self.given)


class NotWritable(SpevalError):
    """The database cannot be written for now: disk full, quota, read-only, input/output error."""


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
