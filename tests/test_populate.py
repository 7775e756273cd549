"""How an evaluation space comes into a database, is extended, and is refused if it is another one."""

import itertools
import logging
import os
import pathlib
import pickle
import random
import sqlite3
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Sandbox, until

from speval import SpaceMismatch, count_evals, load_evals, speval
from speval.space import Space
from speval.values import to_json


@pytest.fixture
def db(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "evals.db"


def names(db: pathlib.Path) -> list[str]:
    return [row["name"] for row in load_evals(db)]


def nested(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = {"k": value}
    return value


def test_a_bare_file_name_works_and_missing_directories_are_made(sandbox: Sandbox) -> None:
    sandbox.run("""
import pathlib
def func(x): return x
speval(func, [1], "evals.db")
speval(func, [1], pathlib.Path("some") / "where" / "a#b?c%20d e.db")
speval(func, [1], b"bytes.db")
""")
    assert sorted(os.listdir(sandbox.path / "some" / "where"))[0] == "a#b?c%20d e.db"
    assert sandbox.column("result") == [1]


def test_instances_started_at_once_populate_once_and_share_the_work(sandbox: Sandbox) -> None:
    script = """
def func(x):
    note(x)
    return x

speval(func, ({"x": x} for x in range(60)), "evals.db")
"""
    instances = [sandbox.start(script) for _ in range(20)]
    for instance in instances:
        sandbox.end(instance)
    assert sandbox.column("result") == [{"x": x} for x in range(60)]
    assert len(sandbox.calls()) == 60


def test_a_longer_list_with_the_same_beginning_extends_the_sweep(db: pathlib.Path) -> None:
    speval(abs, [-1, -2], db)
    assert speval(abs, [-1, -2, -3], db)["completed"] == 3
    assert speval(abs, [-1], db)["completed"] == 3
    assert [row["result"] for row in load_evals(db)] == [1, 2, 3]


def test_new_names_extend_the_sweep_in_any_order(db: pathlib.Path) -> None:
    speval(len, {"b": [1], "a": []}, db)
    speval(len, {"c": [1, 2], "a": []}, db)
    assert names(db) == ["b", "a", "c"]


def test_another_space_is_refused_and_nothing_is_added(db: pathlib.Path) -> None:
    speval(abs, [-1, -2], db)
    with pytest.raises(SpaceMismatch, match="in evaluation '1', args was -2, now it is 5") as caught:
        speval(abs, [-1, 5, 7], db)
    assert (caught.value.name, caught.value.stored, caught.value.given) == ("1", -2, 5)
    assert [row["args"] for row in load_evals(db)] == [-1, -2]


def test_that_another_space_is_refused_comes_out_of_a_pool_of_processes_too() -> None:
    mismatch = pickle.loads(pickle.dumps(SpaceMismatch("evals.db", "a", 1, [2])))
    assert (mismatch.name, mismatch.stored, mismatch.given) == ("a", 1, [2])
    assert "that of evals.db: in evaluation 'a', args was 1, now it is [2]" in str(mismatch)


@pytest.mark.parametrize(
    ("stored", "given", "says", "advises"),
    [
        ({"x": 1}, {"x": 1, "y": 0.1}, "args['y'] is new, 0.1.", "give it a default in func"),
        ({"x": 1, "y": 0.1}, {"x": 1}, "args['y'] is gone, it was 0.1.", "put back"),
        ({"x": 1}, {"y": 1}, "args['x'] is gone, it was 1; args['y'] is new, 1.", "another file; or"),
        ({"m": {"lr": 0.1}}, {"m": {"lr": 0.2}}, "args['m']['lr'] was 0.1, now it is 0.2.", "If the change"),
        ([0, 1], [0, True], "args[1] was 1, now it is True.", "If the change is meant"),
        ({"x": 0.13436424411240122}, {"x": 0.8474337369372327}, "args['x'] was 0.134", "If they are random"),
        (["b", "a"], ["a", "b"], "args was ['b', 'a'], now it is ['a', 'b'].", "Sort"),
        ("b.txt", "a.txt", "args was 'b.txt', now it is 'a.txt'.", "sort them"),
        (["x" * 200], ["x" * 200, 1], "xxx'], now it is [...] x", "xxx', 1]. If"),
        ({}, {"y": "x" * 10**6}, "args['y'] is new, 'xxx", "xxx'. Use another file"),
        (list(range(9)), list(range(1, 10)), "args[2] was 2, now it is 3; and more.", "If the change"),
        (nested(900, 1), nested(900, 2), "args['k']['k']['k']", "If the change"),
    ],
)
def test_who_gives_another_space_is_told_what_differs_and_what_to_do(
    stored: Any, given: Any, says: str, advises: str
) -> None:
    told = str(SpaceMismatch("evals.db", "a", stored, given))
    assert says in told
    assert advises in told[told.index(says) :]
    assert len(told) < 800


def test_the_order_of_keys_is_no_difference_but_a_type_is(db: pathlib.Path) -> None:
    speval(len, [{"a": 1, "b": 2}], db)
    assert speval(len, [{"b": 2, "a": 1}], db)["completed"] == 1
    with pytest.raises(SpaceMismatch):
        speval(len, [{"a": 1.0, "b": 2}], db)


def test_names_that_are_equal_as_text_are_refused(db: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="two evaluations are called '1'"):
        speval(abs, {1: 1, "1": 2}, db)
    assert not db.exists()


@pytest.mark.parametrize(
    ("error", "key"), [(TypeError, (1, 2)), (TypeError, None), (TypeError, object()), (ValueError, "\udcff")]
)
def test_a_name_is_text_or_a_number(db: pathlib.Path, error: type[Exception], key: Any) -> None:
    with pytest.raises(error):
        speval(abs, {key: 1}, db)
    assert not db.exists()


def test_an_argument_without_json_is_named_and_the_database_stays_as_it_was(db: pathlib.Path) -> None:
    with pytest.raises(
        TypeError, match="arguments of evaluation '1': cannot be stored as JSON: Object of type bytes"
    ):
        speval(len, [[], b""], db)
    assert not db.exists()
    speval(len, [[]], db)
    with pytest.raises(TypeError, match="evaluation '1'"):
        speval(len, [[], b""], db)
    assert names(db) == ["0"]


def test_the_text_and_the_fingerprint_are_the_same_whether_many_are_encoded_at_once_or_one_by_one() -> None:
    several: list[Any] = [{"x": i, "y": [i / 2, None, ", "]} for i in range(5000)]
    several[4000] = [float("nan"), {1: "a", "\x00": '\u00e9\n\t"]'}, pathlib.Path("p"), [], {}, "", ", "]
    several[4500] = {pathlib.Path("p"): 2}  # one by one: the encoder takes no such key
    with Space(several) as at_once, Space(iter(several)) as one_by_one:
        assert (
            list(at_once) == list(one_by_one) == [(str(i), to_json(args)) for i, args in enumerate(several)]
        )
        assert at_once.fingerprint == one_by_one.fingerprint
    with Space(dict(zip("ab", [1, "a"]))) as space:
        assert list(space) == [("a", "1"), ("b", '"a"')]


def test_an_iterable_may_yield_one_object_that_it_changes(db: pathlib.Path) -> None:
    def evals() -> Iterator[dict[str, int]]:
        one: dict[str, int] = {}
        for one["x"] in range(3000):
            yield one

    with Space(evals()) as space:
        assert [args for _, args in space] == [f'{{"x": {i}}}' for i in range(3000)]


@pytest.mark.parametrize("kind", [list, dict, iter])
def test_the_one_argument_without_json_among_many_is_named(db: pathlib.Path, kind: Any) -> None:
    several: list[Any] = [*range(3000), object(), *range(3000)]
    evals = dict(enumerate(several)) if kind is dict else kind(several)
    with pytest.raises(TypeError, match="the arguments of evaluation '3000': cannot be stored as JSON"):
        speval(str, evals, db)
    assert not db.exists()


def test_elements_that_suddenly_become_large_are_not_kept_in_memory() -> None:
    megabytes = ("x" * 1_000_000 for _ in range(60))
    tracemalloc.start()
    try:
        with Space(itertools.chain(range(3000), megabytes)) as space:
            assert len(space) == 3060
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


def test_an_error_in_the_users_iterable_comes_out_and_nothing_is_made(db: pathlib.Path) -> None:
    def space() -> Iterator[int]:
        yield 1
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        speval(abs, space(), db)
    assert not db.exists()


def test_an_empty_space_is_finished(db: pathlib.Path) -> None:
    assert speval(abs, [], db) == {"pending": 0, "in_progress": 0, "completed": 0, "failed": 0}
    assert load_evals(db) == []


def test_another_function_on_the_same_database_is_warned(
    db: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    speval(abs, [1], db)
    assert caplog.messages == []
    speval(len, [1, [2]], db)
    speval(len, [1, [2]], db)
    told = f"{db} was made for the function abs, now comes len: what is stored is not evaluated again"
    assert caplog.messages == [told] * 2


def test_evaluations_deleted_with_the_shell_are_added_again(db: pathlib.Path) -> None:
    speval(abs, [-1, -2], db)
    with sqlite3.connect(db) as conn:
        conn.execute("DELETE FROM evals WHERE name = '0'")
    conn.close()
    assert speval(abs, [-1, -2], db)["completed"] == 2


def test_a_finished_sweep_is_not_written_to(db: pathlib.Path) -> None:
    speval(abs, range(10), db)
    before = db.read_bytes(), db.stat().st_mtime_ns
    assert speval(abs, range(10), db)["completed"] == 10
    assert (db.read_bytes(), db.stat().st_mtime_ns) == before


def test_a_worker_killed_while_it_populates_leaves_nothing_half_done(sandbox: Sandbox) -> None:
    script = 'def func(x): note(x)\nspeval(func, range(int(sys.argv[1])), "evals.db", wait=False)'
    instance = sandbox.start(script, "200000")
    path = pathlib.Path(sandbox.db)
    until(lambda: path.exists() and path.stat().st_size > 2_000_000)  # it writes, and has not committed
    instance.kill()
    instance.wait()
    assert sum(count_evals(sandbox.db).values()) in (0, 200_000)
    os.unlink(path)
    sandbox.run(script, "5")
    assert count_evals(sandbox.db)["completed"] == 5


# That of getrusage() begins with the peak of the process that started this one.
PEAK = """
def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))  # KiB
"""


def test_memory_does_not_grow_with_the_space(sandbox: Sandbox) -> None:
    script = """
def func(x): raise KeyboardInterrupt
before = peak()
try:
    speval(func, ({"x": x, "text": "x" * 400} for x in range(80_000)), "evals.db")
except KeyboardInterrupt:
    pass
for row in iter_evals("evals.db"):
    pass
note(row["name"], (peak() - before) / 1024)
"""
    sandbox.run(PEAK + script)
    name, grown = sandbox.calls()[0].split()
    assert name == "79999"
    assert float(grown) < 30  # MB, of which SQLite's cache is some; the arguments alone are 35


def test_the_fingerprint_knows_what_it_saw(db: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Extensions and parts are seen once, too; then an instance needs no write to start."""
    caplog.set_level(logging.WARNING)
    generator = random.Random(5)
    space = [generator.random() for _ in range(50)]
    for part in (space[:20], space, space[:30]):
        speval(abs, part, db)
    before = db.read_bytes()
    for part in (space[:30], space, space[:20]):
        speval(abs, part, db)
    assert db.read_bytes() == before


def test_two_extensions_at_once_are_both_there(sandbox: Sandbox) -> None:
    script = 'def func(x): return x\nspeval(func, dict.fromkeys(sys.argv[1:], 1), "evals.db")'
    instances = [sandbox.start(script, "a", name) for name in "bcdefg"]
    for instance in instances:
        sandbox.end(instance)
    assert sorted(sandbox.column("name")) == list("abcdefg")


def test_who_populates_for_long_says_how_far_it_is(sandbox: Sandbox) -> None:
    script = """
from speval.process import background
background.LONG_WAIT = 0.001
speval(lambda x: os._exit(0), range(100_000), "evals.db")
"""
    said = sandbox.run(script)
    assert "reading the evaluation space, " in said
    assert "of 100000 evaluations so far" in said


def test_populating_takes_the_same_memory_for_any_number(sandbox: Sandbox) -> None:
    script = """
def func(args):
    raise KeyboardInterrupt

for size in (20_000, 200_000):
    try:
        speval(func, ({"x": i} for i in range(size)), f"{size}.db")
    except KeyboardInterrupt:
        note(peak())
"""
    sandbox.run(PEAK + script)
    small, large = map(int, sandbox.calls())
    assert large - small < 4000  # KiB


def test_nothing_is_left_when_speval_returns_though_others_extend_the_space(sandbox: Sandbox) -> None:
    script = """
import random
size = 10
for _ in range(50):
    size = max(size, sum(count_evals("evals.db").values()) if os.path.exists("evals.db") else 0)
    size += random.choice([0, 1, 5])
    counts = speval(lambda x: x, range(size), "evals.db")
    assert counts["pending"] == counts["in_progress"] == 0, counts
"""
    for instance in [sandbox.start(script) for _ in range(3)]:
        sandbox.end(instance)
    assert sandbox.column("result") == list(range(sum(count_evals(sandbox.db).values())))
