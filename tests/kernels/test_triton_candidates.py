"""Candidates give the product's numbers, or there is nothing to compare."""

from __future__ import annotations

import pytest
import torch

from nonet.kernels.ops import AttentionInputs, QKVLayout
from nonet.kv.format import KV_FORMATS
from tests.kernels.gpu_cases import DEVICE, INTERPRETER_WARNINGS

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.ops import TritonOps  # isort: skip  (gpu_cases chooses the interpreter)
from tests.kernels.gpu_candidates import Spread, attend_spread  # isort: skip

pytestmark = [pytest.mark.filterwarnings(text) for text in INTERPRETER_WARNINGS]


@pytest.mark.parametrize("kv_format", [None, "fp8"])
@pytest.mark.parametrize(
    ("lengths", "layout", "block"),
    [
        ([1], QKVLayout(4, 1, 64), 16),
        ([300], QKVLayout(8, 2, 128), 64),
        ([64, 0, 65], QKVLayout(6, 2, 64), 64),
        ([450, 33, 128, 5], QKVLayout(9, 3, 64), 16),
    ],
)
def test_spread_decodes(
    lengths: list[int], layout: QKVLayout, block: int, kv_format: str | None
) -> None:
    """Three splits of tiles of 32: several tiles for a split, splits without one, a sequence without entries."""
    torch.manual_seed(0)
    dtype = torch.float32 if kv_format is None else torch.float16
    ops = TritonOps(dtype, DEVICE)
    seqs, width = len(lengths), -(-max(lengths) // block)
    coded = None if kv_format is None else KV_FORMATS.build(kv_format)
    cache = ops.allocate_cache(seqs * width + 1, block, layout.num_kv_heads, layout.head_dim, coded)
    for memory in (cache.keys, cache.values):
        memory.copy_(torch.randn(memory.shape))
    for scales in (cache.key_scales, cache.value_scales):
        if kv_format is not None:
            scales.copy_(torch.rand(scales.shape) + 0.1)
    table = torch.randperm(seqs * width).int().view(seqs, width) + 1
    inputs = AttentionInputs(
        positions=torch.tensor(lengths, dtype=torch.int32, device=DEVICE) - 1,
        query_start=torch.arange(seqs + 1, dtype=torch.int32, device=DEVICE),
        kv_len=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        block_table=table.to(DEVICE),
        slots=torch.full((seqs,), -1, dtype=torch.int32, device=DEVICE),
        max_query_len=1,
        max_kv_len=max(lengths),
    )
    q = torch.randn(seqs, layout.num_heads * layout.head_dim, device=DEVICE, dtype=dtype)
    scale = layout.head_dim**-0.5
    live = [number for number, length in enumerate(lengths) if length]
    expected = ops.paged_attention(q, layout, cache, inputs, scale=scale, window=None, softcap=None)
    spread = Spread.allocate(seqs * layout.num_kv_heads, layout, DEVICE, splits=3, tile=32)
    for _ in range(2):  # its counters are as it found them
        got = attend_spread(q, layout, cache, inputs, scale, spread)
        torch.testing.assert_close(got[live], expected[live], atol=4e-3, rtol=4e-3)
    assert not spread.scratch.arrivals.any()
