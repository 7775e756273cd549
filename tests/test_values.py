"""Arguments, results and names come back as they were given, and what cannot be stored costs only itself."""

from __future__ import annotations

import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from speval import SpevalError, count_evals, load_evals, speval

# Each example is a real database, written to the disk for each evaluation of it: so few examples, with
# many values in each.
few = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))

# Lone surrogates are kept; a pair of them is the one thing that JSON does not tell from another string.
strings = st.text(st.characters(), max_size=20).filter(
    lambda text: not re.search("[\ud800-\udbff][\udc00-\udfff]", text)
)
integers = st.integers() | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**400, -(10**4000)])
scalars = st.none() | st.booleans() | integers | st.floats() | strings
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4)
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ODD_NAMES = [
    "",
    "0",
    "00",
    "1.0",
    "-1",
    " ",
    "\0",
    "a\0b",
    "a",
    "A",
    "\t",
    "\n",
    "\r\n",
    "'",
    '"',
    "%s",
    "\x7f",
]


@pytest.fixture
def db(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "evals.db"


def fresh() -> Iterator[str]:
    """Yield the name of a database for one example: the fixtures are shared by all of them."""
    with tempfile.TemporaryDirectory() as directory:
        yield os.path.join(directory, "evals.db")


def nested(depth: int, value: Any) -> Any:
    for _ in range(depth // 2):
        value = [{"": value}]
    return value


@few
@given(st.lists(values, min_size=1, max_size=20))
@example([[], {}, "", [[]], {"": {}}, [{}], None, 0, -0.0, math.nan, math.inf, -math.inf, 5e-324])
@example(["\ud800", "\udfff", "\U0001f600", "\0", "\u2028", "\x7f", {"\ud800": "\udfff"}, "a\tb\nc\\"])
@example([nested(400, math.nan), 10**4000, 0.1, 1e22, 1.7976931348623157e308, True, 1, 1.0])
def test_any_value_comes_back_equal_as_argument_and_as_result(space: list[Any]) -> None:
    seen: list[Any] = []

    def func(value: Any) -> Any:
        seen.append(value)
        return value

    for name in fresh():
        assert speval(func, space, name)["completed"] == len(space)
        rows = load_evals(name)
        assert repr(seen) == repr(space)  # by repr: it tells 1 from 1.0 and True, and NaN is NaN
        assert repr([row["args"] for row in rows]) == repr(space)
        assert repr([row["result"] for row in rows]) == repr(space)


@few
@given(st.lists(names, unique=True, min_size=1, max_size=15))
@example(ODD_NAMES)
@example([str(index) for index in range(11, -1, -1)])
def test_names_come_back_in_the_order_of_the_space(given_names: list[str]) -> None:
    space = {key: index for index, key in enumerate(given_names)}
    for name in fresh():
        speval(lambda index: -index, space, name)
        rows = load_evals(name)
        assert [row["name"] for row in rows] == given_names
        assert [(row["args"], row["result"]) for row in rows] == [(i, -i) for i in range(len(rows))]
        assert speval(lambda index: 1 / 0, space, name)["failed"] == 0


@few
@given(st.lists(st.tuples(values, values), min_size=1, max_size=8))
def test_arguments_reach_func_as_they_are_stored(space: list[tuple[Any, Any]]) -> None:
    seen: list[Any] = []
    for name in fresh():
        speval(seen.append, [{1: pair, None: (pair,)} for pair in space], name)
        expected = [{"1": list(pair), "null": [list(pair)]} for pair in space]
        assert repr(seen) == repr(expected)
        assert repr([row["args"] for row in load_evals(name)]) == repr(expected)


def test_deep_nesting_that_one_instance_stores_every_reader_reads(db: pathlib.Path) -> None:
    speval(lambda depth: nested(depth, None), range(500, 1000, 50), db)
    for row in load_evals(db, "completed"):
        assert repr(row["result"]) == repr(nested(row["args"], None))
    assert count_evals(db)["completed"] >= 5


NUMPY = {
    "float64": (np.float64(0.1), 0.1),
    "float32": (np.float32(0.5), 0.5),
    "int8": (np.int8(-3), -3),
    "uint64": (np.uint64(2**64 - 1), 2**64 - 1),
    "bool": (np.bool_(True), True),
    "str": (np.str_("é"), "é"),
    "nan": (np.float32("nan"), math.nan),
    "array": (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    "no dimension": (np.array(7), 7),
    "empty": (np.zeros((0, 3)), []),
    "half empty": (np.zeros((2, 0)), [[], []]),
    "bools": (np.array([True, False]), [True, False]),
    "records": (np.array([(1, 2.5)], dtype=[("a", int), ("b", float)]), [[1, 2.5]]),
    "objects": (np.array([np.int64(1), None, {"x": np.int64(2)}], dtype=object), [1, None, {"x": 2}]),
    "nested": ({"x": [np.int64(1), (np.array([1.5]),)]}, {"x": [1, [[1.5]]]}),
}


def test_numpy_scalars_and_arrays_are_converted_wherever_they_stand(db: pathlib.Path) -> None:
    seen: list[Any] = []

    def func(value: Any) -> Any:
        seen.append(value)
        return list(NUMPY.values())[len(seen) - 1][0]

    expected = [plain for _, plain in NUMPY.values()]
    assert speval(func, {name: value for name, (value, _) in NUMPY.items()}, db)["failed"] == 0
    assert repr(seen) == repr(expected)
    assert repr([row["result"] for row in load_evals(db)]) == repr(expected)


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("an exception without words")


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("a value without words")


class Surrogate:
    def __repr__(self) -> str:
        return "<\udcff\ud800\0>"


class Convertible:
    """What has a ``tolist`` that raises, or returns something useless."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def __repr__(self) -> str:
        return "Convertible()"

    def tolist(self) -> Any:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self if self.outcome is None else self.outcome


class Endless:
    def tolist(self) -> Any:
        return [Endless()]


def circular() -> list[Any]:
    value: list[Any] = []
    value.append({"again": value})
    return value


# What cannot be stored, the type that the error has to name, and what it has to keep of the repr.
NOT_JSON: dict[str, tuple[Any, str, str]] = {
    "object": (pathlib.PurePosixPath("/a"), "PurePosixPath", "func returned PurePosixPath('/a')"),
    "set": ({"only": {3}}, "set", "func returned {'only': {3}}"),
    "bytes": ([b"\xff"], "bytes", r"func returned [b'\xff']"),
    "complex": (1 + 2j, "complex", "func returned (1+2j)"),
    "numpy complex": (np.complex128(1j), "complex", "1j"),
    "numpy date": (np.datetime64("2020-01-01"), "date", "2020-01-01"),
    "numpy key": ({np.int64(1): 2}, "int64", "1"),
    "tuple as key": ({(1, 2): 3}, "tuple", "func returned {(1, 2): 3}"),
    "function": (abs, "builtin_function_or_method", "func returned <built-in function abs>"),
    "repr raises": (NoRepr(), "NoRepr", "NoRepr whose repr raises RuntimeError"),
    "repr with surrogates": (Surrogate(), "Surrogate", r"<\udcff\ud800"),
    "circular": (circular(), "Circular", "[{'again': [...]}]"),
    "too deep": (nested(200_000, None), "recursion", "list"),
    "too many digits": (10**5000, "digits", "int"),
    "long repr": ({3: {"x" * 100_000}}, "set", "[...]"),
    "tolist raises": (Convertible(ValueError("no list")), "no list", "Convertible()"),
    "tolist raises surrogates": (Convertible(ValueError("\udcff")), r"\udcff", "Convertible()"),
    "tolist raises without words": (Convertible(Silent()), "Silent", "Convertible()"),
    "tolist raises a long text": (Convertible(ValueError("x" * 10**6)), "xxx", "Convertible()"),
    "tolist returns itself": (Convertible(None), "Circular", "Convertible()"),
    "tolist returns a set": (Convertible({1}), "set", "Convertible()"),
    "tolist without end": (Endless(), "recursion", "Endless"),
}


@pytest.mark.parametrize("kind", NOT_JSON)
def test_a_result_that_is_not_json_costs_that_evaluation_only(kind: str, db: pathlib.Path) -> None:
    result, names_type, keeps = NOT_JSON[kind]
    counts = speval(lambda index: result if index == 1 else index, range(3), db)
    assert counts == {"pending": 0, "in_progress": 0, "completed": 2, "failed": 1}
    (row,) = load_evals(db, "failed")
    assert row["name"] == "1"
    assert row["result"] is None
    assert names_type in row["error"]
    assert keeps in row["error"]
    assert row["error"].startswith("func returned ")
    assert len(row["error"]) <= 70_000


class TellsNoCause(Exception):
    @property
    def __cause__(self) -> Any:
        raise ValueError("no cause either")


UNSPEAKABLE = {
    "str raises": Silent(),
    "args without repr": ValueError(NoRepr()),
    "surrogates": ValueError("\udcff\0"),
    "cause raises": TellsNoCause(),
    "syntax error in bytes": SyntaxError("x", ("f", 1, 1, b"text")),
}


@pytest.mark.parametrize("kind", UNSPEAKABLE)
def test_an_exception_that_cannot_be_told_costs_that_evaluation_only(kind: str, db: pathlib.Path) -> None:
    def func(index: int) -> int:
        if index == 1:
            raise UNSPEAKABLE[kind]
        return index

    counts = speval(func, range(3), db)
    assert counts == {"pending": 0, "in_progress": 0, "completed": 2, "failed": 1}
    (row,) = load_evals(db, "failed")
    assert type(UNSPEAKABLE[kind]).__name__ in row["error"]


@pytest.mark.parametrize("kind", NOT_JSON)
def test_an_argument_that_is_not_json_is_named_and_nothing_is_touched(kind: str, db: pathlib.Path) -> None:
    space = {"good": 1, "bad one": NOT_JSON[kind][0], "after": 2}
    with pytest.raises(TypeError, match="evaluation 'bad one'"):
        speval(abs, space, db.parent / "new" / "evals.db")
    assert os.listdir(db.parent) == []
    speval(abs, {"good": 1}, db)
    before = db.read_bytes()
    with pytest.raises(TypeError, match="evaluation 'bad one'"):
        speval(abs, space, db)
    assert db.read_bytes() == before


@pytest.mark.parametrize("name", ["\ud800", "a\udcffb", ("a",), None, b"a"])
def test_a_name_that_cannot_be_text_is_refused_and_nothing_is_touched(name: Any, db: pathlib.Path) -> None:
    with pytest.raises((TypeError, ValueError)):
        speval(abs, {"good": 1, name: 2}, db)
    assert os.listdir(db.parent) == []


def test_names_that_are_equal_as_text_are_refused(db: pathlib.Path) -> None:
    for space in ({1: 0, "1": 0}, {1.0: 0, "1.0": 0}, {True: 0, "True": 0}, {np.int64(1): 0, "1": 0}):
        with pytest.raises(ValueError, match="two evaluations are called"):
            speval(abs, space, db)
    assert os.listdir(db.parent) == []


def by_key(value: Any) -> Any:
    """Return a value with its keys sorted: their order is not part of a space."""
    if isinstance(value, dict):
        return {key: by_key(value[key]) for key in sorted(value)}
    return [by_key(inner) for inner in value] if isinstance(value, list) else value


@few
@given(values, values)
@example(1, 1.0)
@example(1, True)
@example(math.nan, None)
@example("\ud800", "\udfff")
@example({"a": 1, "b": 2}, {"b": 2, "a": 1})
def test_other_arguments_under_a_stored_name_are_noticed(stored: Any, now: Any) -> None:
    for name in fresh():
        speval(id, [stored], name)
        if repr(by_key(stored)) == repr(by_key(now)):
            assert speval(id, [now], name)["completed"] == 1
        else:
            with pytest.raises(SpevalError, match="has the arguments"):
                speval(id, [now], name)
