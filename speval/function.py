"""The function that is evaluated: its name, its code, and whether others evaluate another."""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from .database import Connection, Database
from .errors import visible

__all__ = ["code_of", "differences", "name_of"]

FIRST_FUNC = "SELECT func FROM spaces WHERE func <> '' ORDER BY added LIMIT 1"  # a reset has none
OTHERS = """
    SELECT id, host, pid FROM workers
    WHERE ended IS NULL AND code <> :code AND code LIKE :version"""
ARE_OTHERS = "SELECT 1 FROM workers WHERE code <> :code AND code LIKE :version LIMIT 1"
COUNT_RESULTS_OF_OTHERS = """
    SELECT count(*) FROM evals WHERE status = 'completed' AND worker IN
        (SELECT id FROM workers WHERE code <> :code AND code LIKE :version)"""
MANY = 1000  # elements of a default or an argument, more of which are not looked at
VERSION = "{}.{} ".format(*sys.version_info)  # code of another Python looks different when it is not


def name_of(func: Callable[[Any], Any]) -> str:
    while isinstance(func, functools.partial):
        func = func.func
    name = None
    with contextlib.suppress(Exception):  # of a strange callable, attributes may do anything
        name = getattr(func, "__qualname__", None)
    return name if isinstance(name, str) else type(func).__qualname__


def code_of(func: Callable[[Any], Any]) -> str | None:
    """Return a fingerprint of code, defaults and the arguments of a `functools.partial`; None of C code.

    All instances of one version of Python have the same. What `func` calls makes no difference, nor do
    values that are large, or none of JSON's.
    """
    import hashlib  # here, because a reader does not need it, and importing it takes milliseconds

    try:
        parts = list(_parts(func))
    except Exception:  # noqa: BLE001 - see name_of()
        return None
    if not any(isinstance(part, bytes) for part in parts):
        return None
    return VERSION + hashlib.blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _inner(func: Any) -> Any:
    """Return what decorators and methods are about."""
    for _ in range(100):
        found = [getattr(func, name, None) for name in ("__wrapped__", "__func__")]
        inner = next((value for value in found if callable(value)), None)
        if inner is None:
            break
        func = inner
    return func


def _parts(func: Any) -> Iterator[Any]:
    while isinstance(func, functools.partial):
        yield _known((func.args, func.keywords))
        func = func.func
    func = _inner(func)
    code = getattr(func, "__code__", None)
    if code is None:
        func = _inner(type(func).__call__)
        code = getattr(func, "__code__", None)
    if isinstance(code, types.CodeType):
        yield from _parts_of_code(code)
        yield _known((func.__defaults__, func.__kwdefaults__))


def _parts_of_code(code: types.CodeType) -> Iterator[Any]:
    """Yield what code does, without its place in the file and without its docstring.

    A docstring is a constant that no instruction loads, and it moves the other constants. So constants are
    yielded in the order in which they are loaded, and their numbers are left out of the instructions.
    """
    import opcode  # here, for the same reason as hashlib

    yield [*code.co_names, *code.co_varnames, *code.co_freevars]
    operations, arguments = code.co_code[::2], bytearray(code.co_code[1::2])
    for load in [at for at, operation in enumerate(operations) if operation in opcode.hasconst]:
        at, number = load, 0
        while at == load or operations[at] == opcode.EXTENDED_ARG:  # which has the upper bytes of the number
            number |= arguments[at] << 8 * (load - at)
            arguments[at] = 0
            at -= 1
        yield from _parts_of_constant(code.co_consts[number])
    yield operations + arguments


def _parts_of_constant(const: Any) -> Iterator[Any]:
    if isinstance(const, types.CodeType):
        yield from _parts_of_code(const)
    elif isinstance(const, frozenset):  # its order is that of one process
        yield sorted(map(repr, const))
    else:
        yield repr(const)


def _known(value: Any) -> Any:
    """Return what is the same of a value in each process: itself, or its type alone."""
    kind = type(value)
    if kind in (type(None), bool, int, float, str):
        return value
    if kind in (tuple, list) and len(value) <= MANY:
        return list(map(_known, value))
    if kind is dict and len(value) <= MANY:
        return sorted((repr(_known(key)), _known(inner)) for key, inner in value.items())
    return kind.__qualname__


def differences(db: Database, conn: Connection, name: str, code: str | None) -> list[str]:
    """Return what to say of other functions, or other code, by which there are results, or will be."""
    said = [
        f"{db.path} was made for the function {visible(first)}, now comes {name}: what is stored is not"
        " evaluated again"
        for (first,) in conn.execute(FIRST_FUNC).fetchall()
        if first != name
    ]
    facts = {"code": code, "version": f"{VERSION}%"}
    if not conn.execute(ARE_OTHERS, facts).fetchall():
        return said
    ((number,),) = conn.execute(COUNT_RESULTS_OF_OTHERS, facts).fetchall()
    if number:
        said.append(
            f"{number} results in {db.path} are of another version of {name}(), or of other arguments that"
            f" were bound to it: to start anew, name another file, or reset_evals({db.path!r}, 'completed')"
        )
    others = conn.execute(OTHERS, facts).fetchall()
    dead = db.locks.dead(conn, [worker for worker, *_ in others], surely=False)
    for _, host, pid in [row for row in others if row[0] not in dead][:1]:
        who = f"process {pid} on {visible(host)}"
        said.append(f"{who} evaluates another version of {name}(): see which is right")
    return said
