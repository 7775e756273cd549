"""What a function takes, returns or raises, as text: JSON, and tracebacks."""

from __future__ import annotations

import collections
import enum
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any

try:
    from _blake2 import blake2b  # hashlib loads OpenSSL too, which takes milliseconds of each start
except ImportError:
    from hashlib import blake2b

from .errors import SpevalError, Unreadable, message, plain

__all__ = ["MAX_ERROR", "blake2b", "encode", "error_of", "from_json", "refusal_of", "split", "to_json"]

MAX_JSON = 400_000_000  # characters; SQLite takes 10**9 bytes a row, args, result and error together
# Limits that every supported Python can read. Up to 3.11, nested lists count towards the recursion limit of
# 1,000, together with the frames of the program. Since 3.11, int() refuses more digits.
MAX_DEPTH = 400
MAX_DIGITS = 4300
DEEP = f"lists and dicts are nested more than {MAX_DEPTH} deep: write a file, and store its name"
LONG = f"an integer has more than {MAX_DIGITS} digits: store it as text, hex(number) for example"
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
    # By map(), because comprehensions before Python 3.12 need a frame more for each level.
    if isinstance(value, dict):
        return _dict(list(zip(map(_key, value.keys()), map(_simplify, value.values()))))
    if isinstance(value, (list, tuple)):
        return list(map(_simplify, value))
    if value is None or isinstance(value, (str, int, float)):
        return value
    return _simplify(_convert(value))


def _key(key: Any) -> str:
    simple = _simplify(key)
    if isinstance(simple, (dict, list)):
        raise TypeError(f"keys must be text, numbers or the like, not {type(key).__name__}")
    return simple if isinstance(simple, str) else encode(simple)


def _dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of the pairs; ValueError if two keys are equal."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"two keys of a dict are equal as text, {twice!r}: give them different names")
    return found


encode = json.JSONEncoder(default=_convert).encode
_decode = json.JSONDecoder().raw_decode
_encoder: Any = getattr(json.encoder, "c_make_encoder", None)  # None in PyPy


def _encode(value: Any) -> str:
    try:
        if _encoder is None or type(value) is str:
            return encode(value)
        # As encode(), but without what that prepares for an encoder in Python: 0.7 us less for each value.
        made = _encoder(
            {}, _convert, json.encoder.encode_basestring_ascii, None, ": ", ", ", False, False, True
        )
        return "".join(made(value, 0))
    except TypeError:  # perhaps only of keys: the encoder does not ask for them
        pass
    return encode(_simplify(value))


# The encoder also takes keys that are numbers, booleans or None, so two keys of its text may be equal. The
# first search looks only at the ends of keys, in a tenth of the encoder's time or less. The second reads
# whole keys, and takes a third of the encoder's time. Only if both match is the text parsed.
MAY_BE_NO_TEXT = re.compile(
    r'": (?<=[\deylN]": )'
    r'(?:(?<=\d": )|(?<="true": )|(?<="false": )|(?<="null": )|(?<=NaN": )|(?<=Infinity": ))'
).search
IS_NO_TEXT = re.compile(r'"(?:-?\d[\d.e+-]*|true|false|null|NaN|-?Infinity)": ').search
STEP = MAX_DIGITS // 2  # a longer integer than MAX_DIGITS has so many digits from some multiple of it on
IS_LONG = re.compile(rf"\d{{{STEP}}}").match
NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
BRACKETS = bytes.maketrans(b"{}", b"[]")
STRING = re.compile(rb'"[^"]*"')


def _check(text: str) -> None:
    """Raise ValueError if JSON would not come back as it was given, or not in every Python."""
    doubtful = False
    if "{" in text:  # a character outside the basic plane and its pair of surrogates have the same JSON
        doubtful = bool(MAY_BE_NO_TEXT(text) and IS_NO_TEXT(text)) or ("\\" in text and "\\ud" in text)
    if len(text) > 2 * MAX_DEPTH:
        doubtful = doubtful or any(IS_LONG(text, start) for start in range(0, len(text), STEP))
        if _is_deep(text):
            raise ValueError(DEEP)
    if doubtful:
        json.loads(text, object_pairs_hook=_dict, parse_int=_short)


def _short(digits: str) -> None:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(LONG)


def _is_deep(text: str) -> bool:
    """Return whether more than `MAX_DEPTH` lists and dicts stand inside each other, fast for wide ones."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    rest = text.encode()
    if b"\\" in rest:  # without them, each quote begins or ends a string
        rest = rest.replace(b"\\\\", b"").replace(b'\\"', b"")
    rest = rest.translate(BRACKETS, NO_BRACKETS).replace(b'""', b"")
    if rest.count(b'"'):
        rest = STRING.sub(b"", rest)
    depth = 0
    while rest and depth <= MAX_DEPTH:
        rest = rest.replace(b"[]", b"")  # the innermost
        depth += 1
    return depth > MAX_DEPTH


def to_json(value: Any) -> str:
    """Return `value` as JSON that every Python reads; `TypeError` if there is none, whatever the reason."""
    kind = type(value)
    if value is None:
        return "null"
    try:
        if kind is int or (kind is float and value - value == 0):  # finite: in a fifth of the encoder's time
            text = repr(value)
            if len(text) > MAX_DIGITS:
                _short(text)
        else:
            text = _encode(value)
            _check(text)
    except RecursionError as exc:
        calls = f"or the program's own calls are too deep ({message(exc)})"
        raise TypeError(f"cannot be stored as JSON: {DEEP}; {calls}") from exc
    except Exception as exc:
        why = LONG if "set_int_max_str_digits" in message(exc) else message(exc)
        raise TypeError(f"cannot be stored as JSON: {why}") from exc
    if len(text) > MAX_JSON:
        raise TypeError(f"{len(text)} characters of JSON are too many: write a file, and store its name")
    return text


def split(texts: str) -> list[str]:
    """Return the JSON text of each element of a non-empty list that `to_json` encoded."""
    if '"' not in texts and "{" not in texts and texts.rfind("[") == 0:
        return texts[1:-1].split(", ")
    found, start = [], 1
    while start < len(texts):
        _, end = _decode(texts, start)
        found.append(texts[start:end])
        start = end + len(", ")
    return found


def from_json(text: Any, what: str) -> Any:
    """Return the value of a JSON `text` from a database; ``''`` and None (of speval 0.1.1) are kept.

    Raises
    ------
    Unreadable
        If it is JSON, of more digits or more levels than this Python reads.
    SpevalError
        If it is no JSON. Both say `what` that is.
    """
    try:
        value, end = _decode(text)  # half the time of loads(), for what has no space around it
        if end == len(text):
            return value
    except (ValueError, TypeError, RecursionError):
        pass
    try:
        return json.loads(text) if text else text
    except RecursionError as exc:
        more = "sys.setrecursionlimit() or a newer Python may help"
        raise Unreadable(f"{what} cannot be read here: {exc}; {more}") from exc
    except (ValueError, TypeError) as exc:
        if type(exc) is ValueError:  # from int(), and it says what to do; JSONDecodeError is a subclass
            raise Unreadable(f"{what} cannot be read here: {exc}") from exc
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
    if isinstance(exc, SystemExit) and not isinstance(exc.code, int):  # the text lacks the exit code
        text = f"{text.rstrip()} (exit code {int(exc.code is not None)})\n"
    return plain(text, MAX_ERROR)


def refusal_of(value: Any, exc: TypeError) -> str:
    """Return the error of a result that has no JSON."""
    try:
        text = plain(repr(value), 10_000)
    except Exception as more:  # noqa: BLE001 - a repr may raise anything
        text = f"a {type(value).__name__} whose repr raises {type(more).__name__}"
    return f"func returned {text}\nTypeError: {exc}"
