"""How many evaluations a worker claims at once."""

from __future__ import annotations

__all__ = ["SHARE", "Pace"]

BATCH = 0.2  # seconds of work, at most, that a worker claims before the last evaluation of a batch
BATCH_ROOM = 2000  # evaluations, at most
ALONE = 0.1  # seconds; evaluations that take longer are claimed one by one, unless others queue
SHARE = 0.01  # of its time, that a worker would spend on transactions, and on waiting for interrupts


class Pace:
    """How many evaluations a worker claims at once: so many that transactions take little of its time.

    Attributes
    ----------
    room : int
        That number. It grows at most twofold from batch to batch.
    limit : float
        Seconds in which all of a batch should be done, or begun if they are long.
    old : float
        Seconds after which the rest of a batch is given back.
    stale : float
        Seconds after its claim from which on a batch may soon be somebody else's.
    long : float
        Seconds after which nothing is to wait for an evaluation any more.
    """

    def __init__(self, timeout: float | None) -> None:
        self.room = 1
        self.limit = BATCH if timeout is None else min(BATCH, timeout / 4)
        self.old, self.long = 1.25 * self.limit, 0.75 * self.limit
        self.stale = float("inf") if timeout is None else max(timeout / 2, BATCH)
        self._slowest = self._waiting = self._writing = 0.0

    def learn(self, number: int, seconds: float, waiting: float, writing: float) -> None:
        """Take in that `number` evaluations took `seconds`, and the transaction before them the others."""
        self._slowest = max(seconds / number, self._slowest / 2, 1e-9)  # of the recent batches
        self._waiting += (waiting - self._waiting) / 4
        self._writing += (writing - self._writing) / 4
        cost = self._waiting + (self._writing if self._slowest < ALONE else 0.0)
        wanted = 1 + int(cost / (SHARE * self._slowest))
        in_time = 1 + int(self.limit / self._slowest + 0.2) if self._slowest < self.long else 1
        self.room = min(wanted, 2 * self.room, BATCH_ROOM, in_time)
