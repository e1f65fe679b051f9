"""CUDA graphs of decode steps: a padded bucket gives the bits of an eager step, and padding leaves no trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.kernels.ops import AttentionInputs, StepShape
from nonet.layers.forward_step import ForwardStep
from nonet.models.decoder import Decoder
from nonet.models.llama import LlamaBlock
from tests.kernels.gpu_cases import DEVICE

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.ops import TritonOps  # isort: skip  (gpu_cases chooses the interpreter)
from tests.kernels.gpu_bench_steps import DummyParameters  # isort: skip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type != "cuda", reason="no NVIDIA GPU"),
]

SPEC = ModelSpec(
    family="llama",
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    max_position=512,
    norm_eps=1e-5,
    rope=RopeSpec(10000.0),
)
LARGEST = 16
BLOCK = 16
BLOCKS_EACH = 20


class Buffers:
    """Padded step buffers as a runner keeps them: `fill` writes a decode step and harmless rows behind it."""

    def __init__(self, ops: TritonOps) -> None:
        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=DEVICE)

        self.token_ids, self.positions, self.rows = ints(LARGEST), ints(LARGEST), ints(LARGEST)
        self.slots, self.kv_len, self.query_start = ints(LARGEST), ints(LARGEST), ints(LARGEST + 1)
        self.table = ints(LARGEST, BLOCKS_EACH)
        self.table.copy_(torch.arange(1, LARGEST * BLOCKS_EACH + 1).view(LARGEST, BLOCKS_EACH))
        self.caches = tuple(
            ops.allocate_cache(LARGEST * BLOCKS_EACH + 1, BLOCK, 2, 64) for _ in range(3)
        )

    def fill(self, lengths: list[int], seed: int) -> None:
        size = len(lengths)
        kept = torch.arange(LARGEST) < size
        whole = torch.tensor(lengths + [1] * (LARGEST - size))
        place = whole - 1
        slots = self.table.cpu()[torch.arange(LARGEST), place // BLOCK] * BLOCK + place % BLOCK
        generator = torch.Generator().manual_seed(seed)
        self.token_ids.copy_(torch.randint(0, 512, (LARGEST,), generator=generator))
        self.positions.copy_(torch.where(kept, place, 0))
        self.slots.copy_(torch.where(kept, slots, -1))
        self.kv_len.copy_(torch.where(kept, whole, 0))
        self.query_start.copy_(torch.arange(LARGEST + 1).clamp(max=size))
        self.rows.copy_(torch.where(kept, torch.arange(LARGEST), 0))

    def step(self, shape: StepShape) -> ForwardStep:
        inputs = AttentionInputs(
            positions=self.positions[: shape.num_tokens],
            query_start=self.query_start[: shape.num_seqs + 1],
            kv_len=self.kv_len[: shape.num_seqs],
            block_table=self.table[: shape.num_seqs],
            slots=self.slots[: shape.num_tokens],
            max_query_len=shape.num_tokens,
            max_kv_len=BLOCKS_EACH * BLOCK,
        )
        return ForwardStep(
            self.token_ids[: shape.num_tokens],
            self.rows[: shape.num_rows],
            (inputs,) * 3,
            self.caches,
        )


@pytest.fixture(params=[False, True], ids=["bf16", "fp8"])
def setup(request: pytest.FixtureRequest) -> tuple[TritonOps, Buffers, Callable]:
    ops = TritonOps(torch.bfloat16, DEVICE)
    parameters = DummyParameters(ops, SPEC, request.param)
    model = Decoder(SPEC, ops, parameters, LlamaBlock, 512)
    buffers = Buffers(ops)
    for cache in buffers.caches:
        cache.keys.normal_()
        cache.values.normal_()
    return ops, buffers, lambda shape: model.forward(buffers.step(shape))


@torch.inference_mode()
def test_graphs_equal_eager_steps(setup: tuple[TritonOps, Buffers, Callable]) -> None:
    ops, buffers, forward = setup
    recording = ops.record(forward, StepShape(LARGEST, LARGEST, LARGEST))
    assert recording is not None
    for turn, size in enumerate([1, 5, 5, 3, 16, 6, 7, 5, 16, 1]):
        buffers.fill([(37 * turn + 61 * seq) % 300 + 1 for seq in range(size)], turn)
        got = recording.replay(StepShape(size, size, size)).clone()
        assert got.shape == (size, 512)
        assert torch.isfinite(got).all()
        expected = forward(StepShape(size, size, size))
        # cuBLAS may choose another kernel for another number of rows.
        torch.testing.assert_close(got, expected, atol=3e-2, rtol=3e-2)


@torch.inference_mode()
def test_padding_rows_write_nothing(setup: tuple[TritonOps, Buffers, Callable]) -> None:
    ops, buffers, forward = setup
    recording = ops.record(forward, StepShape(LARGEST, LARGEST, LARGEST))
    assert recording is not None
    before = [dataclasses.replace(one, keys=one.keys.clone()) for one in buffers.caches]
    for turn in range(3):
        buffers.fill([7, 7, 7, 7, 7], turn)
        recording.replay(StepShape(5, 5, 5))
    for cache, old in zip(buffers.caches, before, strict=True):
        changed = (cache.keys != old.keys).any(dim=(1, 3)).nonzero()
        expected = {(1 + seq * BLOCKS_EACH, 6) for seq in range(5)}
        assert {(int(block), int(entry)) for block, entry in changed} == expected
