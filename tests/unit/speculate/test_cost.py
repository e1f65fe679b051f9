"""Step costs: between and beyond what was measured, and noise."""

from __future__ import annotations

import pytest

from nonet.speculate.cost import StepCost, measure_cost


def test_linear_between_and_beyond() -> None:
    cost = StepCost((1, 2, 4), (1.0, 1.0, 2.0))
    assert [cost(n) for n in (1, 2, 3, 4, 6)] == [1.0, 1.0, 1.5, 2.0, 3.0]


def test_one_size_is_a_constant() -> None:
    assert StepCost((1,), (0.5,))(100) == 0.5


def test_a_disturbed_measurement_is_not_believed() -> None:
    seen = {1: 1.0, 2: 9.0, 3: 1.2, 4: 1.3, 6: 1.1, 8: 2.0}
    cost = measure_cost(seen.__getitem__, largest=8)
    assert [cost(n) for n in (1, 2, 4, 6, 8)] == [1.0, 1.1, 1.1, 1.1, 2.0]


@pytest.mark.parametrize(("largest", "sizes"), [(1, (1,)), (5, (1, 2, 3, 4)), (0, (1,))])
def test_no_step_is_larger_than_the_buffers(largest: int, sizes: tuple[int, ...]) -> None:
    assert measure_cost(lambda size: 1.0, largest).sizes == sizes
