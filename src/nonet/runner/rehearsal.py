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
COLD_RUNS = (
    2  # on a GPU: kernels are compiled in the first, and the graph is captured in the second
)
NOBODY = -1  # no sequence has this id


def time_step(
    run: Callable[[Sequence[Row]], torch.Tensor | None],
    sequences: SequenceTable,
    num_tokens: int,
    device: torch.device,
) -> float:
    """Seconds of `run` on one sequence of one token and drafts: the faster of two, warm.

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
            for _ in range(0 if device.type == "cpu" else COLD_RUNS):
                run([row])
            return min(_seconds(run, row, device) for _ in range(REPEATS))
    finally:
        sequences.remove(NOBODY)


def _seconds(
    run: Callable[[Sequence[Row]], torch.Tensor | None], row: Row, device: torch.device
) -> float:
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run([row])
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
