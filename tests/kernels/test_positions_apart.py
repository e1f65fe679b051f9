"""After pruning a token's position is past its place in the cache: rotation goes by the one, all else by the other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.core.model_spec import RopeSpec
from nonet.kernels.ops import AttentionInputs, Ops
from nonet.kernels.reference.ops import ReferenceOps
from nonet.layers.rotary import cos_sin_table
from tests.kernels.gpu_cases import INTERPRETER_WARNINGS
from tests.kernels.native_cases import Case, History, history, poisoned_cache
from tests.kernels.test_entries import MAKERS

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]
CASE = Case(((1, 75), (9, 40), (1, 16)), heads=4, kv_heads=2, dim=32, block_size=32)
AHEAD = 500  # entries that pruning left out before the last queries
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=MAKERS)
def ops(request: pytest.FixtureRequest) -> Ops:
    return MAKERS[request.param]()


def attend(ops: Ops, past: History, ahead: int, *, kv_len_ahead: int = 0) -> torch.Tensor:
    """Fill the cache up to the last queries of each sequence; these have positions `ahead` of their entries."""
    table = cos_sin_table(RopeSpec(1e4), CASE.dim, 1000, 1000).to(ops.device)
    cache = poisoned_cache(ops, CASE)
    firsts = [length - queries for queries, length in CASE.sequences]
    ends = [length for _, length in CASE.sequences]
    _store(ops, past.inputs([(0, first) for first in firsts]), table, cache)
    qkv, inputs = past.inputs(list(zip(firsts, ends, strict=True)))
    moved = dataclasses.replace(
        inputs, positions=inputs.positions + ahead, kv_len=inputs.kv_len - kv_len_ahead
    )
    q = _store(ops, (qkv, moved), table, cache)
    mixed = ops.attention(
        q, CASE.layout, cache, _on(ops, moved), scale=CASE.dim**-0.5, window=None, softcap=None
    )
    return mixed.float().cpu()


def _store(
    ops: Ops, step: tuple[torch.Tensor, AttentionInputs], table: torch.Tensor, cache: object
) -> torch.Tensor:
    qkv, inputs = step
    moved = qkv.to(ops.device, copy=True)
    return ops.rope_store(moved, CASE.layout, table, cache, _on(ops, inputs), None, None, 1e-6)  # type: ignore[arg-type]


def _on(ops: Ops, inputs: AttentionInputs) -> AttentionInputs:
    names = ("positions", "query_start", "kv_len", "block_table", "slots")
    return dataclasses.replace(
        inputs, **{name: getattr(inputs, name).to(ops.device) for name in names}
    )


def test_entries_and_positions_are_kept_apart(ops: Ops) -> None:
    past = history(CASE)
    expected = attend(ReferenceOps(torch.float32, torch.device("cpu")), past, AHEAD)
    limit = TOLERANCE[ops.dtype]
    torch.testing.assert_close(attend(ops, past, AHEAD), expected, atol=limit, rtol=limit)


def test_the_comparison_sees_a_wrong_rotation_and_a_wrong_length(ops: Ops) -> None:
    past = history(CASE)
    expected = attend(ReferenceOps(torch.float32, torch.device("cpu")), past, AHEAD)
    assert (attend(ops, past, 0) - expected).abs().max() > 0.1
    assert (attend(ops, past, AHEAD, kv_len_ahead=1) - expected).abs().max() > 0.1
