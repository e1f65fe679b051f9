"""Every operation in plain torch: slow, obvious, and what the other implementations are tested against.

Values between operations have the dtype of the weights; norms, rotation and softmax run in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from nonet.kernels.entries import EntryView, StoredEntries, copy_all, read_all
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.inputs import InputRounding, rounding_of
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import (
    Activation,
    AttentionInputs,
    LayerCache,
    LowRankFactors,
    QKVLayout,
    Recording,
    SamplingKernels,
    StepShape,
    WeightMatrix,
)
from nonet.kernels.sampled_ids import take_sampled

__all__ = ["DenseLinear", "ReferenceOps"]


@dataclass(frozen=True, slots=True)
class DenseLinear:
    """A linear layer's weight [N, K] and bias [N] or None, and what is done to its inputs first."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    rounding: InputRounding | None = None


class ReferenceOps:
    """The specification, on any device torch knows.

    >>> ops = ReferenceOps(torch.float32, torch.device("cpu"))
    >>> ops.linear(torch.ones(1, 2), ops.pack(torch.eye(2))).tolist()
    [[1.0, 1.0]]
    """

    name = "reference"
    needs_all_rows = False
    sampling: SamplingKernels | None = None
    compile_only: Callable[[], AbstractContextManager[None]] | None = None

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device

    @classmethod
    def create(cls, dtype: torch.dtype, device: torch.device, threads: int) -> ReferenceOps:
        """As the catalogue of kernels calls it: `threads` of torch's own pool do the work."""
        torch.set_num_threads(threads)
        return cls(dtype, device)

    def pack(self, weight: WeightMatrix, bias: torch.Tensor | None = None) -> DenseLinear:
        rounding = None
        if isinstance(weight, GroupwiseTensor):
            rounding = rounding_of(weight.inputs, "int8", weight.group)
        elif isinstance(weight, Float8Tensor):
            rounding = rounding_of(weight.inputs, "float8", weight.group)
        dense = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
        moved = dense.to(self.device, self.dtype)
        moved_bias = None if bias is None else bias.to(self.device, self.dtype)
        return DenseLinear(moved, moved_bias, rounding)

    def linear(self, x: torch.Tensor, weight: DenseLinear) -> torch.Tensor:
        if weight.rounding is not None:
            x = weight.rounding.apply(x).to(x.dtype)
        return F.linear(x, weight.weight, weight.bias)

    def lora_inner(
        self, x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> torch.Tensor:
        """[T, P * R], zeros where there is no slot."""
        inner = x.new_zeros(len(x), factors.first.shape[1], dtype=torch.float32)
        for slot, mine in _tokens_of_slots(slots):
            inner[mine] = x[mine].float() @ factors.first[slot - 1].float().T
        return inner

    def lora_add(
        self,
        out: torch.Tensor,
        inner: torch.Tensor,
        factors: LowRankFactors,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        rank = factors.rank
        for slot, mine in _tokens_of_slots(slots):
            second = factors.second[slot - 1].float()
            start = 0
            for part, end in enumerate(factors.ends):
                added = inner[mine, part * rank : (part + 1) * rank] @ second[:, start:end]
                out[mine, start:end] = (out[mine, start:end].float() + added).to(out.dtype)
                start = end
        return out

    def logits(self, x: torch.Tensor, weight: DenseLinear, softcap: float | None) -> torch.Tensor:
        logits = self.linear(x, weight).float()
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def take_sampled(self, token_ids: torch.Tensor, sampled: torch.Tensor) -> None:
        take_sampled(token_ids, sampled)

    def embed(self, token_ids: torch.Tensor, table: DenseLinear, scale: float) -> torch.Tensor:
        rows = table.weight[token_ids.long()]
        return rows if scale == 1.0 else rows * scale

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        return (normed * weight.float()).to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        residual.add_(x)
        return self.rms_norm(residual, weight, eps)

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return act * up

    def rope_store(
        self,
        qkv: torch.Tensor,
        layout: QKVLayout,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        inputs: AttentionInputs,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        heads, kv_heads, dim = layout.num_heads, layout.num_kv_heads, layout.head_dim
        tokens = qkv.shape[0]
        q, k, v = qkv.view(tokens, -1, dim).split([heads, kv_heads, kv_heads], dim=1)
        if q_norm is not None:
            q = self.rms_norm(q, q_norm, eps)
        if k_norm is not None:
            k = self.rms_norm(k, k_norm, eps)
        cos, sin = cos_sin[inputs.positions.long()].unsqueeze(1).chunk(2, dim=-1)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        slots, kept = self.kept_slots(inputs.slots)
        for stored, new in zip(self.stored(cache), (k, v), strict=True):
            _store(stored, cache.format, slots, new if kept is None else new[kept])
        return q.reshape(tokens, heads * dim)

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
        heads, kv_heads, dim = layout.num_heads, layout.num_kv_heads, layout.head_dim
        out = torch.zeros_like(q)
        starts = inputs.query_start.tolist()
        for seq, (first, last) in enumerate(pairwise(starts)):
            if first == last:
                continue
            length = int(inputs.kv_len[seq])
            slots = _slots(inputs.block_table[seq], length, cache.block_size)
            k, v = (
                _without_freed(entries, slots, cache.block_size).repeat_interleave(
                    heads // kv_heads, dim=1
                )
                for entries in self.gathered(cache, slots)
            )
            queries = q[first:last].view(-1, heads, dim).float()
            scores = torch.einsum("qhd,khd->hqk", queries, k) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores.masked_fill_(~_visible(last - first, length, window, q.device), float("-inf"))
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
            out[first:last] = mixed.reshape(last - first, heads * dim).to(q.dtype)
        return out

    def gather_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return x[rows.long()]

    def allocate_cache(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KVFormat | None = None,
    ) -> LayerCache:
        """Keys and values [N, P, K, W], scales [N, P, K]; the types and W of any format are those of its codes."""
        shape = (num_blocks, block_size, num_kv_heads)
        codes = torch.zeros(1, head_dim, dtype=self.dtype, device=self.device)
        scales = torch.empty(0, device=self.device)
        if kv_format is not None:
            codes, scales = kv_format.quantize(codes)
            scales = scales.new_zeros(shape)
        keys = codes.new_zeros((*shape, codes.shape[-1]))
        return LayerCache(
            keys, torch.zeros_like(keys), block_size, kv_format, scales, torch.zeros_like(scales)
        )

    def read_keys(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return read_all([self.stored(cache)[0] for cache in caches], blocks)

    def read_values(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return read_all([self.stored(cache)[1] for cache in caches], blocks)

    def copy_entries(
        self, caches: Sequence[LayerCache], sources: torch.Tensor, targets: torch.Tensor
    ) -> None:
        copy_all([self.stored(cache) for cache in caches], sources, targets)

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        return None

    def close(self) -> None:
        return None

    def kept_slots(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Where entries go (int64), and which rows of the step those are; None for all of them."""
        kept = slots >= 0
        return slots[kept].long(), kept

    def gathered(self, cache: LayerCache, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values float32 [n, K, D] of the entries in `slots` (int64 [n])."""
        keys, values = (stored.read(slots) for stored in self.stored(cache))
        return keys, values

    def stored(self, cache: LayerCache) -> tuple[StoredEntries, StoredEntries]:
        """The keys and the values, as this implementation lays them out."""
        keys, values = EntryView(cache.keys), EntryView(cache.values)
        if cache.format is None:
            return StoredEntries(keys), StoredEntries(values)
        read = cache.format.dequantize
        return (
            StoredEntries(keys, EntryView(cache.key_scales), read),
            StoredEntries(values, EntryView(cache.value_scales), read),
        )


def _tokens_of_slots(slots: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Each slot of the step with the numbers of its tokens."""
    used = [slot for slot in slots.unique().tolist() if slot]
    return [(slot, (slots == slot).nonzero().squeeze(1)) for slot in used]


def _store(
    stored: StoredEntries, kv_format: KVFormat | None, slots: torch.Tensor, new: torch.Tensor
) -> None:
    """Keys or values [n, K, D] to their slots [n]."""
    if kv_format is None or stored.scales is None:
        stored.codes.write(slots, new.to(stored.codes.memory.dtype))
        return
    codes, scales = kv_format.quantize(new)
    stored.codes.write(slots, codes)
    stored.scales.write(slots, scales)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, H, D], cos and sin [T, 1, D / 2]: element i turns with element i + D / 2."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _slots(table: torch.Tensor, length: int, block_size: int) -> torch.Tensor:
    """int64 slots of the first `length` entries of a sequence."""
    entry = torch.arange(length, device=table.device)
    return table[entry // block_size].long() * block_size + entry % block_size


def _without_freed(entries: torch.Tensor, slots: torch.Tensor, block_size: int) -> torch.Tensor:
    """Freed window entries point at the null block; they are masked, but must not bring NaN into 0 * v."""
    return entries.masked_fill((slots < block_size)[:, None, None], 0)


def _visible(
    num_queries: int, length: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Boolean [Q, length]: the last query sees everything, bottom-right aligned."""
    key = torch.arange(length, device=device)
    query = torch.arange(length - num_queries, length, device=device).unsqueeze(1)
    visible = key <= query
    return visible if window is None else visible & (key > query - window)
