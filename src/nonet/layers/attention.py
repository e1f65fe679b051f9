"""Self-attention of one layer: fused projection, rotation and cache write, paged attention, output projection."""

from __future__ import annotations

import torch

from nonet.core.model_spec import ModelSpec
from nonet.kernels.ops import Ops, Product, QKVLayout
from nonet.layers.forward_step import ForwardStep
from nonet.layers.parameters import Parameters

__all__ = ["Attention"]


class Attention:
    """Multi-head attention with grouped KV heads, optional q/k norms and an optional sliding window.

    `cos_sin` is the layer's rotary table (`layers.rotary`).
    """

    def __init__(
        self, spec: ModelSpec, index: int, ops: Ops, parameters: Parameters, cos_sin: torch.Tensor
    ) -> None:
        prefix = f"model.layers.{index}.self_attn"
        self._ops = ops
        self._index = index
        self._spec = spec
        self._window = spec.windows[index]
        self._layout = QKVLayout(spec.num_heads, spec.num_kv_heads, spec.head_dim)
        self._cos_sin = cos_sin
        names = [f"{prefix}.{part}_proj" for part in "qkv"]
        self._qkv = parameters.linear(*names, bias=spec.qkv_bias)
        self._out = parameters.linear(f"{prefix}.o_proj", bias=spec.output_bias)
        self._q_norm = parameters.norm(f"{prefix}.q_norm") if spec.qk_norm else None
        self._k_norm = parameters.norm(f"{prefix}.k_norm") if spec.qk_norm else None

    def __call__(
        self, x: torch.Tensor, step: ForwardStep, rows: torch.Tensor | None = None
    ) -> Product:
        """x [T, M], normed, to [T, M], or to [R, M] of `rows`; writes this step's keys and values to the cache."""
        ops, spec = self._ops, self._spec
        cache, inputs = step.caches[self._index], step.inputs[self._index]
        q = ops.rope_store(
            ops.linear(x, self._qkv),
            self._layout,
            self._cos_sin,
            cache,
            inputs,
            self._q_norm,
            self._k_norm,
            spec.norm_eps,
        )
        if step.on_queries is not None:
            step.on_queries(self._index, q)
        mixed = ops.attention(
            q,
            self._layout,
            cache,
            inputs,
            scale=spec.scale,
            window=self._window,
            softcap=spec.attention_softcap,
        )
        if rows is not None:
            mixed = ops.gather_rows(mixed, rows)
        return ops.linear(mixed, self._out)
