"""The gated feed-forward layer: activation(gate) * up, then down."""

from __future__ import annotations

import torch

from nonet.core.model_spec import ModelSpec
from nonet.kernels.ops import Ops, Product
from nonet.layers.parameters import Parameters

__all__ = ["GatedMLP"]


class GatedMLP:
    """SwiGLU or GeGLU (arXiv 2002.05202) with gate and up in one matrix."""

    def __init__(self, spec: ModelSpec, index: int, ops: Ops, parameters: Parameters) -> None:
        prefix = f"model.layers.{index}.mlp"
        self._ops = ops
        self._activation = spec.activation
        self._gate_up = parameters.linear(
            f"{prefix}.gate_proj", f"{prefix}.up_proj", bias=spec.mlp_bias
        )
        self._down = parameters.linear(f"{prefix}.down_proj", bias=spec.mlp_bias)

    def __call__(self, x: torch.Tensor) -> Product:
        """x [T, M], normed, to [T, M]."""
        ops = self._ops
        return ops.linear(ops.gated(ops.linear(x, self._gate_up), self._activation), self._down)
