"""How long steps take, tried out before the first request: on a sequence that has no blocks, so nothing is touched."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence, Row
from nonet.runner.sequences import SequenceTable

__all__ = ["time_step"]

REPEATS = 2
NOBODY = -1  # no sequence has this id


def time_step(
    run: Callable[[Sequence[Row]], torch.Tensor | None], sequences: SequenceTable, num_tokens: int
) -> float:
    """Seconds of `run` on one sequence of one token and drafts: the faster of two.

    Its block table is empty, which means the null block: what is written there nobody reads.
    """
    params = SamplingParams(temperature=0.0)
    sequences.add(NewSequence(seq_id=NOBODY, token_ids=[0], num_prompt=1, params=params, seed=0))
    row = Row(
        seq_id=NOBODY,
        start=0,
        num_tokens=1,
        drafts=(0,) * (num_tokens - 1),
        num_samples=num_tokens,
    )
    try:
        with torch.inference_mode():
            return min(_seconds(run, row) for _ in range(REPEATS))
    finally:
        sequences.remove(NOBODY)


def _seconds(run: Callable[[Sequence[Row]], torch.Tensor | None], row: Row) -> float:
    began = time.perf_counter()
    logits = run([row])
    if logits is not None and logits.device.type != "cpu":
        torch.cuda.synchronize(logits.device)
    return time.perf_counter() - began
