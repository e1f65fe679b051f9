"""Gemma 3: norms on both sides of attention and MLP, heads of q and k normed, five sliding layers to one full.

Reference: Gemma 3 technical report (arXiv 2503.19786).
"""

from __future__ import annotations

import torch

from nonet.core.model_spec import ModelSpec
from nonet.kernels.ops import Ops
from nonet.layers.attention import Attention
from nonet.layers.forward_step import ForwardStep
from nonet.layers.mlp import GatedMLP
from nonet.layers.parameters import Parameters

__all__ = ["GemmaBlock"]


class GemmaBlock:
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(
        self, spec: ModelSpec, index: int, ops: Ops, parameters: Parameters, cos_sin: torch.Tensor
    ) -> None:
        prefix = f"model.layers.{index}"
        self._ops = ops
        self._eps = spec.norm_eps
        self.input_norm = parameters.norm(f"{prefix}.input_layernorm")
        self._attention = Attention(spec, index, ops, parameters, cos_sin)
        self._after_attention = parameters.norm(f"{prefix}.post_attention_layernorm")
        self._mlp_norm = parameters.norm(f"{prefix}.pre_feedforward_layernorm")
        self._mlp = GatedMLP(spec, index, ops, parameters)
        self._after_mlp = parameters.norm(f"{prefix}.post_feedforward_layernorm")

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        step: ForwardStep,
        next_norm: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        ops, eps = self._ops, self._eps
        x = ops.rms_norm(self._attention(x, step, rows), self._after_attention, eps)
        if rows is not None:
            residual = ops.gather_rows(residual, rows)
        x = ops.add_rms_norm(x, residual, self._mlp_norm, eps)
        x = ops.rms_norm(self._mlp(x), self._after_mlp, eps)
        return ops.add_rms_norm(x, residual, next_norm, eps)
