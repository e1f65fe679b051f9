"""The final distribution equals what Hugging Face's logits processors leave, on random logits of real sizes."""

from __future__ import annotations

import pytest
import torch
from sampling_cases import sampler_for
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nonet.core.sampling_params import SamplingParams
from nonet.sampling.samples import SampleRow

TOKENS = (1, 5, 5, 40, 999, 17)

CASES = {
    "temperature": (SamplingParams(temperature=0.6), [TemperatureLogitsWarper(0.6)]),
    "top-k": (SamplingParams(top_k=50), [TopKLogitsWarper(50)]),
    "top-k above the first depth": (SamplingParams(top_k=300), [TopKLogitsWarper(300)]),
    "top-p": (SamplingParams(top_p=0.9), [TopPLogitsWarper(0.9)]),
    "small top-p": (SamplingParams(top_p=0.02), [TopPLogitsWarper(0.02)]),
    "min-p": (SamplingParams(min_p=0.07), [MinPLogitsWarper(0.07)]),
    "small min-p": (SamplingParams(min_p=0.0005), [MinPLogitsWarper(0.0005)]),
    "repetition": (
        SamplingParams(repetition_penalty=1.3),
        [RepetitionPenaltyLogitsProcessor(1.3)],
    ),
    "everything": (
        SamplingParams(repetition_penalty=1.2, temperature=0.8, min_p=0.001, top_k=200, top_p=0.85),
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(0.8),
            MinPLogitsWarper(0.001),
            TopKLogitsWarper(200),
            TopPLogitsWarper(0.85),
        ],
    ),
}


@pytest.mark.parametrize("vocab_size", [1003, 49152])
@pytest.mark.parametrize("name", CASES)
def test_equals_hugging_face(name: str, vocab_size: int) -> None:
    params, processors = CASES[name]
    logits = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(7)) * 2
    ids = torch.tensor([TOKENS]).expand(6, -1)
    expected = LogitsProcessorList(processors)(ids, logits.clone()).softmax(-1)
    sampler = sampler_for(params, vocab_size, prompt=TOKENS[:2], outputs=TOKENS[2:])
    rows = [SampleRow(0, len(TOKENS))] * 6
    actual = sampler.final_probabilities(logits.clone(), rows)
    # Cumulative sums in float32 (theirs) and float64 (ours) may place the crossing one token apart.
    differing = ((actual > 0) != (expected > 0)).sum(-1)
    assert int(differing.max()) <= (1 if params.top_p < 1.0 else 0)
    limit = 1e-4 if differing.any() else 1e-6
    assert (actual - expected).abs().max() < limit
