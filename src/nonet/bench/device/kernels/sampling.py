"""The sampler on rows of random logits: greedy, at a temperature, and truncated. The host's launches count."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nonet.bench.device.kernels.problem import Bench, Calls, Problem
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.sampling.sampler import Sampler
from nonet.sampling.samples import SampleRow

__all__ = ["sampling"]

ROWS = {"cuda": (1, 64, 256), "cpu": (1, 8)}
PARAMS = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.8),
    "top-k and top-p": SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
}


def sampling(bench: Bench) -> Iterator[Problem]:
    """Must read every logit once."""
    vocab = bench.spec.vocab_size

    def make(params: SamplingParams, rows: int) -> Calls:
        sampler = Sampler(vocab, rows, bench.device)
        for slot in range(rows):
            new = NewSequence(seq_id=slot, token_ids=[1], num_prompt=1, params=params, seed=slot)
            sampler.add(slot, new)
        wanted = [SampleRow(slot, 1) for slot in range(rows)]
        copies = min(8, bench.copies(rows * vocab * 4))
        logits = [4 * torch.randn(rows, vocab, device=bench.device) for _ in range(copies)]
        return [lambda one=one: sampler.sample_on_device(one, wanted) for one in logits]  # type: ignore[misc]

    for name, params in PARAMS.items():
        for rows in ROWS[bench.device.type]:
            yield Problem(
                case={"rows": rows, "V": vocab, "how": name},
                num_bytes=rows * vocab * 4,
                flops=rows * vocab,
                make=lambda params=params, rows=rows: make(params, rows),  # type: ignore[misc]
                is_recorded=False,
            )
