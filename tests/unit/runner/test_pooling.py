"""Means over prompts that come in chunks, side by side, and begin anew after a preemption."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from nonet.core.step import Row
from nonet.runner.pooling import Pooler

SEQUENCES = {1: SimpleNamespace(num_prompt=5), 2: SimpleNamespace(num_prompt=2)}
HIDDEN = torch.arange(40, dtype=torch.float32).reshape(10, 4)


def row(seq_id: int, start: int, num_tokens: int, *, pools: bool = True) -> Row:
    return Row(seq_id=seq_id, start=start, num_tokens=num_tokens, pools=pools)


def means(pooler: Pooler, rows: list[Row], hidden: torch.Tensor) -> dict[int, list[float]]:
    found = pooler.add(rows, hidden, SEQUENCES)  # type: ignore[arg-type]
    return {seq_id: np.frombuffer(data, "<f4").tolist() for seq_id, data in found.items()}


def test_chunks_are_added_up() -> None:
    pooler = Pooler()
    assert means(pooler, [row(1, 0, 2)], HIDDEN) == {}
    rows = [row(7, 3, 1, pools=False), row(1, 2, 3), row(2, 0, 2)]
    found = means(pooler, rows, HIDDEN)
    assert found[1] == (torch.cat([HIDDEN[:2], HIDDEN[1:4]]).sum(0) / 5).tolist()
    assert found[2] == HIDDEN[4:6].mean(0).tolist()
    assert pooler._sums == {}


def test_a_sequence_that_starts_over_forgets_its_sum() -> None:
    pooler = Pooler()
    means(pooler, [row(1, 0, 4)], HIDDEN)
    assert means(pooler, [row(1, 0, 5)], HIDDEN)[1] == HIDDEN[:5].mean(0).tolist()


def test_one_that_is_gone_leaves_nothing() -> None:
    pooler = Pooler()
    means(pooler, [row(1, 0, 4)], HIDDEN)
    pooler.forget(1)
    pooler.forget(9)
    assert pooler._sums == {}
