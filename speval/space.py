"""An evaluation space as text, for one pass over what the user gave and several over the text."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .process.background import notice
from .values import blake2b, split, to_json

__all__ = ["ADAPTIVE", "Adaptive", "Space", "adaptive", "suggestion"]

ADAPTIVE = "adaptive"  # so begins the fingerprint of such a space, behind which stands what it is after
BATCH = 250  # evaluations, at most, that are encoded at once
LARGE, SLOW = 1 << 20, 0.1  # characters, and seconds, of a batch after which the next one is smaller
IN_MEMORY = 1 << 20  # bytes of text that are kept without a file


class Adaptive(Protocol):
    """A space that makes its evaluations one by one, by what is known of those before."""

    def __len__(self) -> int:
        """Return the number of evaluations in all."""

    def suggest(self, history: Sequence[dict[str, Any]], /) -> Any:
        """Return the arguments of the next one, by all that there are, as `load_evals` returns them."""


def adaptive(eval_space: Any) -> Adaptive | None:
    """Return a space if it is adaptive; no list or dict is, whatever attributes it has."""
    kind = type(eval_space)
    if isinstance(eval_space, (Mapping, list, tuple)) or not hasattr(kind, "__len__"):
        return None
    space: Adaptive | None = eval_space if callable(getattr(kind, "suggest", None)) else None
    return space


def suggestion(space: Adaptive, history: Sequence[dict[str, Any]]) -> str:
    """Return, as JSON, what an adaptive space suggests."""
    args = space.suggest(history)
    try:
        return to_json(args)
    except TypeError as exc:
        raise TypeError(f"what suggest() returned {exc}") from exc


class Space(contextlib.AbstractContextManager["Space"]):
    """Names and arguments, as JSON, in a temporary file with a line for each batch of evaluations.

    Only a small space is kept in memory. The text is made before any transaction, because the user's iterable
    may take its time. An adaptive space has no evaluations yet.

    Attributes
    ----------
    size, position : int
        Number of evaluations, and how many of them the last pass has yielded so far.
    fingerprint : str
        Hash of all names and arguments, in their order. Of an adaptive space: what it is after.
    """

    def __init__(self, eval_space: Mapping[Any, Any] | Iterable[Any] | Adaptive) -> None:
        self.size = self.position = 0
        self._file: Any = io.BytesIO()
        self._is_named = isinstance(eval_space, Mapping)
        # Any other iterable may yield one object again and again, and change it in between.
        self._is_in_memory = type(eval_space) in (list, tuple, range, dict)
        its = adaptive(eval_space)
        here: Any = eval_space if its is None else []
        try:
            with notice(lambda: f"reading the evaluation space, {self.size} evaluations so far"):
                self.fingerprint = self._read(iter(here.items() if self._is_named else here))
        except BaseException:
            self._file.close()
            raise
        self._number = self.size
        if its is not None:
            self.size, self.fingerprint = len(its), f"{ADAPTIVE} {_objective(its)}"

    def _read(self, source: Iterator[Any]) -> str:
        """Keep the text of all evaluations; return its hash, which is the same for batches of any size."""
        args_hash, names_hash = blake2b(digest_size=16), blake2b(digest_size=16)
        known: set[str] = set()
        number = 1
        while True:
            began = time.monotonic()
            names, texts = self._encoded(itertools.islice(source, number), known)
            if not names:
                return f"{args_hash.hexdigest()}{names_hash.hexdigest() if self._is_named else ''}"
            size = self._keep(args_hash, texts)
            if self._is_named:
                self._keep(names_hash, to_json(names))
            self.size += len(names)
            is_quick = size <= LARGE and time.monotonic() - began <= SLOW
            number = min(2 * number, BATCH) if is_quick else max(number // 2, 1)

    def _encoded(self, some: Iterator[Any], known: set[str]) -> tuple[Sequence[object], str]:
        """Return the names of some evaluations, and a list of their arguments as JSON."""
        if not self._is_in_memory:
            return self._encoded_one_by_one(some, known)
        batch = list(some)
        names: Sequence[object] = range(self.size, self.size + len(batch))
        if self._is_named:
            names, batch = [_to_name(key, known) for key, _ in batch], [args for _, args in batch]
        try:
            return names, to_json(batch)  # in a third of the time that it takes one by one
        except TypeError:
            return names, f"[{', '.join(map(_args_to_json, names, batch))}]"

    def _encoded_one_by_one(self, some: Iterator[Any], known: set[str]) -> tuple[Sequence[object], str]:
        names: list[object] = []
        texts: list[str] = []
        size, end = 0, time.monotonic() + SLOW
        for item in some:
            key, args = item if self._is_named else (self.size + len(names), item)
            names.append(_to_name(key, known) if self._is_named else key)
            texts.append(_args_to_json(names[-1], args))
            size += len(texts[-1])
            if size > LARGE or time.monotonic() > end:  # the rest goes into the next batch
                break
        return names, f"[{', '.join(texts)}]"

    def _keep(self, digest: Any, text: str) -> int:
        """Write a list of a batch as a line; return its length."""
        line = text.encode()
        digest.update(b", " if self.size else b"")
        digest.update(line[1:-1])
        self._file.write(line + b"\n")
        if isinstance(self._file, io.BytesIO) and self._file.tell() > IN_MEMORY:
            import tempfile  # here, because it takes milliseconds to import

            small, self._file = self._file, tempfile.TemporaryFile()  # noqa: SIM115 - __exit__() closes it
            self._file.write(small.getvalue())
        return len(line)

    def __len__(self) -> int:
        """Return the number of those that are here: none of an adaptive space."""
        return self._number

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield name and arguments, the latter as JSON."""
        self._file.seek(0)
        self.position = 0
        for line in self._file:
            texts = split(line[:-1].decode())
            numbers = range(self.position, self.position + len(texts))
            names = json.loads(next(self._file)) if self._is_named else map(str, numbers)
            for number, name, args in zip(numbers, names, texts):
                self.position = number + 1
                yield name, args

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


def _objective(space: Adaptive) -> str:
    """Return min or max, and the column of the results that is to become so; nothing if that is not known."""
    maximize, key = getattr(space, "maximize", None), getattr(space, "key", None)
    if not isinstance(maximize, bool) or not isinstance(key, (str, type(None))):
        return ""
    return f"{'max' if maximize else 'min'} result{'' if key is None else f'.{key}'}"


def _to_name(key: Any, known: set[str]) -> str:
    """Return a key of a dict as the name of an evaluation, and add it to the known ones."""
    if not isinstance(key, (str, int, float)) and not hasattr(key, "__index__"):
        raise TypeError(f"an evaluation is named by a str or a number, not by {key!r}")
    name = str(key)
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"the name {key!r} has no UTF-8: use os.fsencode(name).hex(), say") from exc
    if name in known:
        raise ValueError(f"two evaluations are called {name!r} as text: give them different names")
    known.add(name)
    return name


def _args_to_json(name: object, args: Any) -> str:
    try:
        return to_json(args)
    except TypeError as exc:
        raise TypeError(f"the arguments of evaluation {str(name)!r}: {exc}") from exc
