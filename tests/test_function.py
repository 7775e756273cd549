"""The function that is evaluated has changed: who evaluates it is told, and goes on."""

from __future__ import annotations

import functools
import logging
import pathlib
import signal
import textwrap
from typing import Any

import pytest
from conftest import Sandbox, until

from speval import load_evals, speval
from speval.function import code_of


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
