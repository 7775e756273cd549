"""Arguments, results and names come back as they were given, and what cannot be stored costs only itself."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import os
import pathlib
import re
import tempfile
import types
import unittest.mock
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import Sandbox
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from speval import SpevalError, load_evals, speval
from speval.values import to_json

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


def test_as_deep_as_is_allowed_comes_back_from_any_python(db: pathlib.Path) -> None:
    deepest = nested(400, None)
    wide = ["[" * 500, '"[', "\\", '\\"', "]", {"{": "}"}, [[]] * 1000, [{"x": "\\]"}] * 1000, nested(398, 0)]
    keyed = {5: nested(398, {np.int64(1): 2})}  # which is converted by the slower way
    space = [deepest, wide, keyed, "9" * 9000, 10**4300 - 1, [-(10**4299), "1" * 5000]]
    assert speval(lambda args: args, space, db)["failed"] == 0
    plain = [*space[:2], {"5": nested(398, {"1": 2})}, *space[3:]]
    assert repr([row["result"] for row in load_evals(db)]) == repr(plain)
    assert repr([row["args"] for row in load_evals(db)]) == repr(plain)


RAISE_LIMITS = """
import json
sys.setrecursionlimit(100_000)
getattr(sys, "set_int_max_str_digits", abs)(0)

def nest(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value

"""


def test_limits_do_not_depend_on_those_of_this_python(sandbox: Sandbox) -> None:
    script = """
values = {"digits": 10**4300, "depth": nest(401), "both": [nest(399), {"x": 10**4299}]}
speval(lambda name: values[name], ["digits", "depth", "both"], "evals.db")
for name in ["digits", "depth"]:
    try:
        speval(len, [values[name]], "other.db")
    except TypeError as exc:
        print(exc)
"""
    said = sandbox.run(RAISE_LIMITS + script).splitlines()
    assert (
        "the arguments of evaluation '0': cannot be stored as JSON: an integer has more than 4300" in said[-2]
    )
    assert "the arguments of evaluation '0': cannot be stored as JSON: lists and dicts are nested" in said[-1]
    assert not os.path.exists(sandbox.path / "other.db")
    assert sandbox.column("status") == ["failed", "failed", "completed"]
    assert "more than 4300 digits" in sandbox.column("error")[0]
    assert "nested more than 400 deep" in sandbox.column("error")[1]


# Texts that look like numbers, and numbers: keys of both kinds, often in one dict.
digits = st.sampled_from(
    ["1", "-1", "1.0", "true", "null", "NaN", "a1", "1e+22", '"1', "x\\", "\ud83d\ude00"]
)
keys = st.integers(-2, 2) | st.sampled_from([1.5, 1e22, True, None, math.inf, "\U0001f600"]) | digits


@settings(few, max_examples=200)
@given(st.recursive(st.none(), lambda inner: st.dictionaries(keys, inner, max_size=5) | st.lists(inner)))
def test_a_dict_is_stored_if_its_keys_differ_as_text(value: Any) -> None:
    if keys_differ(value):
        assert to_json(value) == json.dumps(value)
    else:
        with pytest.raises(TypeError, match="two keys of a dict are equal as text"):
            to_json(value)


def keys_differ(value: Any) -> bool:
    if isinstance(value, dict):
        texts = {next(iter(json.loads(json.dumps({key: None})))) for key in value}
        return len(texts) == len(value) and all(map(keys_differ, value.values()))
    return not isinstance(value, list) or all(map(keys_differ, value))


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


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)
    INNER = pathlib.PurePosixPath("a")


class Number(enum.IntEnum):
    ONE = 1


class Word(str, enum.Enum):
    A = "a"

    def __str__(self) -> str:
        return "not its value"


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = None
    dimensions: ClassVar[int] = 2


class Table:
    """What says itself what it is as a dict, as pandas' objects do."""

    def __init__(self, columns: Any) -> None:
        self.columns = columns

    def to_dict(self) -> Any:
        return dict(self.columns)

    def tolist(self) -> list[Any]:
        return list(self.columns)


UTC = datetime.timezone.utc
# What has one obvious form in JSON, and that.
ALMOST_JSON: dict[str, tuple[Any, Any]] = {
    "enum": ([Colour.RED, Colour.PAIR, Colour.INNER], ["red", [1, 2], "a"]),
    "enum of numbers or text": ([Number.ONE, Word.A], [1, "a"]),
    "dataclass": (Point(1, Point({2})), {"x": 1, "y": {"x": [2], "y": None}}),
    "path": ([pathlib.Path("a/b"), pathlib.PurePosixPath("\udcff")], ["a/b", "\udcff"]),
    "uuid": (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    "date": (datetime.date(2020, 1, 2), "2020-01-02"),
    "datetime": (datetime.datetime(2020, 1, 2, 3, 4, 5, 6, UTC), "2020-01-02T03:04:05.000006+00:00"),
    "time": (datetime.time(3, 4), "03:04:00"),
    "deque": (collections.deque([2, 1], 2), [2, 1]),
    "set": ([{10, 9, 1}, frozenset("ba"), set()], [[1, 9, 10], ["a", "b"], []]),
    "set of sets": ({frozenset({2, 1}), frozenset({3}), frozenset()}, [[], [1, 2], [3]]),
    "set without an order": ({"b", None, 2, Point(1)}, ["b", 2, None, {"x": 1, "y": None}]),
    "to_dict before tolist": (Table({"a": Table({"b": {1}})}), {"a": {"b": [1]}}),
    "dates as keys": (Table({datetime.date(2020, 1, 2): Colour.RED}), {"2020-01-02": "red"}),
    "keys": (
        {Colour.RED: {uuid.UUID(int=1): 1}, pathlib.Path("p"): 2, Number.ONE: 3, np.int64(5): 4, None: 5},
        {"red": {"00000000-0000-0000-0000-000000000001": 1}, "p": 2, "1": 3, "5": 4, "null": 5},
    ),
    "numpy dates": (
        [np.datetime64("2020-01-02"), np.datetime64("2020-01-02", "ns"), np.datetime64("NaT", "s")],
        ["2020-01-02", "2020-01-02T00:00:00.000000000", None],
    ),
    "arrays of dates": (
        [np.array([["2020-01-02", "NaT"]], "M8[ns]"), np.array("2020", "M8[Y]")],
        [[["2020-01-02T00:00:00.000000000", None]], "2020"],
    ),
    "records with dates": (
        np.array([(0, 2.5)], dtype=[("a", "M8[ns]"), ("b", float)]),
        [["1970-01-01T00:00:00.000000000", 2.5]],
    ),
    "half floats": (np.array([0.5], np.float16), [0.5]),
}


@pytest.mark.parametrize("kind", ALMOST_JSON)
def test_what_has_one_obvious_form_in_json_has_it_as_argument_and_as_result(
    kind: str, db: pathlib.Path
) -> None:
    value, expected = ALMOST_JSON[kind]
    seen: list[Any] = []

    def func(args: Any) -> Any:
        seen.append(args)
        return value

    assert speval(func, [value], db)["completed"] == 1
    assert speval(func, [expected], db)["completed"] == 1  # the same space
    (row,) = load_evals(db)
    assert repr(seen) == repr([expected])
    assert repr(row["result"]) == repr(expected)


# Values that JSON does not know, each with what it is there.
dates = st.dates() | st.times() | st.datetimes(timezones=st.none() | st.just(UTC))
known = (
    scalars.map(lambda value: (value, value))
    | dates.map(lambda date: (date, date.isoformat()))
    | st.uuids().map(lambda uuid: (uuid, str(uuid)))
    | st.sets(st.integers()).map(lambda numbers: (numbers, sorted(numbers)))
)
converted = st.recursive(
    known,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda pairs: tuple([pair[i] for pair in pairs] for i in (0, 1)))
        | inner.map(lambda pair: (Point(pair[0]), {"x": pair[1], "y": None}))
        | st.tuples(st.dates(), inner).map(lambda of: ({of[0]: of[1][0]}, {of[0].isoformat(): of[1][1]}))
    ),
)


@settings(few, max_examples=100)
@given(converted)
def test_whatever_stands_in_whatever_is_converted(pair: tuple[Any, Any]) -> None:
    value, expected = pair
    assert repr(json.loads(to_json(value))) == repr(expected)


def test_all_instances_agree_on_the_order_of_a_set(sandbox: Sandbox) -> None:
    script = """
words = {"a", "b", "c", "d", None, (1, "x"), frozenset("xyz")}
speval(lambda x: note(x), [words, {"k": frozenset("abcdefgh")}], "evals.db")
"""
    for seed in "12":
        with unittest.mock.patch.dict(os.environ, PYTHONHASHSEED=seed):
            sandbox.run(script)
    assert sandbox.column("args")[1] == {"k": list("abcdefgh")}
    assert len(sandbox.calls()) == 2


def test_objects_of_pandas_are_what_their_to_dict_says(db: pathlib.Path) -> None:
    pd = pytest.importorskip("pandas")
    days = pd.date_range("2020-01-02", periods=2)
    first, second = "2020-01-02T00:00:00", "2020-01-03T00:00:00"
    frame = pd.DataFrame({"day": [days[0], pd.NaT], "n": pd.array([1, pd.NA], dtype="Int64")}, index=days)
    expected = [
        {"day": {first: first, second: None}, "n": {first: 1, second: None}},
        {first: 1, second: None},
        [first, second],
        first,
        {"a": 1.5},
    ]
    space = [frame, frame["n"], days, days[0], pd.Series({"a": 1.5})]
    assert speval(lambda args: args, space, db)["completed"] == len(space)
    assert [row["result"] for row in load_evals(db)] == expected
    assert [row["args"] for row in load_evals(db)] == expected


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


def selfish() -> Point:
    point = Point([])
    point.x.append(point)
    return point


class Odd(enum.Enum):
    ODD = b"odd"


class Demanding:
    def to_dict(self, more: int) -> None:
        raise NotImplementedError


class Frame:
    """What has lines of the same name, of which a dict keeps one."""

    index = types.SimpleNamespace(is_unique=False)

    def to_dict(self) -> dict[str, int]:
        return {"a": 2}


# What cannot be stored, the type that the error has to name, and what it has to keep of the repr.
NOT_JSON: dict[str, tuple[Any, str, str]] = {
    "object": ({"only": slice(3)}, "slice", "func returned {'only': slice(None, 3, None)}"),
    "bytes": ([b"\xff"], "bytes", r"func returned [b'\xff']"),
    "bytes deep inside": (Table({Colour.RED: [{Point(b"\xff")}]}), "bytes", "func returned <"),
    "decimal": (decimal.Decimal("0.1"), "Decimal", "func returned Decimal('0.1')"),
    "time span": (datetime.timedelta(1), "timedelta", "func returned datetime.timedelta(days=1)"),
    "class": ([Point], "type", "Point"),
    "class of numpy": (np.float64, "type", "func returned <class 'numpy.float64'>"),
    "enum without a value for it": (Odd.ODD, "bytes", "func returned <Odd.ODD"),
    "mock": (unittest.mock.Mock(), "Mock", "func returned <Mock"),
    "complex": (1 + 2j, "complex", "func returned (1+2j)"),
    "numpy complex": (np.complex128(1j), "complex", "1j"),
    "numpy time span": (np.zeros(2, "m8[ns]"), "timedelta64", "func returned array([0, 0]"),
    "numpy long number": (np.array([1], np.longdouble), "longdouble", "func returned array([1.]"),
    "tuple as key": ({(1, 2): 3}, "tuple", "func returned {(1, 2): 3}"),
    "set as key": ({frozenset(): 3}, "frozenset", "func returned {frozenset(): 3}"),
    "keys equal as text": ({Colour.RED: 1, "red": 2}, "two keys", "func returned {<Colour.RED"),
    "number and text as keys": ({1: 1, "1": 2}, "equal as text, '1'", "func returned {1: 1"),
    "negative number and text": ({-1: 1, "-1": 2}, "equal as text, '-1'", "func returned {-1: 1"),
    "float and text as keys": ({1e22: 1, "1e+22": 2}, "equal as text, '1e+22'", "func returned {1e+22"),
    "boolean and text as keys": ({"true": 1, True: 2}, "equal as text, 'true'", "func returned {'true'"),
    "false and text as keys": ({"false": 1, False: 2}, "equal as text, 'false'", "func returned {'false'"),
    "None and text as keys": ({None: 1, "null": 2}, "equal as text, 'null'", "func returned {None: 1"),
    "NaN and text as keys": ({math.nan: 1, "NaN": 2}, "equal as text, 'NaN'", "func returned {nan: 1"),
    "two NaN as keys": ({float("nan"): 1, float("nan"): 2}, "equal as text, 'NaN'", "func returned {nan: 1"),
    "infinity and text": ({-math.inf: 1, "-Infinity": 2}, "text, '-Infinity'", "func returned {-inf: 1"),
    "surrogates and a character": ({"\ud83d\ude00": 1, "\U0001f600": 2}, "equal as text", "func returned {"),
    "equal keys in a list": ([0, {"a": ({1: 1, "1": 2},)}], "equal as text", "func returned [0, {'a'"),
    "equal keys in a dataclass": (Point({"x": {1: 1, "1": 2}}), "equal as text", "func returned Point("),
    "equal keys in a table": (Table({"a": {1: 1, "1": 2}}), "equal as text", "func returned <"),
    "equal keys beside converted ones": ({np.int64(5): {1: 1, "1": 2}}, "equal as text", "func returned {"),
    "equal keys in an array": (np.array([{1: 1, "1": 2}], object), "equal as text", "func returned array("),
    "index with duplicates": (Frame(), "duplicates in the index of a Frame", "func returned <"),
    "function": (abs, "builtin_function_or_method", "func returned <built-in function abs>"),
    "repr raises": (NoRepr(), "NoRepr", "NoRepr whose repr raises RuntimeError"),
    "repr with surrogates": (Surrogate(), "Surrogate", r"<\udcff\ud800"),
    "circular": (circular(), "Circular", "[{'again': [...]}]"),
    "too deep": (nested(40_000, None), "nested more than 400 deep", "list"),
    "one level too deep": (nested(400, [0]), "nested more than 400 deep", "func returned [{'': [{'': [{"),
    "a level too deep in a key's dict": (
        {5: nested(400, 0)},
        "nested more than 400 deep",
        "func returned {5: ",
    ),
    "too many digits": (10**5000, "more than 4300 digits", "int"),
    "too many digits in a list": ([1, {"x": -(10**4300)}], "more than 4300 digits", "list"),
    "long repr": ({3: ["x" * 100_000, 1j]}, "complex", "[...]"),
    "dataclass in itself": (selfish(), "Circular", "func returned Point("),
    "object in a set of its own": (Convertible([{Endless()}]), "too deep", "Convertible()"),
    "to_dict needs more": (Demanding(), "argument", "func returned <"),
    "tolist raises": (Convertible(ValueError("no list")), "no list", "Convertible()"),
    "tolist raises surrogates": (Convertible(ValueError("\udcff")), r"\udcff", "Convertible()"),
    "tolist raises without words": (Convertible(Silent()), "Silent", "Convertible()"),
    "tolist raises a long text": (Convertible(ValueError("x" * 10**6)), "xxx", "Convertible()"),
    "tolist returns itself": (Convertible(None), "Convertible", "Convertible()"),
    "tolist returns bytes": (Convertible({b"1"}), "bytes", "Convertible()"),
    "tolist without end": (Endless(), "too deep", "Endless"),
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
            with pytest.raises(SpevalError, match="the evaluation space differs"):
                speval(id, [now], name)
