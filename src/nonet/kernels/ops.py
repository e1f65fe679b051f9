"""The front door of the kernels: one typed signature per operation of a forward pass.

An implementation is chosen once, at engine start, and handed to the layers. `reference` is plain torch and is the
executable specification; the others have the same methods and are tested against it.

Shapes: T tokens in the step, S sequences, H query heads, K KV heads, D head dim, M model dim, N outputs of a linear,
P block size, V vocabulary.

The dtype of a value between two operations belongs to the implementation: a caller passes on what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.kv_format import KVFormat

__all__ = [
    "Activation",
    "AttentionInputs",
    "LayerCache",
    "LowRankFactors",
    "LowRankInner",
    "Ops",
    "PackedLinear",
    "Product",
    "QKVLayout",
    "Recording",
    "SamplingKernels",
    "WeightMatrix",
]

Activation = Literal["silu", "gelu_tanh"]

# What a weight format makes of a stored matrix [N, K].
WeightMatrix = torch.Tensor | GroupwiseTensor | Float8Tensor

# What `pack` returns is known only to the implementation that made it.
PackedLinear = Any

# What `linear` makes: a tensor [T, N], or what the operations after it read as one. `rope_store`, `gated`, both norms
# and `lora_add` take it; nothing else may look inside.
Product = Any

# What `lora_inner` makes, for `lora_add` of the same implementation.
LowRankInner = Any


@dataclass(frozen=True, slots=True)
class QKVLayout:
    """How one row of a fused projection splits: H query heads, then K key heads, then K value heads, D wide each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class LayerCache:
    """The KV memory of one layer, in the layout that the implementation asked for (`Ops.allocate_cache`).

    With a format, keys and values are its codes, and the scales hold one number for each entry; without, they are
    numbers and the scales are empty.
    """

    keys: torch.Tensor
    values: torch.Tensor
    block_size: int
    format: KVFormat | None
    key_scales: torch.Tensor
    value_scales: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """What attention must know of one cache group in this step. All int32, on the device.

    positions [T]: logical position of each token. query_start [S + 1]: first token of each sequence. kv_len [S]:
    entries in the cache once this step's tokens are stored. block_table [S, max_blocks]: entries past a sequence's
    blocks are 0, the null block. slots [T]: where each token's K and V go; -1 stores nothing. Entry j of a sequence is
    visible to its query i (0-based among its Q queries) iff j <= kv_len - Q + i, and, with a window w, j > that - w.
    The buffers may be larger than T and S when a recording is made (`Ops.record`).
    """

    positions: torch.Tensor
    query_start: torch.Tensor
    kv_len: torch.Tensor
    block_table: torch.Tensor
    slots: torch.Tensor
    max_query_len: int
    max_kv_len: int


@dataclass(frozen=True, slots=True)
class LowRankFactors:
    """Additions of low rank R to one linear layer, one per slot; slot s, from 1, lies at index s - 1.

    The layer may be several matrices on top of each other: P parts, whose outputs end at `ends`. first [S, P * R, K]: R
    rows for each part. second [S, R, N]: its columns from one end to the next belong to that part and its rows of
    `first`. Both have the weights' dtype; a factor of lower rank is filled up with zeros. ranks [S, P], int32, says how
    many of a part's R rows are not such filler, which need not be read.
    """

    first: torch.Tensor
    second: torch.Tensor
    ends: tuple[int, ...]
    ranks: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        return self.second.shape[1]


@dataclass(frozen=True, slots=True)
class StepShape:
    """How much of the step's buffers is in use."""

    num_tokens: int
    num_seqs: int
    num_rows: int  # rows whose logits are wanted
    max_query_len: int  # tokens of the sequence that brings the most


class Recording(Protocol):
    """A forward pass that runs again without the host: CUDA graphs, or a list of native calls.

    It reads and writes the buffers it was recorded on: the caller fills the inputs, then replays.
    """

    @property
    def num_replays(self) -> int:
        """Steps that were replayed so far; others ran as if nothing were recorded."""
        ...

    def replay(self, shape: StepShape) -> torch.Tensor:
        """Run on the first rows of the buffers; the result [num_rows, V] is overwritten by the next replay."""
        ...

    def record_ahead(self) -> bool:
        """Record one more shape that no step has had yet, on buffers that hold padding; False: no other is left."""
        ...


class SamplingKernels(Protocol):
    """Choosing tokens on the device. Nothing here synchronises with the host; a row's result is its own."""

    def argmax(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [R] (int64) of the largest of float32 values [R, V], the lowest of a tie, and those values [R].

        NaN counts as infinite.
        """
        ...

    def draw(
        self,
        logits: torch.Tensor,
        uniform: torch.Tensor,
        min_p: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
    ) -> torch.Tensor:
        """Ids [R] (int64) drawn from the softmax of logits [R, V] (float32), cut by min-p, then top-k, then top-p.

        uniform [R] (float64) picks by inverse CDF. min_p 0, top_k 0 and top_p 1 keep everything (float32, int32,
        float32 [R]). The cuts are those of `sampling.processors`.
        """
        ...


class Ops(Protocol):
    """Every operation of a forward pass. Nothing here synchronises with the host."""

    name: str
    dtype: torch.dtype  # of the weights and of the KV cache
    device: torch.device
    sampling: SamplingKernels | None  # None: plain torch is as good
    # Within it operations only compile what they would run, many at once, and leave garbage. None: nothing is compiled.
    compile_only: Callable[[], AbstractContextManager[None]] | None

    @property
    def needs_all_rows(self) -> bool:
        """In this step linear layers know a token by its place, so they must be given all tokens."""
        ...

    def pack(self, weight: WeightMatrix, bias: torch.Tensor | None = None) -> PackedLinear:
        """A linear's weight [N, K] (and bias [N]) in the form that `linear`, `embed` and nothing else understands.

        ConfigError for a form that this implementation cannot multiply.
        """
        ...

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> Product:
        """x [T, K] times the weight transposed, plus its bias: [T, N]."""
        ...

    def lora_inner(
        self, x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> LowRankInner:
        """first * x of each token's slot, in float32. x [T, K]; slots int32 [T], 0 for a token that adds nothing.

        Asked for before `linear` of the same x, beside which it may run; x is kept until `lora_add`, which must follow.
        """
        ...

    def lora_add(
        self, out: Product, inner: LowRankInner, factors: LowRankFactors, slots: torch.Tensor
    ) -> Product:
        """Adds to out [T, N], in place, second * inner of each token's slot, float32 inside; returns the sum.

        `out` is what `linear` made of the x, and `inner` what `lora_inner` made of it with these factors and slots.
        """
        ...

    def logits(self, x: torch.Tensor, weight: PackedLinear, softcap: float | None) -> torch.Tensor:
        """x [R, K] to float32 logits [R, N]; `softcap` c gives c * tanh(logits / c)."""
        ...

    def take_sampled(self, token_ids: torch.Tensor, sampled: torch.Tensor) -> None:
        """token_ids int32 [T], in place: -(n + 1) becomes sampled[n] (int64 [R]), or 0 where that is below 0."""
        ...

    def embed(self, token_ids: torch.Tensor, table: PackedLinear, scale: float) -> torch.Tensor:
        """Rows of the table [V, M] at token_ids [T] (int32), times scale: [T, M]."""
        ...

    def rms_norm(self, x: Product, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean(x**2) + eps) * weight over the last dimension, in float32 inside."""
        ...

    def add_rms_norm(
        self, x: Product, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Adds x to `residual` in place, then norms it: returns the normed [T, M]."""
        ...

    def gated(self, gate_up: Product, activation: Activation) -> torch.Tensor:
        """activation(first half) * second half: [T, 2 I] to [T, I]."""
        ...

    def rope_store(
        self,
        qkv: Product,
        layout: QKVLayout,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        inputs: AttentionInputs,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        """Norms (if asked), rotates q and k, writes k and v to the cache; returns rotated q [T, H * D].

        qkv [T, (H + 2 K) * D]; cos_sin float32 [max_position, D]: D / 2 cosines, then D / 2 sines. Rotation pairs
        element i with i + D / 2. May reuse qkv's memory.
        """
        ...

    def attention(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Paged attention of any mix of chunks and decodes: q [T, H * D] to [T, H * D]; query head h reads KV head
        h * K // H."""
        ...

    def gather_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x[rows]: [T, M], int32 [R] to [R, M]."""
        ...

    def allocate_cache(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KVFormat | None = None,
    ) -> LayerCache:
        """Zeroed KV memory of one layer; ConfigError for a format that this implementation does not hold."""
        ...

    def read_keys(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        """Keys [C, K, n * P, D] of whole blocks (int64 [n], on the device) in each of C caches, which are alike.

        Numbers are in the dtype in which they are stored, those of a format dequantised to float32. Keys are as stored,
        that is after rotation. New memory, not a view.
        """
        ...

    def read_values(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        """As `read_keys`, the values."""
        ...

    def copy_entries(
        self, caches: Sequence[LayerCache], sources: torch.Tensor, targets: torch.Tensor
    ) -> None:
        """Entry targets[i] (int64 [n], distinct) of KV head h in cache c becomes what entry sources[c, h, i] holds.

        sources is int64 [C, K, n]; an entry is named by its slot, block_id * P + offset. Entries move as they are
        stored: nothing is rounded again. All sources are read before a target is written.
        """
        ...

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        """Make `forward` replayable for every shape up to `largest`; it must use these operations only.

        `forward(shape)` runs on views of the step's buffers cut to that shape. Returns None where this implementation
        cannot record; nothing has run then. Recording computes nothing useful: outputs and caches may hold anything
        afterwards.
        """
        ...

    def close(self) -> None:
        """Give back threads; no operation may be called afterwards."""
        ...
