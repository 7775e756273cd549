"""What a function takes, returns or raises, as text: JSON, and tracebacks."""

from __future__ import annotations

import json
import os
import traceback
from typing import Any

from .errors import SpevalError, message, plain

__all__ = ["MAX_ERROR", "encode", "error_of", "from_json", "refusal_of", "to_json"]

MAX_JSON = 400_000_000  # characters; SQLite takes 10**9 bytes a row, args, result and error together
OURS = os.path.join(os.path.dirname(__file__), "")
MAX_ERROR = 64 * 1024  # characters


def _tolist(value: Any) -> Any:
    """Convert what JSON does not know: NumPy scalars and arrays, and anything else with ``tolist``."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


encode = json.JSONEncoder(default=_tolist).encode
_decode = json.JSONDecoder().raw_decode


def to_json(value: Any) -> str:
    """Return `value` as JSON; `TypeError` if it has none, whatever the reason."""
    try:
        text = encode(value)
    except Exception as exc:
        raise TypeError(f"cannot be stored as JSON: {message(exc)}") from exc
    if len(text) > MAX_JSON:
        raise TypeError(f"{len(text)} characters of JSON are too many, {MAX_JSON} can be stored")
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
