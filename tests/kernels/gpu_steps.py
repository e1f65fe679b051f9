"""A small model and padded step buffers for the tests of whole steps on the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch

from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.kernels.ops import AttentionInputs, StepShape
from nonet.layers.forward_step import ForwardStep
from nonet.models.decoder import Decoder
from nonet.models.llama import LlamaBlock
from tests.kernels.gpu_cases import DEVICE

from nonet.kernels.triton.ops import TritonOps  # isort: skip  (gpu_cases chooses the interpreter)
from tests.kernels.gpu_bench_steps import DummyParameters  # isort: skip

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
LARGEST = StepShape(num_tokens=256, num_seqs=16, num_rows=40, max_query_len=256)
BLOCK = 16
BLOCKS_EACH = 20

Spans = list[
    tuple[int, int]
]  # of each sequence: tokens in this step, entries in the cache afterwards


class Buffers:
    """Padded step buffers as a runner keeps them: `fill` writes a step and harmless rows behind it."""

    def __init__(self, ops: TritonOps, spec: ModelSpec) -> None:
        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=DEVICE)

        tokens, seqs = LARGEST.num_tokens, LARGEST.num_seqs
        self.token_ids, self.positions, self.slots = ints(tokens), ints(tokens), ints(tokens)
        self.rows, self.kv_len, self.query_start = (
            ints(LARGEST.num_rows),
            ints(seqs),
            ints(seqs + 1),
        )
        self.table = ints(seqs, BLOCKS_EACH)
        self.table.copy_(torch.arange(1, seqs * BLOCKS_EACH + 1).view(seqs, BLOCKS_EACH))
        self.caches = tuple(
            ops.allocate_cache(seqs * BLOCKS_EACH + 1, BLOCK, spec.num_kv_heads, spec.head_dim)
            for _ in range(3)
        )

    def fill(self, spans: Spans, seed: int, num_rows: int | None = None) -> StepShape:
        """The last token of each sequence is wanted, or, of as many as `num_rows` says, the last ones of the step."""
        counts = torch.tensor([count for count, _ in spans], dtype=torch.long)
        lengths = torch.tensor([length for _, length in spans], dtype=torch.long)
        ends = counts.cumsum(0)
        total = int(counts.sum())
        owner = torch.arange(len(spans)).repeat_interleave(counts)
        place = (lengths - ends)[owner] + torch.arange(total)
        slots = self.table.cpu()[owner, place // BLOCK] * BLOCK + place % BLOCK
        generator = torch.Generator().manual_seed(seed)
        wanted = ends - 1 if num_rows is None else torch.arange(total - num_rows, total)
        self._put(self.token_ids, torch.randint(0, 512, (total,), generator=generator), 0)
        self._put(self.positions, place, 0)
        self._put(self.slots, slots, -1)
        self._put(self.kv_len, lengths, 0)
        self._put(self.query_start, torch.cat((torch.zeros(1), ends)), total)
        self._put(self.rows, wanted, 0)
        return StepShape(
            total, len(spans), len(wanted), max([count for count, _ in spans], default=0)
        )

    @staticmethod
    def _put(into: torch.Tensor, values: torch.Tensor, padding: int) -> None:
        into.fill_(padding)
        into[: len(values)] = values.int().to(DEVICE)

    def step(self, shape: StepShape) -> ForwardStep:
        inputs = AttentionInputs(
            positions=self.positions[: shape.num_tokens],
            query_start=self.query_start[: shape.num_seqs + 1],
            kv_len=self.kv_len[: shape.num_seqs],
            block_table=self.table[: shape.num_seqs],
            slots=self.slots[: shape.num_tokens],
            max_query_len=shape.max_query_len,
            max_kv_len=BLOCKS_EACH * BLOCK,
        )
        return ForwardStep(
            self.token_ids[: shape.num_tokens],
            self.rows[: shape.num_rows],
            (inputs,) * 3,
            self.caches,
        )


Setup = tuple[TritonOps, Buffers, Callable[[StepShape], torch.Tensor]]


def made(dtype: torch.dtype, float8: bool, spec: ModelSpec = SPEC) -> Setup:
    ops = TritonOps(dtype, DEVICE)
    model = Decoder(spec, ops, DummyParameters(ops, spec, float8), LlamaBlock, 512)
    buffers = Buffers(ops, spec)
    for cache in buffers.caches:
        cache.keys.normal_()
        cache.values.normal_()
    return ops, buffers, lambda shape: model.forward(buffers.step(shape))
