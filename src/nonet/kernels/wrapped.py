"""An implementation of the kernels around another one: every operation is handed on, a subclass changes some."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import (
    Activation,
    AttentionInputs,
    LayerCache,
    LowRankFactors,
    LowRankInner,
    Ops,
    PackedLinear,
    Product,
    QKVLayout,
    Recording,
    StepShape,
    WeightMatrix,
)

__all__ = ["WrappedOps"]


class WrappedOps:
    """Implements `kernels.ops.Ops` by `inner`."""

    def __init__(self, inner: Ops) -> None:
        self.inner = inner
        self.name = inner.name
        self.dtype = inner.dtype
        self.device = inner.device
        self.sampling = inner.sampling
        self.compile_only = inner.compile_only

    @property
    def needs_all_rows(self) -> bool:
        return self.inner.needs_all_rows

    def pack(self, weight: WeightMatrix, bias: torch.Tensor | None = None) -> PackedLinear:
        return self.inner.pack(weight, bias)

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> Product:
        return self.inner.linear(x, weight)

    def lora_inner(
        self, x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> LowRankInner:
        return self.inner.lora_inner(x, factors, slots)

    def lora_add(
        self, out: Product, inner: LowRankInner, factors: LowRankFactors, slots: torch.Tensor
    ) -> Product:
        return self.inner.lora_add(out, inner, factors, slots)

    def logits(self, x: torch.Tensor, weight: PackedLinear, softcap: float | None) -> torch.Tensor:
        return self.inner.logits(x, weight, softcap)

    def take_sampled(self, token_ids: torch.Tensor, sampled: torch.Tensor) -> None:
        self.inner.take_sampled(token_ids, sampled)

    def embed(self, token_ids: torch.Tensor, table: PackedLinear, scale: float) -> torch.Tensor:
        return self.inner.embed(token_ids, table, scale)

    def rms_norm(self, x: Product, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self.inner.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: Product, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return self.inner.add_rms_norm(x, residual, weight, eps)

    def gated(self, gate_up: Product, activation: Activation) -> torch.Tensor:
        return self.inner.gated(gate_up, activation)

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
        return self.inner.rope_store(qkv, layout, cos_sin, cache, inputs, q_norm, k_norm, eps)

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
        return self.inner.attention(
            q, layout, cache, inputs, scale=scale, window=window, softcap=softcap
        )

    def gather_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self.inner.gather_rows(x, rows)

    def allocate_cache(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KVFormat | None = None,
    ) -> LayerCache:
        return self.inner.allocate_cache(num_blocks, block_size, num_kv_heads, head_dim, kv_format)

    def read_keys(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return self.inner.read_keys(caches, blocks)

    def read_values(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return self.inner.read_values(caches, blocks)

    def copy_entries(
        self, caches: Sequence[LayerCache], sources: torch.Tensor, targets: torch.Tensor
    ) -> None:
        self.inner.copy_entries(caches, sources, targets)

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        return self.inner.record(forward, largest)

    def close(self) -> None:
        self.inner.close()
