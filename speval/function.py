"""The function that is evaluated: its name, its code, and whether others evaluate another."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from .database import Connection
from .errors import visible
from .values import to_json

__all__ = ["code_of", "differences", "name_of"]

FIRST_FUNC = "SELECT func FROM spaces ORDER BY added LIMIT 1"
OTHERS = """
    SELECT host, pid, ended FROM workers WHERE code <> :code AND substr(code, 1, :length) = :version
    ORDER BY ended IS NOT NULL, started DESC LIMIT 1"""
COUNT_RESULTS_OF_OTHERS = """
    SELECT count(*) FROM evals WHERE status = 'completed' AND worker IN
        (SELECT id FROM workers WHERE code <> :code AND substr(code, 1, :length) = :version)"""
VERSION = "{}.{} ".format(*sys.version_info)  # code of another Python looks different when it is not


def _inner(func: Any) -> Any:
    """Return what decorators and methods are about."""
    for _ in range(100):
        inner = getattr(func, "__wrapped__", None) or getattr(func, "__func__", None)
        if inner is None:
            break
        func = inner
    return func


def name_of(func: Callable[[Any], Any]) -> str:
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", None)
    return name if isinstance(name, str) else type(func).__qualname__


def code_of(func: Callable[[Any], Any]) -> str | None:
    """Return a fingerprint of code, defaults and the arguments of a `functools.partial`; None of C code.

    All instances of one version of Python have the same. What `func` calls makes no difference.
    """
    import hashlib  # here, because a reader does not need it, and importing it takes milliseconds

    parts = list(_parts(func))
    if not any(isinstance(part, bytes) for part in parts):
        return None
    return VERSION + hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _parts(func: Any) -> Iterator[Any]:
    while isinstance(func, functools.partial):
        yield [
            *map(_known, func.args),
            *((name, _known(func.keywords[name])) for name in sorted(func.keywords)),
        ]
        func = func.func
    func = _inner(func)
    code = getattr(func, "__code__", None)
    if code is None:
        func = _inner(type(func).__call__)
        code = getattr(func, "__code__", None)
    if isinstance(code, types.CodeType):
        yield from _parts_of_code(code, func.__doc__)
        yield [
            *map(_known, func.__defaults__ or ()),
            *map(_known, sorted((func.__kwdefaults__ or {}).items())),
        ]


def _parts_of_code(code: types.CodeType, doc: str | None = None) -> Iterator[Any]:
    """Yield what code does, but not where it stands, and not how it is documented."""
    yield code.co_code
    yield [*code.co_names, *code.co_varnames, *code.co_freevars]
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _parts_of_code(const)
        elif isinstance(const, frozenset):  # its order is that of one process
            yield sorted(map(repr, const))
        elif const != doc:
            yield repr(const)


def _known(value: Any) -> str:
    """Return a value as text that is the same in each process: as JSON, or its type alone."""
    try:
        return to_json(value)
    except TypeError:
        return type(value).__qualname__


def differences(conn: Connection, path: str, func: Callable[[Any], Any]) -> list[str]:
    """Return what to say of other functions, or other code, by which there are results, or will be."""
    name = name_of(func)
    said = [
        f"{path} was made for the function {visible(first)}, now comes {name}: what is stored is not"
        " evaluated again"
        for (first,) in conn.execute(FIRST_FUNC).fetchall()
        if first != name
    ]
    facts = {"code": code_of(func), "version": VERSION, "length": len(VERSION)}
    for host, pid, ended in conn.execute(OTHERS, facts).fetchall():
        ((number,),) = conn.execute(COUNT_RESULTS_OF_OTHERS, facts).fetchall()
        if number:
            said.append(
                f"{number} results in {path} are of another version of {name}(), whose code has changed:"
                f" to start anew, name another file, or reset_evals({path!r}, 'completed')"
            )
        if ended is None:
            said.append(
                f"process {pid} on {visible(host)} evaluates another version of {name}(): see which is right"
            )
    return said
