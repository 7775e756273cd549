"""An evaluation space as text, for one pass over what the user gave and several over the text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .process.background import notice
from .values import encode, to_json

__all__ = ["ADAPTIVE", "Adaptive", "Space", "adaptive", "suggestion"]

ADAPTIVE = "adaptive"  # so begins the fingerprint of such a space, behind which stands what it is after


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
    """Names and arguments, as JSON, in a temporary file with a line for each evaluation.

    Nothing of them is in memory. The file is made before any transaction, because the user's iterable
    may take its time. Of an adaptive space there are none yet.

    Attributes
    ----------
    size, position : int
        Number of evaluations, and how many of them the last pass has yielded so far.
    fingerprint : str
        Hash of names and arguments, in their order. Of an adaptive space: what it is after.
    """

    def __init__(self, eval_space: Mapping[Any, Any] | Iterable[Any] | Adaptive) -> None:
        import hashlib  # here, because a reader needs neither, and importing them takes milliseconds
        import tempfile

        self.size = self.position = 0
        self._file = tempfile.SpooledTemporaryFile(1 << 20)  # noqa: SIM115 - it is closed by __exit__()
        its = adaptive(eval_space)
        here: Any = eval_space if its is None else []
        digest = hashlib.blake2b(digest_size=16)
        try:
            with notice(lambda: f"reading the evaluation space, {self.size} evaluations so far"):
                for name, args in _named(here):
                    line = f"{encode(name)}\t{_args_to_json(name, args)}\n".encode()
                    digest.update(line)
                    self._file.write(line)
                    self.size += 1
        except BaseException:
            self._file.close()
            raise
        self.fingerprint = digest.hexdigest()
        self._number = self.size
        if its is not None:
            self.size, self.fingerprint = len(its), f"{ADAPTIVE} {_objective(its)}"

    def __len__(self) -> int:
        """Return the number of those that are here: none of an adaptive space."""
        return self._number

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield name and arguments, the latter as JSON."""
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            self.position = number
            name, _, args = line.decode().partition("\t")
            yield json.loads(name) if "\\" in name else name[1:-1], args[:-1]

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


def _objective(space: Adaptive) -> str:
    """Return min or max, and the column of the results that is to become so; nothing if that is not known."""
    maximize, key = getattr(space, "maximize", None), getattr(space, "key", None)
    if not isinstance(maximize, bool) or not isinstance(key, (str, type(None))):
        return ""
    return f"{'max' if maximize else 'min'} result{'' if key is None else f'.{key}'}"


def _named(eval_space: Mapping[Any, Any] | Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield name and arguments of each evaluation; those of a list are called "0", "1", ..."""
    if not isinstance(eval_space, Mapping):
        for index, args in enumerate(eval_space):
            yield str(index), args
        return
    names = set()
    for key, args in eval_space.items():
        name = _to_name(key)
        if name in names:
            raise ValueError(f"two evaluations are called {name!r} as text: give them different names")
        names.add(name)
        yield name, args


def _to_name(key: Any) -> str:
    if not isinstance(key, (str, int, float)) and not hasattr(key, "__index__"):
        raise TypeError(f"an evaluation is named by a str or a number, not by {key!r}")
    try:
        str(key).encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"the name {key!r} has no UTF-8: use os.fsencode(name).hex(), say") from exc
    return str(key)


def _args_to_json(name: str, args: Any) -> str:
    try:
        return to_json(args)
    except TypeError as exc:
        raise TypeError(f"the arguments of evaluation {name!r}: {exc}") from exc
