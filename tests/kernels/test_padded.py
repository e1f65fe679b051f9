"""Plain torch over padded batches: against the reference, on poisoned memory, and with nothing stored for slot -1."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from nonet.config.compat import refuse_conflicts
from nonet.core.errors import ConfigError
from nonet.kernels.padded.ops import PaddedOps
from nonet.kernels.reference.ops import ReferenceOps
from tests.kernels.native_cases import Case, attend, history, no_rotation, run_step

CASES = [
    Case(((1, 1),)),
    Case(((1, 200), (1, 17), (1, 16), (1, 15))),
    Case(tuple((1 + i % 2, 10 + 37 * i) for i in range(13)), heads=9, kv_heads=3),
    Case(tuple((1, 5 + 31 * i) for i in range(9)), heads=14, kv_heads=2, window=33),
    Case(((3, 3), (17, 40), (1, 129), (128, 128)), heads=9, kv_heads=3),
    Case(((5, 300), (0, 20), (1, 128)), heads=14, kv_heads=2),
    Case(((9, 140), (1, 33)), heads=4, kv_heads=4, dim=80, block_size=32),
    Case(((3, 150), (1, 40)), softcap=20.0),
    Case(((40, 150), (1, 40), (1, 300)), window=17),
    Case(((1, 150), (1, 40)), kv_format="int8"),
    Case(((7, 150), (1, 40)), kv_format="fp8"),
]
CPU = torch.device("cpu")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_reference(case: Case) -> None:
    past = history(case)
    expected = attend(ReferenceOps(torch.float32, CPU), case, past)
    got = attend(PaddedOps(torch.float32, CPU), case, past)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_in_half_precision_too(case: Case) -> None:
    past = history(case)
    expected = attend(ReferenceOps(torch.float32, CPU), case, past)
    halves = dataclasses.replace(past, rows=tuple(row.bfloat16() for row in past.rows))
    got = attend(PaddedOps(torch.bfloat16, CPU), case, halves)
    torch.testing.assert_close(got.float(), expected, atol=3e-2, rtol=3e-2)


def test_padding_rows_touch_no_block_of_a_sequence() -> None:
    """Rows of a graph's padding have slot -1, no entries and no query."""
    case = Case(((1, 20), (1, 5)))
    past = history(case)
    ops = PaddedOps(torch.float32, CPU)
    expected = attend(ops, case, past)
    cache = ops.allocate_cache(case.num_blocks, case.block_size, case.kv_heads, case.dim)
    cos_sin = no_rotation(case)
    before, inputs = past.inputs([(0, 19), (0, 4)])
    ops.rope_store(before.clone(), case.layout, cos_sin, cache, inputs, None, None, 1e-6)
    qkv, inputs = past.inputs([(19, 20), (4, 5)])
    one = torch.zeros(1, dtype=torch.int32)
    padded = dataclasses.replace(
        inputs,
        positions=torch.cat((inputs.positions, one)),
        query_start=torch.cat((inputs.query_start, one + 2)),
        kv_len=torch.cat((inputs.kv_len, one)),
        block_table=torch.cat((inputs.block_table, torch.zeros_like(inputs.block_table[:1]))),
        slots=torch.cat((inputs.slots, one - 1)),
    )
    rows = torch.cat((qkv, torch.full_like(qkv[:1], float("nan"))))
    got = run_step(ops, case, cache, (rows, padded), cos_sin)
    torch.testing.assert_close(got[:2], expected)
    assert cache.keys[1:].isfinite().all()


def test_flash_is_refused_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="Triton kernel, which runs on a GPU only"):
        refuse_conflicts({"kernels": "flash", "device": "cpu"})
