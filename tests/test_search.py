"""Evaluation spaces: what comes out of domains, the same in each instance, and what is suggested."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from speval.search import TPE, choice, grid, integers, loguniform, quasi, sample, uniform

SPACE = {
    "lr": loguniform(1e-5, 1e-1),
    "layers": integers(1, 5),
    "model": choice([{"kind": "svm", "C": loguniform(0.01, 100)}, {"kind": "knn", "k": integers(1, 30)}]),
    "epochs": 10,
}
PLANE = {"x": uniform(0, 1), "y": uniform(0, 1)}
LISTS: list[Callable[..., list[Any]]] = [sample, quasi]


def evaluated(args: Any, result: Any = None, status: str = "completed", **more: Any) -> dict[str, Any]:
    args = json.loads(json.dumps(args))
    return {"name": "", "status": status, "args": args, "result": result, "stopped": None, **more}


def run(space: TPE, func: Callable[[Any], Any], history: list[dict[str, Any]] | None = None) -> list[Any]:
    """Evaluate what is suggested, one after the other; return the history."""
    history = [] if history is None else history
    while len(history) < len(space):
        args = space.suggest(history)
        history.append(evaluated(args, func(args)))
    return history


def best(history: list[dict[str, Any]]) -> Any:
    return min(history, key=lambda its: its["result"])


def bowl(args: Any) -> float:
    return (args["x"] - 0.3) ** 2 + (args["y"] - 0.6) ** 2


class TestDomains:
    @pytest.mark.parametrize("domain", [uniform(-1, 1), loguniform(1e-3, 10), integers(-2, 2)])
    def test_all_values_are_within_bounds_and_the_grid_has_both_of_them(self, domain: Any) -> None:
        values = sample(domain, 300) + quasi(domain, 300)
        assert all(domain.low <= value <= domain.high for value in values)
        assert {domain.low, domain.high} <= set(grid(domain, 4))

    def test_whole_numbers_are_equally_likely_up_to_both_bounds(self) -> None:
        values = quasi(integers(1, 6), 600)
        assert all(90 <= values.count(number) <= 110 for number in range(1, 7))
        assert all(type(value) is int for value in values)

    def test_as_many_of_a_loguniform_are_in_each_decade(self) -> None:
        decades = [math.floor(math.log10(value)) for value in quasi(loguniform(1e-4, 1), 400)]
        assert all(90 <= decades.count(decade) <= 110 for decade in range(-4, 0))

    @pytest.mark.parametrize("domain", [uniform(3, 3), loguniform(3, 3), integers(3, 3)])
    def test_bounds_may_be_equal(self, domain: Any) -> None:
        assert grid(domain) == sample(domain, 1) == quasi(domain, 1) == [3]
        assert TPE(domain, 3).suggest([evaluated(3, 1.0)] * 20) == 3

    def test_wide_bounds_are_kept_to(self) -> None:
        assert set(grid(integers(-(10**30), 10**30), 3)) == {-(10**30), 0, 10**30}
        assert all(1e-300 <= value <= 1e300 for value in sample(loguniform(1e-300, 1e300), 100))

    @pytest.mark.parametrize(
        ("make", "error"),
        [
            (lambda: uniform(2, 1), ValueError),
            (lambda: uniform(math.nan, 1), ValueError),
            (lambda: uniform(0, math.inf), ValueError),
            (lambda: uniform(-1e308, 1e308), ValueError),
            (lambda: uniform(False, 1), TypeError),
            (lambda: uniform("0", 1), TypeError),
            (lambda: uniform(None, 1), TypeError),  # type: ignore[arg-type]
            (lambda: loguniform(0, 1), ValueError),
            (lambda: loguniform(-1, 1), ValueError),
            (lambda: integers(1.0, 2), TypeError),  # type: ignore[arg-type]
            (lambda: integers(True, 2), TypeError),
            (lambda: integers(2, 1), ValueError),
            (lambda: choice([]), ValueError),
            (lambda: choice("abc"), TypeError),
            (lambda: choice({"a": 1}), TypeError),
            (lambda: choice({"a", "b"}), TypeError),
            (lambda: choice(3), TypeError),  # type: ignore[arg-type]
            (lambda: grid(PLANE, 0), ValueError),
            (lambda: grid(PLANE, 2.5), TypeError),  # type: ignore[arg-type]
            (lambda: sample(PLANE, 0), ValueError),
            (lambda: quasi(PLANE, True), TypeError),
            (lambda: sample(PLANE, 1, seed="a"), TypeError),  # type: ignore[arg-type]
            (lambda: TPE(PLANE, 0), ValueError),
            (lambda: TPE(PLANE, 1, key=3), TypeError),  # type: ignore[arg-type]
            (lambda: grid({"f": object()}), TypeError),
            (lambda: grid({1: 0, "1": 0}), ValueError),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, make: Callable[[], Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            make()


class TestLists:
    @pytest.mark.parametrize("make", LISTS)
    def test_a_choice_brings_only_what_its_option_has(self, make: Callable[..., list[Any]]) -> None:
        models = [args["model"] for args in make(SPACE, 100)]
        assert {tuple(model) for model in models} == {("kind", "C"), ("kind", "k")}
        assert all(model["kind"] == ("svm" if "C" in model else "knn") for model in models)

    @pytest.mark.parametrize("make", LISTS)
    def test_a_longer_list_begins_with_the_shorter_one(self, make: Callable[..., list[Any]]) -> None:
        assert make(SPACE, 30, seed=2) == make(SPACE, 50, seed=2)[:30]
        assert make(SPACE, 30, seed=2) != make(SPACE, 30, seed=3)

    @pytest.mark.parametrize("space", [SPACE, [uniform(0, 1), (1, integers(1, 2))], integers(1, 9), {}, 3])
    def test_what_comes_out_is_what_json_has(self, space: Any) -> None:
        found = [*grid(space, 2), *sample(space, 9), *quasi(space, 9), TPE(space, 9).suggest([])]
        assert json.loads(json.dumps(found)) == found

    def test_constants_come_as_json_has_them_and_are_no_ones_own(self) -> None:
        first, second = sample({"size": (1, 2), 3: {"a": None}}, 2)
        assert first == {"size": [1, 2], "3": {"a": None}}
        first["size"].append(3)
        assert second["size"] == [1, 2]

    def test_a_grid_has_each_combination_once(self) -> None:
        assert len(grid(SPACE, 3)) == 3 * 3 * (3 + 3)
        assert len(grid(SPACE, 10)) == 10 * 5 * (10 + 10)
        assert grid(choice([1, 1.0, uniform(1, 2), 1]), 2) == [1, 1.0, 2.0]
        for found in (grid(SPACE, 3), grid(integers(0, 9), 7)):
            assert len({json.dumps(args) for args in found}) == len(found)

    def test_one_level_is_the_middle(self) -> None:
        args = grid({"a": uniform(0, 4), "b": loguniform(1, 100), "c": integers(1, 5)}, 1)
        assert args == [{"a": 2.0, "b": pytest.approx(10), "c": 3}]

    def test_quasi_is_spread_more_evenly_than_sample_in_each_two_of_many_dimensions(self) -> None:
        space = [uniform(0, 1) for _ in range(12)]

        def unevenness(points: list[Any]) -> float:
            corners = [(i / 8, j / 8) for i in range(1, 9) for j in range(1, 9)]
            return sum(
                abs(sum(p[a] < x and p[b] < y for p in points) / len(points) - x * y)
                for a, b in itertools.combinations(range(12), 2)
                for x, y in corners
            )

        assert unevenness(quasi(space, 128)) < 0.6 * unevenness(sample(space, 128))

    def test_a_parameter_twice_in_a_space_is_two(self) -> None:
        domain = uniform(0, 1)
        assert all(a != b for a, b in sample([domain, domain], 20) + quasi([domain, domain], 20))

    def test_processes_agree(self) -> None:
        code = """if True:
            import json
            from speval.search import *
            space = {"x": uniform(0, 1), "m": choice(["a", {"b": integers(1, 9)}, {"c": loguniform(1, 9)}])}
            history = []
            for i, args in enumerate(quasi(space, 40)):
                history.append({"status": "completed", "args": args, "result": args["x"]})
            found = [sample(space, 5), quasi(space, 5), grid(space, 2), TPE(space, 50).suggest(history)]
            print(json.dumps(found))"""
        answers = {
            subprocess.run(
                [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
            ).stdout
            for seed in ("1", "2")
        }
        assert len(answers) == 1


class TestTPE:
    def test_comes_closer_than_evenly_spread_arguments(self) -> None:
        assert best(run(TPE(PLANE, 60), bowl))["result"] < min(map(bowl, quasi(PLANE, 60))) / 3

    def test_finds_the_better_branch_and_goes_on_there(self) -> None:
        space = choice([{"a": uniform(0, 1)}, {"b": uniform(0, 1), "c": uniform(0, 1)}, "nothing"])

        def func(args: Any) -> float:
            return 3.0 if args == "nothing" else args.get("b", 1.0) + 0.5 * abs(args.get("c", 1.0) - 0.4)

        history = run(TPE(space, 70), func)
        assert best(history)["result"] < 0.15
        assert sum("b" in its["args"] for its in history[40:]) > 15

    def test_workers_at_once_get_different_arguments_before_any_has_finished(self) -> None:
        history: list[dict[str, Any]] = []
        for space in (TPE(PLANE, 80), TPE({"n": integers(1, 80)}, 80)):
            history = []
            for _ in range(80):
                history.append(evaluated(space.suggest(history), status="in_progress"))
            assert len({json.dumps(its["args"]) for its in history}) == 80

    def test_what_is_in_progress_keeps_others_away(self) -> None:
        def apart(points: list[Any]) -> float:
            nearest = [min(math.dist(a, b) for b in points if b is not a) for a in points]
            return sorted(nearest)[len(points) // 2]

        known = unknown = 0.0
        for seed in range(4):
            space = TPE(PLANE, 100, seed=seed)
            history = run(TPE(PLANE, 40, seed=seed), bowl)
            alone = [TPE(PLANE, 100, seed=100 + other).suggest(history) for other in range(20)]
            for _ in range(20):
                history.append(evaluated(space.suggest(history), status="in_progress"))
            known += apart([tuple(its["args"].values()) for its in history[40:]])
            unknown += apart([tuple(args.values()) for args in alone])
        assert known > 1.5 * unknown

    @pytest.mark.parametrize(
        "space",
        [integers(1, 30), choice(["abcd", "fgh"]), {"a": integers(1, 5), "b": choice(list(range(4)))}],
    )
    def test_nothing_comes_twice_until_all_was_tried(self, space: Any) -> None:
        everything = len(grid(space, 100))
        history = run(TPE(space, everything + 3), lambda args: len(str(args)))
        assert len({json.dumps(its["args"]) for its in history[:everything]}) == everything
        assert len(history) == everything + 3

    def test_arguments_of_another_space_are_ignored(self) -> None:
        foreign = [
            evaluated(args, -1e9)
            for args in ({"x": 0.3}, {"x": 2.0, "y": 0.5}, {"x": "a", "y": 0.1}, None, 3)
        ]
        foreign += [evaluated({"x": 0.5, "y": 0.5, "z": 1}, -1e9), evaluated({"x": True, "y": 0.5}, -1e9)]
        history = run(TPE(PLANE, 60), bowl, foreign * 3)
        assert min(bowl(its["args"]) for its in history[21:]) < 0.01

    @pytest.mark.parametrize("bad", [None, math.nan, "text", {"loss": 0.0}, math.inf])
    def test_a_result_that_is_no_good_number_never_draws_it_there(self, bad: Any) -> None:
        history = run(TPE(PLANE, 60), lambda args: bad if args["x"] < 0.5 else abs(args["x"] - 0.7))
        assert sum(its["args"]["x"] < 0.5 for its in history[30:]) < 12

    @pytest.mark.parametrize("how", [{"status": "failed", "result": None}, {"stopped": 3, "result": -1.0}])
    def test_what_failed_or_was_stopped_never_draws_it_there(self, how: dict[str, Any]) -> None:
        space, history = TPE(PLANE, 60), []
        for _ in range(60):
            args = space.suggest(history)
            history.append({**evaluated(args, abs(args["x"] - 0.7)), **(how if args["x"] < 0.5 else {})})
        assert sum(its["args"]["x"] < 0.5 for its in history[30:]) < 12

    def test_maximizing_mirrors_minimizing(self) -> None:
        down = run(TPE(PLANE, 30), bowl)
        up = run(TPE(PLANE, 30, maximize=True), lambda args: -bowl(args))
        assert [its["args"] for its in down] == [its["args"] for its in up]

    def test_key_tells_where_the_number_is(self) -> None:
        plain = run(TPE(PLANE, 30), bowl)
        keyed = run(TPE(PLANE, 30, key="loss"), lambda args: {"loss": bowl(args), "model": "a.pt"})
        assert [its["args"] for its in plain] == [its["args"] for its in keyed]
        assert TPE(PLANE, 30, maximize=True, key="loss").key == "loss"
        assert TPE(PLANE, 30, maximize=True, key="loss").maximize is True

    def test_only_the_history_counts_not_what_was_asked_before(self) -> None:
        used, history = TPE(SPACE, 60), []
        for index in range(60):
            args = used.suggest(history)
            assert args == TPE(SPACE, 60).suggest(history)
            history.append(evaluated(args, status="in_progress"))
            for late in (index - 3, index // 2):
                if late >= 0:
                    its = history[late]
                    how = {"status": "failed"} if index % 7 == 3 else {"status": "completed"}
                    history[late] = {**its, **how, "result": math.log(its["args"]["lr"]) ** 2 + index % 5}
        assert used.suggest(history[:20]) == TPE(SPACE, 60).suggest(history[:20])
        assert used.suggest(history[::-1]) == TPE(SPACE, 60).suggest(history[::-1])

    def test_the_seed_counts(self) -> None:
        history = run(TPE(PLANE, 30), bowl)
        assert TPE(PLANE, 60, seed=1).suggest(history) != TPE(PLANE, 60).suggest(history)
        assert TPE(PLANE, 60, seed=1).suggest([]) != TPE(PLANE, 60).suggest([])

    def test_it_can_be_pickled_fresh_and_used(self) -> None:
        used = TPE(SPACE, 40)
        history = run(used, lambda args: args["lr"])
        assert len(used) == 40
        for space in (used, TPE(SPACE, 40)):
            assert pickle.loads(pickle.dumps(space)).suggest(history) == used.suggest(history)

    def test_many_evaluations_are_not_too_many(self) -> None:
        history = [evaluated(args, bowl(args)) for args in quasi(PLANE, 3000)]
        assert bowl(TPE(PLANE, 4000).suggest(history)) < 0.05

    def test_a_hundred_parameters_and_a_hundred_options_are_possible(self) -> None:
        space = [*(uniform(0, 1) for _ in range(100)), choice(list(range(100)))]
        history = run(TPE(space, 40), sum)
        assert len({json.dumps(its["args"]) for its in history}) == 40
