"""Llama, Mistral, Qwen2 and Qwen3: one pre-norm block; their differences are fields of ModelSpec.

Mistral adds a sliding window, Qwen2 biases on q, k and v, Qwen3 norms on the heads of q and k.
"""

from __future__ import annotations

import torch

from nonet.core.model_spec import ModelSpec
from nonet.kernels.ops import Ops
from nonet.layers.attention import Attention
from nonet.layers.forward_step import ForwardStep
from nonet.layers.mlp import GatedMLP
from nonet.layers.parameters import Parameters

__all__ = ["LlamaBlock"]


class LlamaBlock:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, spec: ModelSpec, index: int, ops: Ops, parameters: Parameters, cos_sin: torch.Tensor
    ) -> None:
        prefix = f"model.layers.{index}"
        self._ops = ops
        self._eps = spec.norm_eps
        self.input_norm = parameters.norm(f"{prefix}.input_layernorm")
        self._attention = Attention(spec, index, ops, parameters, cos_sin)
        self._mlp_norm = parameters.norm(f"{prefix}.post_attention_layernorm")
        self._mlp = GatedMLP(spec, index, ops, parameters)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        step: ForwardStep,
        next_norm: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        ops, eps = self._ops, self._eps
        x = self._attention(x, step, rows)
        if rows is not None:
            residual = ops.gather_rows(residual, rows)
        x = ops.add_rms_norm(x, residual, self._mlp_norm, eps)
        return ops.add_rms_norm(self._mlp(x), residual, next_norm, eps)
