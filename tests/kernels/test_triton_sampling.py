"""Argmax and the cut draw in Triton against the sampler's plain torch."""

from __future__ import annotations

import random

import pytest
import torch

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.kernels import sampled_ids
from nonet.sampling.rowwise import argmax
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import SampleRow
from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.sampled_ids import take_sampled  # isort: skip  (gpu_cases chooses the interpreter first)
from nonet.kernels.triton.sampling import TritonSampling  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
CUTS = [
    {},
    {"min_p": 0.1},
    {"top_k": 1, "temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"min_p": 0.02, "top_k": 9, "top_p": 0.6},
    {"top_k": 10_000_000, "top_p": 0.999},
]


@pytest.mark.parametrize("width", [1, 7, 200, 9000])
def test_argmax_takes_the_lowest_of_equals(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    values = torch.randint(-3, 4, (4, width), generator=generator).float()
    values[1] = float("-inf")
    ids, largest = TritonSampling().argmax(values.to(DEVICE))
    wanted_ids, wanted = argmax(values)
    assert ids.tolist() == wanted_ids.tolist()
    assert largest.cpu().equal(wanted)


def test_argmax_of_nan_is_not_finite() -> None:
    values = torch.tensor([[1.0, float("nan"), 3.0]], device=DEVICE)
    assert not TritonSampling().argmax(values)[1].isfinite().any()


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("width", [33, 9000])
def test_draws_are_those_of_the_samplers_distribution(cuts: dict[str, float], width: int) -> None:
    """The inverse CDF, in the order of ids, of what plain torch says the distribution is; many logits are equal."""
    generator = torch.Generator().manual_seed(width)
    row = (torch.randn(width, generator=generator) * 8).round() / 4
    distribution = final(row, cuts)
    draws = 64 if width < 100 else 8
    chance = random.Random(1)
    uniform = torch.tensor([0.0, *(chance.random() for _ in range(draws - 2)), 1 - 1e-9])
    uniform = uniform.double()
    params = SamplingParams(**{"temperature": 1.0, **cuts})
    ids = TritonSampling().draw(
        row.expand(draws, -1).contiguous().to(DEVICE),
        uniform.to(DEVICE),
        torch.full((draws,), params.min_p, device=DEVICE),
        torch.full((draws,), params.top_k, dtype=torch.int32, device=DEVICE),
        torch.full((draws,), params.top_p, device=DEVICE),
    )
    assert bool((distribution[ids.cpu()] > 0).all()), "a token was drawn that is cut"
    running = distribution.double().cumsum(0)
    for number, id_ in zip(uniform.tolist(), ids.tolist(), strict=True):
        before = running[id_ - 1].item() if id_ else 0.0
        assert before - 1e-4 <= number <= running[id_].item() + 1e-4


def final(row: torch.Tensor, cuts: dict[str, float]) -> torch.Tensor:
    """The distribution [V] after the cuts, as the sampler has it without kernels; temperature is left out."""
    params = SamplingParams(
        **{name: value for name, value in cuts.items() if name != "temperature"}
    )
    if params.top_k == 1:
        return torch.nn.functional.one_hot(row.argmax(), len(row)).float()
    sampler = Sampler(len(row), 1, torch.device("cpu"))
    sampler.add(0, NewSequence(seq_id=0, token_ids=[0], num_prompt=1, params=params, seed=0))
    return sampler.final_probabilities(row[None].clone(), [SampleRow(0, 1)])[0]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(5, 300, generator=generator).to(DEVICE)
    uniform = torch.rand(5, generator=generator).double().to(DEVICE)
    cuts = (
        torch.full((5,), 0.01, device=DEVICE),
        torch.full((5,), 20, dtype=torch.int32, device=DEVICE),
        torch.full((5,), 0.9, device=DEVICE),
    )
    together = TritonSampling().draw(rows, uniform, *cuts)
    alone = [
        TritonSampling().draw(
            rows[i : i + 1], uniform[i : i + 1], *(cut[i : i + 1] for cut in cuts)
        )
        for i in range(5)
    ]
    assert together.tolist() == torch.cat(alone).tolist()


def test_sampled_ids_are_put_in() -> None:
    ids = torch.tensor([4, -1, 0, -3, -2, 9], dtype=torch.int32)
    sampled = torch.tensor([11, -1, 13])
    plain, here = ids.clone(), ids.clone().to(DEVICE)
    sampled_ids.take_sampled(plain, sampled)
    take_sampled(here, sampled.to(DEVICE))
    assert plain.tolist() == here.tolist() == [4, 11, 0, 13, 0, 9]
