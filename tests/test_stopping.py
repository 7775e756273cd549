"""When an evaluation is stopped: rules as functions of values, without any evaluation."""

from __future__ import annotations

import math
from typing import Any

import pytest

from speval import speval
from speval.search import halving, median


def decisions(rule: Any, steps: list[int]) -> list[int]:
    """Return at which of the steps that are reported a rule decides."""
    return [step for step, before in zip(steps, [-1, *steps]) if rule.decides_at(step, before)]


class TestMedian:
    def test_nothing_is_stopped_before_the_warm_up_is_over(self) -> None:
        assert decisions(median(warmup=3), list(range(6))) == [3, 4, 5]

    def test_what_is_worse_than_half_of_the_others_is_stopped(self) -> None:
        rule = median(startup=4)
        assert [rule.stops([value], [1, 2, 3, 4]) for value in (2.4, 2.5, 2.6)] == [False, False, True]

    def test_the_best_so_far_counts_not_the_last(self) -> None:
        assert not median(startup=3).stops([1, 9], [1, 2, 3])

    def test_a_value_that_is_no_number_does_not_make_one_worse(self) -> None:
        assert not median(startup=3).stops([0.1, math.nan], [0.5, 0.6, 0.7])

    def test_too_few_others_stop_nothing(self) -> None:
        assert not median(startup=5).stops([9], [1, 2, 3, 4])
        assert median(startup=4).stops([9], [1, 2, 3, 4])

    def test_the_largest_may_be_the_best(self) -> None:
        assert median(startup=3, maximize=True).stops([1], [1, 2, 3])
        assert not median(startup=3, maximize=True).stops([3], [1, 2, 3])

    @pytest.mark.parametrize("maximize", [False, True])
    def test_what_is_no_number_is_worst(self, maximize: bool) -> None:
        rule = median(startup=3, maximize=maximize)
        assert rule.stops([math.nan], [1, 2, 3])
        assert not rule.stops([1], [math.nan] * 3)


class TestHalving:
    def test_it_decides_at_steps_that_grow(self) -> None:
        assert decisions(halving(factor=3), list(range(100))) == [1, 3, 9, 27, 81]
        assert decisions(halving(factor=2, first=5), list(range(50))) == [5, 10, 20, 40]

    def test_and_at_the_next_one_where_such_a_step_is_not_reported(self) -> None:
        assert decisions(halving(factor=3), [0, 10, 20, 30, 90]) == [10, 30, 90]

    def test_the_best_part_of_those_that_have_come_goes_on(self) -> None:
        values = [0.1 * number for number in range(9)]
        rule = halving(factor=3)
        going_on = [v for v in values if not rule.stops([v], [other for other in values if other != v])]
        assert going_on == values[:3]

    def test_the_first_goes_on_and_of_two_the_better(self) -> None:
        rule = halving(factor=3)
        assert not rule.stops([5], [])
        assert rule.stops([5], [4])
        assert not rule.stops([3], [4])

    def test_those_that_are_equal_go_on(self) -> None:
        assert not halving().stops([1], [1] * 20)

    def test_the_largest_may_be_the_best_and_what_is_no_number_is_worst(self) -> None:
        rule = halving(factor=2, maximize=True)
        assert not rule.stops([9], [1, 2, 3])
        assert rule.stops([1], [9, 2, 3])
        assert rule.stops([math.nan], [9, 2, 3])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: median(warmup=-1),
        lambda: median(warmup=0.5),  # type: ignore[arg-type]
        lambda: median(startup=0),
        lambda: halving(factor=1),
        lambda: halving(factor=True),
        lambda: halving(first=0),
        lambda: speval(abs, [1], "evals.db", stop=median),  # type: ignore[arg-type]
        lambda: speval(abs, [1], "evals.db", stop="median"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_rule_is_an_error(wrong: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError)):
        wrong()
    assert list(tmp_path.iterdir()) == []
