"""Weights in the layouts that the native kernels stream."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from nonet.kernels.native.library import DenseWeight
from nonet.kernels.native.memory import HugePages

__all__ = ["NativeWeight", "pack_dense"]

_PANEL = 16
_ROW_UNITS = 304  # kRowUnits of csrc/linear_dense.cpp
_CHUNK_ROWS = 64  # kMaxChunkRows of csrc/linear_dense.cpp
_OWN_ROWS = 4  # kOwnRows of csrc/linear_dense.cpp


@dataclass(frozen=True, slots=True)
class NativeWeight:
    """A packed weight [N, K]: what the C side reads, and the tensors that it points into."""

    num_outputs: int
    num_inputs: int
    kernel: str  # "dense" | "groupwise": suffix of the operations that read it
    struct: ctypes.Structure
    tensors: tuple[torch.Tensor, ...]
    scratch_bytes: int  # that each thread needs to multiply by it
    row_bytes: int  # of the scratch that all threads share, for each row multiplied

    @property
    def address(self) -> int:
        return ctypes.addressof(self.struct)


def pack_dense(
    weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, pages: HugePages
) -> NativeWeight:
    """[N, K] to panels of 16 outputs, [ceil(N / 16)][K / per_unit][16][per_unit] (csrc/linear.h)."""
    outputs, inputs = weight.shape
    per_unit = 2 if dtype == torch.bfloat16 else 1
    panels, steps = -(-outputs // _PANEL), -(-inputs // per_unit)
    units = pages.allocate((panels, steps, _PANEL, per_unit), dtype)
    whole = outputs // _PANEL
    source = weight.to(dtype)
    if inputs % per_unit:
        source = torch.nn.functional.pad(source, (0, steps * per_unit - inputs))
    source = source.view(outputs, steps, per_unit)
    units[:whole] = source[: whole * _PANEL].view(whole, _PANEL, steps, per_unit).transpose(1, 2)
    if whole < panels:
        rest = source[whole * _PANEL :]
        units[whole, :, : len(rest)] = rest.transpose(0, 1)
    padded_bias = pages.allocate((panels * _PANEL,), torch.float32)
    if bias is not None:
        padded_bias[:outputs] = bias.float()
    row_bytes = -(-steps // _ROW_UNITS) * _ROW_UNITS * 4
    struct = DenseWeight(
        units=units.data_ptr(),
        bias=padded_bias.data_ptr(),
        columns=outputs,
        depth=inputs,
        steps=steps,
        element=1 if dtype == torch.bfloat16 else 0,
        scratch_bytes=_OWN_ROWS * row_bytes + _CHUNK_ROWS * 3 * _PANEL * 4,
    )
    return NativeWeight(
        outputs, inputs, "dense", struct, (units, padded_bias), struct.scratch_bytes, row_bytes
    )
