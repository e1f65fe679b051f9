"""From stored tensors to what layers hold: checks shapes, stacks fused projections, converts, packs."""

from __future__ import annotations

from dataclasses import replace

import torch

from nonet.core.errors import ModelFileError
from nonet.core.model_spec import ModelSpec
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.ops import Ops, PackedLinear, WeightMatrix
from nonet.quant.formats.base import Role, StoredMatrix, WeightFormat
from nonet.weights.base import WeightSource

__all__ = ["LoadedParameters"]


class LoadedParameters:
    """The parameters of one checkpoint for one kernel implementation (see `layers.parameters.Parameters`).

    Tensors go to the device as they are stored and are rounded there.
    """

    def __init__(
        self, source: WeightSource, spec: ModelSpec, ops: Ops, weight_format: WeightFormat
    ) -> None:
        self._source = source
        self._spec = spec
        self._ops = ops
        self._format = weight_format
        self._known = frozenset(source.names())

    def linear(self, *names: str, bias: bool = False) -> PackedLinear:
        role: Role = "embedding" if names == ("lm_head",) else "linear"
        weight = _stack([self._matrix(name, role) for name in names])
        if not bias:
            return self._ops.pack(weight)
        biases = [self._tensor(f"{name}.bias") for name in names]
        return self._ops.pack(weight, torch.cat([part.float() for part in biases]))

    def norm(self, name: str) -> torch.Tensor:
        weight = self._tensor(f"{name}.weight").float()
        offset = 1.0 if self._spec.norm_offset else 0.0
        return (weight + offset).to(self._ops.device)

    def embedding(self, name: str) -> PackedLinear:
        weight = self._matrix(name, "embedding")
        if tuple(weight.shape) != (self._spec.vocab_size, self._spec.hidden_size):
            raise ModelFileError(
                f"{name}.weight has shape {tuple(weight.shape)}; the model's configuration says "
                f"({self._spec.vocab_size}, {self._spec.hidden_size})"
            )
        return self._ops.pack(weight)

    def _matrix(self, name: str, role: Role) -> WeightMatrix:
        full = f"{name}.weight"
        self._require(full)
        shape = self._source.shape(full)
        if len(shape) != 2:
            raise ModelFileError(f"{full} has shape {shape}; a matrix is needed")
        stored = StoredMatrix(
            dense=lambda: self._source.load(full).to(self._ops.device),
            codes=lambda: self._codes(full),
        )
        return self._format.convert(stored, role)

    def _codes(self, full: str) -> GroupwiseTensor | Float8Tensor | None:
        codes = self._source.load_codes(full)
        if isinstance(codes, Float8Tensor):
            values, scale = (part.to(self._ops.device) for part in (codes.values, codes.scale))
            return replace(codes, values=values, scale=scale)
        return None if codes is None else codes.to(self._ops.device)

    def _tensor(self, full: str) -> torch.Tensor:
        self._require(full)
        return self._source.load(full)

    def _require(self, full: str) -> None:
        if full not in self._known:
            raise ModelFileError(
                f"the model file has no tensor {full!r}, which a {self._spec.family} model of "
                f"{self._spec.num_layers} layers needs; it holds {len(self._known)} tensors"
            )


def _stack(parts: list[WeightMatrix]) -> WeightMatrix:
    """Matrices of equal width on top of each other; codes of different formats are brought to the finest one."""
    widths = {part.shape[1] for part in parts}
    if len(widths) != 1:
        raise ModelFileError(
            f"projections that belong together have {sorted(widths)} inputs; one number is needed"
        )
    if len(parts) == 1:
        return parts[0]
    codes = [part for part in parts if isinstance(part, GroupwiseTensor)]
    if len(codes) == len(parts):
        return _stack_codes(codes)
    floats = [part for part in parts if isinstance(part, Float8Tensor)]
    if len(floats) == len(parts) and len({(part.group, part.inputs) for part in floats}) == 1:
        return _stack_floats(floats)
    dense = [part if isinstance(part, torch.Tensor) else part.dequantize() for part in parts]
    return torch.cat(dense if len({p.dtype for p in dense}) == 1 else [p.float() for p in dense])


def _stack_codes(parts: list[GroupwiseTensor]) -> GroupwiseTensor:
    group = min(part.group for part in parts)
    if any(part.group % group for part in parts):
        sizes = sorted({part.group for part in parts})
        raise ModelFileError(f"groups of {sizes} inputs cannot be stacked")
    refined = [part.in_groups_of(group) for part in parts]
    return GroupwiseTensor(
        torch.cat([part.codes for part in refined]),
        torch.cat([part.scale for part in refined]),
        torch.cat([part.minimum for part in refined]),
        group,
        max(part.bits for part in refined),
        parts[0].inputs,
    )


def _stack_floats(parts: list[Float8Tensor]) -> Float8Tensor:
    """Every part keeps its own scales."""
    return Float8Tensor(
        torch.cat([part.values for part in parts]),
        torch.cat([part.scale for part in parts]),
        parts[0].group,
        parts[0].inputs,
    )
