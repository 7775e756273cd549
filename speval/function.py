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
from .values import blake2b

__all__ = ["code_of", "copied_generators", "differences", "name_of"]

FIRST_FUNC = "SELECT func FROM spaces WHERE func <> '' ORDER BY added LIMIT 1"  # a reset has none
OTHERS = """
    SELECT id, host, pid FROM workers
    WHERE ended IS NULL AND code <> :code AND code LIKE :version"""
ARE_OTHERS = "SELECT 1 FROM workers WHERE code <> :code AND code LIKE :version LIMIT 1"
COUNT_RESULTS_OF_OTHERS = """
    SELECT count(*) FROM evals WHERE status = 'completed' AND worker IN
        (SELECT id FROM workers WHERE code <> :code AND code LIKE :version)"""
MANY = 1000  # elements of a default or an argument, more of which are not looked at
COPIED = (
    "{}() uses a random generator that was made before speval() was called: {}. Each worker process gets a"
    " copy of it, and all copies give the same numbers. Make the generator inside the function:"
    " random.Random(current_eval()['name']), or"
    " numpy.random.default_rng(list(current_eval()['name'].encode()))"
)
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
    try:
        parts = list(_parts(func))
    except Exception:  # noqa: BLE001 - see name_of()
        return None
    if not any(isinstance(part, bytes) for part in parts):
        return None
    return VERSION + blake2b(repr(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _layers(func: Any) -> Iterator[Any]:
    """Yield a callable, and one after another what its partials, decorators and methods call."""
    for _ in range(100):
        yield func
        if isinstance(func, functools.partial):
            func = func.func
            continue
        found = [getattr(func, name, None) for name in ("__wrapped__", "__func__")]
        inner = next((value for value in found if callable(value)), None)
        if inner is None and not isinstance(getattr(func, "__code__", None), types.CodeType):
            inner = type(func).__call__
        if inner is None or inner is func:
            return
        func = inner


def _parts(func: Any) -> Iterator[Any]:
    for layer in _layers(func):
        func = layer
        if isinstance(func, functools.partial):
            yield _known((func.args, func.keywords))
    code = getattr(func, "__code__", None)
    if isinstance(code, types.CodeType):
        yield from _parts_of_code(code)
        yield _known((func.__defaults__, func.__kwdefaults__))


def _parts_of_code(code: types.CodeType) -> Iterator[Any]:
    """Yield what code does, without its place in the file and without its docstring.

    A docstring is a constant that no instruction loads, and it moves the other constants. So constants are
    yielded in the order in which they are loaded, and their numbers are left out of the instructions.
    """
    import opcode  # here, because a reader does not need it

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


def copied_generators(func: Callable[[Any], Any]) -> str | None:
    """Return a warning if `func` uses random generators that a fork copies; None if it does not.

    The generators of the modules `random` and `numpy.random` themselves get a new seed in each process.
    """
    try:
        names = {name for name, value in _held(func) if _is_copied(value)}
    except Exception:  # noqa: BLE001 - see name_of()
        return None
    return COPIED.format(visible(name_of(func)), ", ".join(sorted(map(visible, names)))) if names else None


def _is_copied(value: Any) -> bool:
    # A module that is not imported has made no generator.
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    kinds = (
        getattr(random, "Random", ()),
        getattr(numpy, "Generator", ()),
        getattr(numpy, "RandomState", ()),
    )
    # Not isinstance(), which calls the __class__ of a proxy: that may raise.
    if not issubclass(type(value), kinds) or issubclass(type(value), getattr(random, "SystemRandom", ())):
        return False
    seeded_anew = getattr(random, "_inst", None), getattr(getattr(numpy, "mtrand", None), "_rand", None)
    return not any(value is generator for generator in seeded_anew)


def _held(func: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a callable holds on to, each with a name for people."""
    for layer in _layers(func):
        if isinstance(layer, functools.partial):
            yield from (("an argument of functools.partial", value) for value in layer.args)
            yield from layer.keywords.items()
        bound = getattr(layer, "__self__", None)
        yield "self", bound
        for owner in (layer, type(layer), bound, type(bound)):
            attributes = getattr(owner, "__dict__", {})
            yield from ((f"self.{name}", value) for name, value in list(attributes.items()))
        if isinstance(layer, types.FunctionType):
            named = list(_named(layer))
            yield from named
            for _, value in named:  # also what functions that it calls hold, one level deep
                if type(value) is types.FunctionType:  # isinstance(): see _is_copied()
                    yield from _named(value)


def _named(func: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals, closed-over variables and defaults that the code of a function names."""
    code = func.__code__
    for name in _globals_in(code):
        yield name, func.__globals__.get(name)
    for name, cell in zip(code.co_freevars, func.__closure__ or ()):
        with contextlib.suppress(ValueError):  # it has no value yet
            yield name, cell.cell_contents
    yield from zip(reversed(code.co_varnames[: code.co_argcount]), reversed(func.__defaults__ or ()))
    yield from (func.__kwdefaults__ or {}).items()


def _globals_in(code: types.CodeType) -> Iterator[str]:
    """Yield the globals that code loads, and not the attributes that have such a name."""
    import dis  # here, because only this needs it

    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _globals_in(const)


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
