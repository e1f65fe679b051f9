"""Whole distributions over the tokens of given texts, from the engine as it is configured.

For measurements in the engine's own process; the server has no way to ask for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from nonet.core.errors import NonetError
from nonet.core.given_text import GivenText
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.engine import Engine

__all__ = ["GivenText", "Logits", "distributions"]

Logits = npt.NDArray[np.float32]  # [targets, V]

# Bytes of logits that may be held for texts that run together.
HELD_BYTES = 512 << 20


def distributions(engine: Engine, texts: Iterable[GivenText]) -> Iterator[Logits]:
    """Row i holds the logits for `targets[i]`, before anything shapes them. The engine must be idle."""
    batch: list[GivenText] = []
    most = HELD_BYTES // (4 * engine.info.vocab_size)
    for text in texts:
        if batch and sum(len(one.targets) for one in [*batch, text]) > most:
            yield from _run(engine, batch)
            batch = []
        batch.append(text)
    if batch:
        yield from _run(engine, batch)


class _Collector:
    """A tap that keeps the rows of each sequence; a position that comes again replaces what was there."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[int, Logits]] = {}

    def __call__(self, seq_id: int, position: int, logits: torch.Tensor) -> None:
        copied = logits.detach().float().to("cpu", copy=True).numpy()
        mine = self.rows.setdefault(seq_id, {})
        for number, row in enumerate(copied):
            mine[position + number] = row


def _run(engine: Engine, texts: list[GivenText]) -> Iterator[Logits]:
    runner, tap = engine.parts.executor.runner, _Collector()
    assert runner.tap is None, "two measurements of one engine at a time"
    runner.tap = tap
    try:
        _force(engine, texts)
    finally:
        runner.tap = None
    # Sequences are numbered as they come, and each text is one.
    for text, seq_id in zip(texts, sorted(tap.rows), strict=True):
        rows = tap.rows.pop(seq_id)
        first = len(text.prompt_ids) if text.output_ids else 1
        yield np.stack([rows[first + number] for number in range(len(text.targets))])


def _force(engine: Engine, texts: list[GivenText]) -> None:
    for number, text in enumerate(texts):
        params = SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            max_tokens=max(1, len(text.output_ids)),
            forced_ids=text.output_ids or None,
            prompt_logprobs=None if text.output_ids else 0,
        )
        engine.add(Request(request_id=f"given-{number}", prompt_ids=text.prompt_ids, params=params))
    while engine.has_work:
        for delta in engine.step():
            if delta.error is not None:
                raise NonetError(f"text {delta.request_id} could not be measured: {delta.error}")
