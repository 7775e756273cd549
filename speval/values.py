"""What a function takes, returns or raises, as text: JSON, and tracebacks."""

from __future__ import annotations

import collections
import enum
import json
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from .errors import SpevalError, message, plain

__all__ = ["MAX_ERROR", "encode", "error_of", "from_json", "refusal_of", "to_json"]

MAX_JSON = 400_000_000  # characters; SQLite takes 10**9 bytes a row, args, result and error together
OURS = os.path.join(os.path.dirname(__file__), "")
MAX_ERROR = 64 * 1024  # characters


def _convert(value: Any) -> Any:
    """Return what JSON does not know in simpler terms, one step of the way, if there is one obvious form.

    By what its type says of itself: so nothing has to be imported for it, and a class has no form.
    """
    kind = type(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return _in_order(value)
    if isinstance(value, collections.deque):
        return list(value)
    if isinstance(value, getattr(sys.modules.get("uuid"), "UUID", ())):
        return str(value)
    if kind.__name__ in ("NaTType", "NAType"):  # of pandas
        return None
    if hasattr(kind, "to_dict"):
        return _to_dict(value)
    if hasattr(kind, "tolist"):
        return _tolist(value)
    for name in ("to_list", "isoformat", "__fspath__"):  # of Polars, of dates and times, of paths
        if hasattr(kind, name):
            return getattr(value, name)()
    if hasattr(kind, "__dataclass_fields__"):
        return {field.name: getattr(value, field.name) for field in sys.modules["dataclasses"].fields(value)}
    raise _no_json(value)


def _no_json(value: Any) -> TypeError:
    hint = "make numbers, text, lists or dicts of it"
    return TypeError(f"Object of type {type(value).__name__} is not JSON serializable: {hint}")


def _in_order(values: Iterable[Any]) -> list[Any]:
    """Return the elements of a set in an order that is the same in each process."""
    simple = sorted(map(_simplify, values), key=encode)
    try:
        return sorted(simple)
    except TypeError:
        return simple


def _to_dict(value: Any) -> Any:
    for axis in ("index", "columns"):  # of pandas, which would leave out what comes twice
        if not getattr(getattr(value, axis, None), "is_unique", True):
            raise ValueError(f"duplicates in the {axis} of a {type(value).__name__}: try reset_index()")
    return value.to_dict()


def _tolist(value: Any) -> Any:
    """Return `tolist()`, but NumPy's dates as text: of those finer than microseconds it makes integers."""
    dtype = getattr(value, "dtype", None)
    kind, fields = getattr(dtype, "kind", ""), getattr(dtype, "names", None)
    if fields or kind in ("M", "m"):
        if value.shape:
            return list(value)
        if fields:
            return [value[field] for field in fields]
        if kind == "M":
            return str(value) if value == value else None  # noqa: PLR0124 - NaT, like NaN, is not
        raise _no_json(value)
    simple = value.tolist()
    if type(simple) is type(value):  # of numbers that are longer than Python's
        raise _no_json(value)
    return simple


def _simplify(value: Any) -> Any:
    """Return `value` as JSON has it, dicts and lists of scalars, with all keys of dicts as text."""
    if isinstance(value, dict):
        simple = {_key(key): _simplify(inner) for key, inner in value.items()}
        if len(simple) < len(value):
            raise ValueError("two keys of a dict are equal as text")
        return simple
    if isinstance(value, (list, tuple)):
        return [_simplify(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _simplify(_convert(value))


def _key(key: Any) -> str:
    simple = _simplify(key)
    if isinstance(simple, (dict, list)):
        raise TypeError(f"keys must be text, numbers or the like, not {type(key).__name__}")
    return simple if isinstance(simple, str) else encode(simple)


encode = json.JSONEncoder(default=_convert).encode
_decode = json.JSONDecoder().raw_decode


def _encode(value: Any) -> str:
    try:
        return encode(value)
    except TypeError:  # perhaps only of keys: the encoder does not ask for them
        pass
    return encode(_simplify(value))


def to_json(value: Any) -> str:
    """Return `value` as JSON; `TypeError` if it has none, whatever the reason."""
    try:
        text = _encode(value)
    except Exception as exc:
        raise TypeError(f"cannot be stored as JSON: {message(exc)}") from exc
    if len(text) > MAX_JSON:
        raise TypeError(f"{len(text)} characters of JSON are too many: write a file, and store its name")
    return text


def from_json(text: Any, what: str) -> Any:
    """Return the value of a JSON `text` from a database; ``''`` and None (of speval 0.1.1) are kept.

    Raises
    ------
    SpevalError
        If it is no JSON; it says `what` that is.
    """
    try:
        value, end = _decode(text)  # half the time of loads(), for what has no space around it
        if end == len(text):
            return value
    except (ValueError, TypeError, RecursionError):
        pass
    try:
        return json.loads(text) if text else text
    except (ValueError, TypeError, RecursionError) as exc:
        raise SpevalError(f"{what} cannot be read, it is not JSON: {exc}") from exc


def error_of(exc: BaseException) -> str:
    """Return the traceback of an exception from `func`, without our frames above it, fit for UTF-8."""
    tb = exc.__traceback__
    while tb and tb.tb_frame.f_code.co_filename.startswith(OURS):
        tb = tb.tb_next
    try:
        text = "".join(traceback.format_exception(type(exc), exc, tb))
    except Exception as more:  # noqa: BLE001 - of a strange exception, any part may raise
        text = f"{type(exc).__name__}, whose traceback cannot be formatted: {message(more)}\n"
    return plain(text, MAX_ERROR)


def refusal_of(value: Any, exc: TypeError) -> str:
    """Return the error of a result that has no JSON."""
    try:
        text = plain(repr(value), 10_000)
    except Exception as more:  # noqa: BLE001 - a repr may raise anything
        text = f"a {type(value).__name__} whose repr raises {type(more).__name__}"
    return f"func returned {text}\nTypeError: {exc}"
