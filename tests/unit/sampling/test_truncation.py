"""Exact truncation: ties, limits, and the same bits at every depth of the ranking."""

from __future__ import annotations

import pytest
import torch
from sampling_cases import CPU, label, sampler_for

from nonet.core.sampling_params import SamplingParams
from nonet.sampling.ranking import depths, rank
from nonet.sampling.samples import SampleRow


def kept_ids(params: SamplingParams, logits: torch.Tensor) -> list[int]:
    sampler = sampler_for(params, len(logits))
    return (
        sampler.final_probabilities(logits.clone()[None], [SampleRow(0, 1)])[0]
        .nonzero()
        .flatten()
        .tolist()
    )


def test_top_k_keeps_exactly_k_and_the_lower_ids_of_a_tie() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    assert kept_ids(SamplingParams(top_k=2), logits) == [1, 2]
    assert kept_ids(SamplingParams(top_k=3), logits) == [1, 2, 3]


def test_top_p_takes_the_crossing_token_and_the_lower_ids_of_a_tie() -> None:
    logits = torch.tensor([0.1, 0.4, 0.25, 0.25]).log()
    assert kept_ids(SamplingParams(top_p=0.3), logits) == [1]
    assert kept_ids(SamplingParams(top_p=0.5), logits) == [1, 2]
    assert kept_ids(SamplingParams(top_p=0.7), logits) == [1, 2, 3]
    assert kept_ids(SamplingParams(top_p=0.95), logits) == [0, 1, 2, 3]


def test_extreme_values() -> None:
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0])
    everything = [0, 1, 2, 3]
    assert kept_ids(SamplingParams(top_p=0.0), logits) == [1]
    assert kept_ids(SamplingParams(top_p=1.0), logits) == everything
    assert kept_ids(SamplingParams(top_k=4), logits) == everything
    assert kept_ids(SamplingParams(top_k=1_000_000), logits) == everything
    assert kept_ids(SamplingParams(top_k=-1), logits) == everything
    assert kept_ids(SamplingParams(min_p=1.0), logits) == [1, 2]
    assert kept_ids(SamplingParams(temperature=1e-30, top_p=0.5), logits) == [1]
    assert kept_ids(SamplingParams(temperature=1e-30), logits) == [1, 2]


def test_top_p_is_a_share_of_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the two left the first has 0.57, so 0.5 needs one; of all four it has 0.4 and would need two.
    assert kept_ids(SamplingParams(top_k=2, top_p=0.5), logits) == [0]
    assert kept_ids(SamplingParams(top_p=0.5), logits) == [0, 1]


PARAMS = [
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.9999),
    SamplingParams(top_k=127),
    SamplingParams(top_k=128),
    SamplingParams(top_k=2500, top_p=0.6),
    SamplingParams(min_p=0.001, top_p=0.9),
    SamplingParams(min_p=1e-7),
    SamplingParams(top_p=0.5, top_k=4000),
]


@pytest.mark.parametrize("params", PARAMS, ids=label)
@pytest.mark.parametrize("kind", ["peaked", "flat", "ties", "few"])
def test_shallow_and_complete_rankings_agree_to_the_bit(params: SamplingParams, kind: str) -> None:
    size, count = 6001, 12
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(count, size, generator=generator)
    if kind == "peaked":
        logits[:, ::97] += 9.0
    elif kind == "ties":
        logits = (logits * 2).round()
    elif kind == "few":
        logits[:, 40:] = -200.0
    rows = [SampleRow(0, position) for position in range(count)]
    shallow, complete = sampler_for(params, size), sampler_for(params, size)
    complete._depths = (size,)
    assert shallow._depths == depths(size, CPU) == (128, 2048, size)
    ids = [[one.token_id for one in s.sample(logits.clone(), rows)] for s in (shallow, complete)]
    assert ids[0] == ids[1]
    both = [s.final_probabilities(logits.clone(), rows) for s in (shallow, complete)]
    assert torch.equal(both[0], both[1])


def test_a_ranking_knows_what_it_does_not_know() -> None:
    ranking = rank(torch.full((1, 1000), 0.001), 128)
    assert not ranking.is_known(torch.tensor([128])).item()
    assert ranking.is_known(torch.tensor([1000])).item()
    assert not ranking.is_settled(torch.tensor([5])).item()  # all equal: ids may be missing
    peaked = torch.zeros(1, 1000)
    peaked[0, 3] = 1.0
    assert rank(peaked, 128).is_settled(torch.tensor([500])).item()


def test_on_another_device_nothing_depends_on_values() -> None:
    assert depths(50_000, torch.device("cuda")) == (50_000,)
