"""Drawn tokens follow the exact distribution; wrong variants of the rules are told apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sampling_cases import draw_many, p_value, sampler_for

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.sampling import sampler as sampler_module
from nonet.sampling.processors.base import ProcessorRow
from nonet.sampling.processors.penalties import Penalties
from nonet.sampling.processors.top_p import TopP
from nonet.sampling.random import Purpose, uniforms
from nonet.sampling.ranking import Ranking
from nonet.sampling.samples import SampleRow

COUNT = 60_000
VOCAB = 80
PROMPT = (3, 3, 3, 9, 11)
OUTPUTS = (4, 4, 9, 20)

CASES = {
    "temperature 1": SamplingParams(),
    "temperature 0.7": SamplingParams(temperature=0.7),
    "temperature 3": SamplingParams(temperature=3.0),
    "top-p 0.9": SamplingParams(top_p=0.9),
    "top-p 0.9 at 0.7": SamplingParams(temperature=0.7, top_p=0.9),
    "top-k 5": SamplingParams(top_k=5),
    "min-p": SamplingParams(min_p=0.1),
    "all three": SamplingParams(temperature=1.3, min_p=0.02, top_k=12, top_p=0.8),
    "repetition": SamplingParams(repetition_penalty=1.5),
    "frequency": SamplingParams(frequency_penalty=1.0),
    "presence": SamplingParams(presence_penalty=1.5),
    "penalties and top-p": SamplingParams(
        repetition_penalty=0.7, frequency_penalty=0.5, presence_penalty=-0.5, top_p=0.9
    ),
    "bias": SamplingParams(logit_bias={2: 3.0, 7: -100.0}),
}


def masked_logits(num_tokens: int = 48) -> torch.Tensor:
    """Logits [VOCAB] of which `num_tokens` are finite, ids that the penalties touch among them."""
    logits = torch.full((VOCAB,), float("-inf"))
    values = torch.randn(num_tokens, generator=torch.Generator().manual_seed(3)) * 1.5
    ids = torch.cat([torch.arange(32), torch.arange(VOCAB - num_tokens + 32, VOCAB)])
    logits[ids] = values
    logits[3], logits[4], logits[9], logits[20] = 1.5, 1.0, -1.0, 0.5
    return logits


def expected_probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The rules written out token by token, in float64."""
    values = logits.double().numpy().copy()
    for token_id, bias in (params.logit_bias or {}).items():
        values[token_id] += bias
    for token_id in {*PROMPT, *OUTPUTS}:
        value = values[token_id]
        penalty = params.repetition_penalty
        values[token_id] = value / penalty if value > 0 else value * penalty
    for token_id in set(OUTPUTS):
        values[token_id] -= params.frequency_penalty * OUTPUTS.count(token_id)
        values[token_id] -= params.presence_penalty
    values = np.exp(values / params.temperature - np.max(values / params.temperature))
    order = sorted(range(len(values)), key=lambda token_id: (-values[token_id], token_id))
    order = [token_id for token_id in order if values[token_id] > 0]
    order = [token_id for token_id in order if values[token_id] >= params.min_p * values[order[0]]]
    order = order[: params.top_k or None]
    total = values[order].sum()
    kept = []
    for token_id in order:
        if kept and values[kept].sum() >= params.top_p * total:
            break
        kept.append(token_id)
    result = np.zeros_like(values)
    result[kept] = values[kept] / values[kept].sum()
    return torch.from_numpy(result)


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_distribution(name: str) -> None:
    params, logits = CASES[name], masked_logits()
    expected = expected_probabilities(logits, params)
    sampler = sampler_for(params, VOCAB, prompt=PROMPT, outputs=OUTPUTS)
    stated = sampler.final_probabilities(logits.clone()[None], [SampleRow(0, 9)])[0]
    assert (stated - expected).abs().max() < 1e-6
    assert p_value(draw_many(sampler, logits, COUNT), expected) > 0.001


class CutsBeforeTheCrossingToken(TopP):
    def keep(self, ranking: Ranking, kept: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        return (super().keep(ranking, kept, slots) - 1).clamp(min=1)


class CountsThePrompt(Penalties):
    def add(self, slot: int, sequence: NewSequence) -> bool:
        added = super().add(slot, sequence)
        self.append(slot, sequence.token_ids[: sequence.num_prompt])
        return added


class DividesNegativeLogits(Penalties):
    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> None:
        before = logits.clone()
        super().apply(logits, rows)
        for row in rows:
            ids = list({*PROMPT, *OUTPUTS})
            penalty = CASES["repetition"].repetition_penalty
            logits[row.index, ids] = before[row.index, ids] / penalty


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("top-p 0.9", CutsBeforeTheCrossingToken),
        ("frequency", CountsThePrompt),
        ("repetition", DividesNegativeLogits),
    ],
)
def test_a_wrong_rule_is_rejected(name: str, mutant: type) -> None:
    params, logits = CASES[name], masked_logits()
    sampler = sampler_for(params, VOCAB, prompt=PROMPT, outputs=OUTPUTS)
    parts = sampler._truncations if mutant is CutsBeforeTheCrossingToken else sampler._processors
    (place,) = [i for i, part in enumerate(parts) if isinstance(part, mutant.__bases__)]
    parts[place] = mutant(VOCAB)
    parts[place].add(0, sequence_of(params))
    assert p_value(draw_many(sampler, logits, COUNT), expected_probabilities(logits, params)) < 1e-6


def sequence_of(params: SamplingParams) -> NewSequence:
    return NewSequence(
        seq_id=1, token_ids=[*PROMPT, *OUTPUTS], num_prompt=len(PROMPT), params=params, seed=5
    )


def test_one_number_for_all_positions_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def reused(seeds: Sequence[int], positions: Sequence[int], purpose: Purpose) -> np.ndarray:
        return uniforms(seeds, [0] * len(positions), purpose)

    monkeypatch.setattr(sampler_module, "uniforms", reused)
    logits = masked_logits()
    sampler = sampler_for(SamplingParams(), VOCAB)
    expected = expected_probabilities(logits, SamplingParams())
    assert p_value(draw_many(sampler, logits, COUNT), expected) < 1e-6


def test_pairs_of_successive_tokens_are_independent() -> None:
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5])
    ids = draw_many(sampler_for(SamplingParams(), 4), logits, 2 * COUNT)
    one = logits.double().softmax(-1)
    assert p_value(ids[0::2] * 4 + ids[1::2], torch.outer(one, one).flatten()) > 0.001
