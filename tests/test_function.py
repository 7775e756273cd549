"""The function that is evaluated has changed: who evaluates it is told, and goes on."""

from __future__ import annotations

import functools
import logging
import pathlib
import random
import signal
import textwrap
from typing import Any

import pytest
from conftest import Sandbox, until

from speval import load_evals, speval
from speval.function import code_of, copied_generators


def made(source: str, **names: Any) -> Any:
    """Return what a source text calls f."""
    exec(textwrap.dedent(source), names)
    return names["f"]


WAS = "def f(x, y=2, *, z='a'):\n    return {x: 3, **{v: 1.5 for v in 'ab' if v in {'a', 'c', z}}}"


@pytest.mark.parametrize(
    "now",
    [
        WAS.replace("3", "4"),
        WAS.replace("1.5", "1"),
        WAS.replace("y=2", "y=3"),
        WAS.replace("'a', 'c'", "'a', 'd'"),
        WAS.replace("z='a'", "z='b'"),
        WAS.replace("x: 3", "str(x): 3"),
        WAS.replace("return", "return not"),
    ],
)
def test_another_code_or_default_is_another_function(now: str) -> None:
    assert code_of(made(now)) != code_of(made(WAS))


@pytest.mark.parametrize("now", [WAS, "\n\n# moved\n" + WAS, WAS.replace("return", "'It does.'\n    return")])
def test_another_place_or_docstring_is_not(now: str) -> None:
    assert code_of(made(now)) == code_of(made(WAS))


@pytest.mark.parametrize(
    "body",
    ["", "if x: return 1000", "def g():\n        {}return None\n    return g", "return [1000] * x, 2**70"],
)
def test_a_docstring_moves_no_constant_whatever_they_are(body: str) -> None:
    texts = ["", "'It does.'\n    ", "'It does more.'\n    "]
    versions = {
        code_of(made(f"def f(x):\n    {text}{body.format(text.replace('    ', 8 * ' '))}\n    pass"))
        for text in texts
    }
    assert len(versions) == 1


def test_constants_beyond_the_255th_count_too() -> None:
    values = [f"{value}.5" for value in range(400)]
    one, other = (
        f"def f(x):\n    return [x, {', x, '.join([*values, last])}]" for last in ("1e300", "2e300")
    )
    assert code_of(made(one)) != code_of(made(other))


def test_arguments_of_a_partial_count_and_decorators_and_methods_are_looked_through() -> None:
    f = made(WAS)
    partials = [
        functools.partial(f),
        functools.partial(f, y=1),
        functools.partial(f, y=2),
        functools.partial(f, 1),
    ]
    assert len({code_of(partial) for partial in partials}) == 4
    assert code_of(functools.partial(f, y=object())) == code_of(functools.partial(f, y=object()))
    assert code_of(functools.lru_cache(f)) == code_of(f)
    assert code_of(type("A", (), {"__call__": f})()) == code_of(type("A", (), {"f": f})().f) == code_of(f)


class Strange:
    """A callable that raises for whatever it is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __call__(self, x: Any) -> Any:
        return x


def test_large_values_are_not_read() -> None:
    class Large:
        def tolist(self) -> list[int]:
            raise AssertionError("it is read")

    f = made(WAS)
    assert code_of(functools.partial(f, Large())) == code_of(functools.partial(f, Large())) is not None
    assert code_of(functools.partial(f, [0] * 10**6)) == code_of(functools.partial(f, [1] * 10**6))


def test_a_strange_callable_is_no_error(tmp_path: pathlib.Path) -> None:
    assert code_of(Strange()) is None
    assert speval(Strange(), [1], tmp_path / "evals.db")["completed"] == 1


@pytest.mark.parametrize("func", [abs, dict, int.__add__, functools.partial(abs)])
def test_of_c_code_nothing_is_known(func: Any) -> None:
    assert code_of(func) is None


SCRIPT = """
from functools import partial

def square(x, power):
    note(x)
    if x == "wait":
        wait_for("go")
    return {"one", "two", "three"} and int(x) ** power if x != "wait" else None

speval(partial(square, power=int(sys.argv[1])), sys.argv[2:], "evals.db")
"""


def test_instances_of_one_code_are_not_warned_and_those_of_another_are(sandbox: Sandbox) -> None:
    sandbox.touch("go")
    assert sandbox.run(SCRIPT, "2", "1", "2") == ""
    assert sandbox.run(SCRIPT, "2", "1", "2", "wait") == ""
    said = sandbox.run(SCRIPT, "3", "1", "2", "wait", "4")
    assert "3 results in" in said
    assert "another version of square(), or of other arguments" in said
    assert [row["result"] for row in load_evals(sandbox.db)] == [1, 4, None, 64]


def test_one_that_is_dead_works_no_more(sandbox: Sandbox) -> None:
    other = sandbox.start(SCRIPT, "2", "wait")
    until(sandbox.calls)
    sandbox.end_by(other, signal.SIGKILL)
    sandbox.touch("go")
    assert "evaluates another version" not in sandbox.run(SCRIPT, "3", "wait")


def test_one_that_works_meanwhile_with_another_code_is_named(sandbox: Sandbox) -> None:
    other = sandbox.start(SCRIPT, "2", "wait")
    until(sandbox.calls)
    late = sandbox.start(SCRIPT, "3", "wait", "1")
    until(lambda: len(sandbox.calls()) == 2)
    sandbox.touch("go")
    assert f"process {other.pid} on" in sandbox.end(late)
    sandbox.end(other)


def test_results_of_another_python_are_not_said_to_be_of_another_code(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("speval.function.VERSION", "2.7 ")
        speval(lambda x: x, [1], tmp_path / "evals.db")
    with caplog.at_level(logging.WARNING):
        speval(lambda x: x + 1, [1, 2], tmp_path / "evals.db")
    assert caplog.messages == []


class Walk:
    """A callable, and a method, that have a random generator or none."""

    def __init__(self, rng: Any = None) -> None:
        self.rng = rng

    def __call__(self, x: Any) -> Any:
        return self.rng.random()

    def walk(self, x: Any) -> Any:
        return self.rng.random()


class Shared:
    rng = random.Random(0)

    def __call__(self, x: Any) -> Any:
        return self.rng.random()


def enclosed(rng: Any) -> Any:
    return lambda x: rng.random()


def decorated(func: Any) -> Any:
    @functools.wraps(func)
    def wrapper(x: Any) -> Any:
        return func(x)

    return wrapper


RNG = random.Random(0)
HOLDERS = {
    "rng": made("def f(x): return rng.random()", rng=RNG),
    "rng of a lambda": made("def f(x): return [(lambda: rng.random())() for _ in range(x)]", rng=RNG),
    "rng of a helper": made(
        "def helper(): return rng.random()\ndef f(x): return helper()",
        rng=RNG,
    ),
    "rng of a closure": enclosed(RNG),
    "rng of a decorated function": decorated(enclosed(RNG)),
    "rng of a default": made("def f(x, rng=RNG): return rng.random()", RNG=RNG),
    "rng of a keyword's default": made("def f(x, *, rng=RNG): return rng.random()", RNG=RNG),
    "rng of a partial": functools.partial(made("def f(x, rng): return rng.random()"), rng=RNG),
    "an argument of functools.partial": functools.partial(made("def f(rng, x): return rng.random()"), RNG),
    "self.rng": Walk(RNG),
    "self.rng of a method": Walk(RNG).walk,
    "self.rng of a partial": functools.partial(Walk(RNG).walk),
    "self.rng of a class": Shared(),
    "self": RNG.randrange,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_random_generator_that_would_be_copied_is_found_where(holder: str) -> None:
    warning = copied_generators(HOLDERS[holder])
    assert warning is not None
    assert f" was called: {holder.partition(' of a ')[0]}. " in warning


@pytest.mark.parametrize("kind", ["default_rng", "RandomState"])
def test_so_are_those_of_numpy(kind: str) -> None:
    rng = getattr(pytest.importorskip("numpy").random, kind)(0)
    assert copied_generators(enclosed(rng)) is not None
    assert copied_generators(functools.partial(Walk(rng))) is not None


def test_generators_that_func_does_not_use_or_that_are_seeded_anew_are_not() -> None:
    functions = [
        made("def f(x): return random.random()", random=random),
        made("def f(x): return draw()", draw=random.random),
        made("def f(x): return draw(0, 1)", draw=random.randint),
        made("def f(x): return random.Random(x).random()", random=random, rng=RNG),
        made("def f(x): return x.rng", rng=RNG),  # an attribute that has the name of a global
        made("def f(x): return rng.random()", rng=random.SystemRandom()),
        made("def f(x): return missing"),
        random.random,
        random.uniform,
        Walk(),
        Walk().walk,
        abs,
        dict,
        int.__add__,
    ]
    assert [copied_generators(func) for func in functions] == [None] * len(functions)


def test_the_global_generator_of_numpy_is_not() -> None:
    numpy = pytest.importorskip("numpy")
    functions = [
        made("def f(x): return numpy.random.rand()", numpy=numpy),
        made("def f(x): return draw()", draw=numpy.random.rand),
        numpy.random.rand,
    ]
    assert [copied_generators(func) for func in functions] == [None] * len(functions)


class Proxy:
    """An object that raises when its class is asked for, as one that stands for what is not there."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("nothing is bound")


def test_strange_objects_are_no_error_when_generators_are_looked_for() -> None:
    assert copied_generators(Strange()) is None
    assert copied_generators(made("def f(x): return strange(x)", strange=Strange(), proxy=Proxy())) is None
    both = made("def f(x): return proxy, strange, rng", proxy=Proxy(), strange=Strange(), rng=RNG)
    assert copied_generators(both) is not None
    late = made("def g():\n    def f(x): return rng\n    return f\n    rng = 1\nf = g()")  # an empty cell
    assert copied_generators(late) is None


def test_one_warning_is_logged_if_processes_are_forked(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    walk = enclosed(RNG)
    speval(walk, range(4), tmp_path / "alone.db")
    assert caplog.messages == []
    speval(walk, range(4), tmp_path / "evals.db", n_jobs=2)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "enclosed.<locals>.<lambda>() uses a random generator that was made before speval() was called"
    ]
    speval(lambda x: random.random(), range(4), tmp_path / "other.db", n_jobs=2)
    assert len(caplog.messages) == 1
