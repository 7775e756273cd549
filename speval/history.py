"""The evaluations that all instances have made so far, kept up to date."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from .database import FIRST, Connection, Database
from .reading import as_dict, read_chunk, read_some

__all__ = ["History", "note_reset"]

RESET = "reset"  # stands among the spaces, once for each
STATE = """
    SELECT (SELECT count(*) FROM spaces WHERE fingerprint = :reset), (SELECT count(*) FROM evals)"""
NOTE_RESET = "INSERT INTO spaces (fingerprint, size, func, added) VALUES (:reset, 0, '', :now)"


def note_reset(conn: Connection) -> None:
    """Let each `History` see that evaluations have been made pending again."""
    conn.execute(NOTE_RESET, {"reset": RESET, "now": time.time()})


class History(Sequence[dict[str, Any]]):
    """Evaluations as from `load_evals`, in the order in which they were made.

    What is finished does not change any more but by a reset, which is counted: so only what is new, and what
    was not finished, is read again. A dict stays the same as long as nothing of it changes.

    Attributes
    ----------
    last : int
        The last id.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._resets = 0
        self._forget()

    def _forget(self) -> None:
        self._fresh = True  # nothing is known but what is read now
        self._evals: list[dict[str, Any]] = []
        self._places: dict[int, int] = {}  # id: where it stands
        self._open: set[int] = set()  # ids of what may change yet
        self.last = FIRST

    def __len__(self) -> int:
        return len(self._evals)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._evals)  # in a hundredth of the time that a Sequence takes

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._evals[index]

    def renew(self) -> History:
        """Read what has changed since the last time."""
        while not self._is_read():
            pass
        return self

    def _is_read(self) -> bool:
        """Read some of what has changed; tell whether that was all."""
        with self._db.read() as conn:
            ((resets, number),) = conn.execute(STATE, {"reset": RESET}).fetchall()
            if resets != self._resets:
                self._forget()
            rows = read_some(conn, sorted(self._open))
            new, _ = read_chunk(conn, self.last, None)
            deleted = not new and len(self) != number  # or put between others, by hand
            if deleted and self._fresh:
                raise conn.DatabaseError("its indexes are not right")
        self._resets = resets
        self._take(rows)
        self._take(new)
        if deleted:
            self._forget()
        complete = len(self) == number
        self._fresh = self._fresh and not complete
        return complete and not deleted

    def _take(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for id, *row in rows:
            e = as_dict(self._db.path, *row)
            place = self._places.setdefault(id, len(self._evals))
            if place == len(self._evals):
                self._evals.append(e)
            elif e != self._evals[place]:
                self._evals[place] = e
            self.last = max(self.last, id)
            lost = e["status"] == "failed" and e["worker"] is None  # a result may come late
            (self._open.add if lost or e["status"] in ("pending", "in_progress") else self._open.discard)(id)
