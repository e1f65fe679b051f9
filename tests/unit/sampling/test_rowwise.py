"""Argmax, best and draw against plain implementations, with ties, odd sizes and independence of the batch."""

from __future__ import annotations

import pytest
import torch

from nonet.sampling.rowwise import argmax, best, draw


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000, 4096])
def test_argmax_takes_the_lowest_id_of_a_tie(size: int) -> None:
    values = torch.randint(0, 4, (50, size), generator=torch.Generator().manual_seed(size)).float()
    values -= 3.0
    ids, largest = argmax(values)
    assert torch.equal(ids, (values == values.amax(-1, keepdim=True)).int().argmax(-1))
    assert torch.equal(largest, values.amax(-1))


def test_argmax_shows_values_that_are_not_numbers() -> None:
    values = torch.zeros(4, 130)
    values[0, 129] = float("nan")
    values[1, 70] = float("inf")
    values[2] = float("-inf")
    _, largest = argmax(values)
    assert largest.isfinite().tolist() == [False, False, False, True]


@pytest.mark.parametrize("size", [5, 100, 1000, 5001])
@pytest.mark.parametrize("width", [1, 7, 128, 6000])
def test_best_equals_a_stable_sort_above_the_last_value(size: int, width: int) -> None:
    generator = torch.Generator().manual_seed(size + width)
    for spread in (3, 300, 1_000_000):
        values = torch.randint(-spread, spread, (20, size), generator=generator).float() / 7
        values[values.abs() < 0.2] *= -1.0  # some zeros become -0.0
        found, ids = best(values, width)
        expected, order = torch.sort(values, dim=-1, descending=True, stable=True)
        width_found = min(width, size)
        assert torch.equal(found, expected[:, :width_found])
        assert torch.equal(found, values.gather(1, ids))
        exact = (found > found[:, -1:]) | (width_found == size)
        assert torch.equal(ids[exact], order[:, :width_found][exact])


def test_draw_is_the_inverse_of_the_running_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 3, 64, 65, 1000):
        weights = torch.randint(0, 3, (400, size), generator=generator).float()
        weights[:, -1] += 1.0
        uniform = torch.rand(400, dtype=torch.float64, generator=generator)
        sums = weights.double().cumsum(-1)
        expected = (sums <= (uniform * sums[:, -1])[:, None]).sum(-1)
        assert torch.equal(draw(weights, uniform), expected)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2.0**-53])
def test_draw_never_takes_an_id_of_weight_zero(uniform: float) -> None:
    for seed in range(50):
        weights = torch.rand(8, 700, generator=torch.Generator().manual_seed(seed))
        weights[weights < 0.7] = 0.0
        weights[:, :5] = 0.0
        weights[:, 600:] = 0.0
        ids = draw(weights, torch.full((8,), uniform, dtype=torch.float64))
        assert bool((weights.gather(1, ids[:, None]) > 0).all())


def test_draw_survives_rows_without_a_distribution() -> None:
    weights = torch.zeros(2, 100)
    weights[1] = float("nan")
    ids = draw(weights, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert bool(((ids >= 0) & (ids < 100)).all())
