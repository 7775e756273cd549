"""How many evaluations a worker claims at once."""

from __future__ import annotations

__all__ = ["SHARE", "Pace"]

BATCH = 0.2  # seconds of work, at most, that a worker claims before the last evaluation of a batch
BATCH_ROOM = 2000  # evaluations, at most
ALONE = 0.1  # seconds; evaluations that take longer are claimed one by one, unless others queue
GROWTH, WATCHED_GROWTH = 2, 64  # largest factor between two batches; the second where a watchdog runs
SHARE = 0.01  # of its time, that a worker would spend on transactions, and on waiting for interrupts


class Pace:
    """How many evaluations a worker claims at once: so many that transactions take little of its time.

    Attributes
    ----------
    room : int
        That number. Each batch is at most `GROWTH` or `WATCHED_GROWTH` times as large as the one before.
    least : int
        Number of evaluations that take about as long as one transaction and the wait for it; at most the size
        of the last batch. A smaller claim costs more time than it saves. 1 where no watchdog runs.
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
        self.room = self.least = 1
        self.limit = BATCH if timeout is None else min(BATCH, timeout / 4)
        self.old, self.long = 1.25 * self.limit, 0.75 * self.limit
        self.stale = float("inf") if timeout is None else max(timeout / 2, BATCH)
        self._slowest = self._waiting = self._writing = 0.0
        self._quickest = float("inf")  # seconds of a transaction, without waiting

    def learn(
        self, number: int, seconds: float, waiting: float, writing: float, watched: bool = False
    ) -> None:
        """Record that `number` evaluations took `seconds`, and how long the transaction before them took.

        `watched`: a watchdog gives back the rest of the next batch if an evaluation turns out long.
        """
        self._slowest = max(seconds / number, self._slowest / 2, 1e-9)  # of the recent batches
        self._waiting += (waiting - self._waiting) / 4
        self._writing += (writing - self._writing) / 4
        cost = self._waiting + (self._writing if self._slowest < ALONE else 0.0)
        wanted = 1 + int(cost / (SHARE * self._slowest))
        in_time = 1 + int(self.limit / self._slowest + 0.2) if self._slowest < self.long else 1
        growth = WATCHED_GROWTH if watched else GROWTH
        self.room = min(wanted, growth * self.room, BATCH_ROOM, in_time)
        self._quickest = min(self._quickest, writing)
        pays = int((self._waiting + self._quickest) / self._slowest)
        self.least = max(1, min(number, self.room, pays)) if watched else 1
