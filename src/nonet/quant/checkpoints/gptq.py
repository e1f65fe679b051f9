"""GPTQ checkpoints, versions 1 and 2: codes packed along the inputs, zeros along the outputs, groups by table.

Idea: `g_idx[k]` names the group of input k. Without act-order it is k // g and drops out; with act-order groups are
scattered, and the matrix is dequantised at load (exact, at the cost of a dense matrix's memory).
Reference: GPTQ (arXiv 2210.17323); tensors as AutoGPTQ and GPTQModel write them: qweight int32 [K*b/32, N], low bits
first; qzeros int32 [G, N*b/32]; scales [G, N]; g_idx int32 [K]. Version 1 stores every zero less one.
Cost: 4 or 8 bits a weight, a scale and a zero per group. Good for: checkpoints as published. Conflicts: 2 and 3 bits
and layouts packed for one GPU kernel (marlin, bitblas) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.fields import Fields
from nonet.quant.checkpoints.affine import (
    AffineWeight,
    check_bits,
    expect,
    regular_group,
    unpack_words,
)
from nonet.quant.checkpoints.base import (
    FLOATS,
    WORDS,
    StoredTensors,
    load_checked,
    matrix_shape,
    modules_with,
)

__all__ = ["GPTQ"]

VERSIONS = ("gptq", "gptq_v2")
# One in every field of a word. Version 1 was made by subtracting this word as a whole, so a zero of 0 borrows from
# its neighbour; adding it as a whole gives every zero back.
ONES = {4: 0x11111111, 8: 0x01010101}


class GPTQ:
    """A `CheckpointFormat`."""

    def __init__(self, tensors: StoredTensors, config: Fields) -> None:
        # GPTQModel writes both names; "format" is the one that it means to keep.
        names = ("checkpoint_format", "format")
        version = next((config.values[n] for n in names if config.values.get(n)), "gptq")
        if config.boolean("is_marlin_format"):
            version = "marlin"
        if version not in VERSIONS:
            raise UnsupportedModelError(
                f"{config.where}: GPTQ in the layout {version!r} cannot be read; {', '.join(VERSIONS)} can"
            )
        if config.table("dynamic").values:
            raise UnsupportedModelError(
                f"{config.where}: GPTQ with other options for some modules (dynamic) cannot be read"
            )
        self._bits = config.integer("bits")
        check_bits(self._bits, config.where)
        self._group = config.integer("group_size", low=-1)
        self._zeros_less_one = version == "gptq"
        self._tensors = tensors
        self._known = frozenset(tensors.names())

    def modules(self) -> Mapping[str, tuple[int, int]]:
        shapes: dict[str, tuple[int, int]] = {}
        for module in modules_with(self._tensors, "qweight"):
            words, outputs = matrix_shape(self._tensors, f"{module}.qweight")
            shapes[module] = (outputs, words * 32 // self._bits)
        return shapes

    def parts(self, module: str) -> Sequence[str]:
        return [f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")]

    def read(self, module: str) -> AffineWeight:
        names = self.parts(module)
        qweight, qzeros = (load_checked(self._tensors, name, WORDS) for name in names[:2])
        scales = load_checked(self._tensors, names[2], FLOATS)
        codes = unpack_words(qweight, self._bits, dim=0)
        inputs, outputs = codes.shape
        groups = -(-inputs // (inputs if self._group < 1 else self._group))
        expect(names[1], tuple(qzeros.shape), (groups, outputs * self._bits // 32))
        expect(names[2], tuple(scales.shape), (groups, outputs))
        group_of = self._group_of(names[3], inputs, groups)
        return AffineWeight(
            codes=codes.t().contiguous(),
            scale=scales.t(),
            zero=self._zeros(qzeros).t(),
            group_of=group_of,
            group=regular_group(group_of, groups),
            bits=self._bits,
        )

    def _zeros(self, words: torch.Tensor) -> torch.Tensor:
        if self._zeros_less_one:
            words = words + ONES[self._bits]
        return unpack_words(words, self._bits, dim=1).to(torch.int32)

    def _group_of(self, name: str, inputs: int, groups: int) -> torch.Tensor:
        if name not in self._known:
            return torch.arange(inputs) // (inputs if self._group < 1 else self._group)
        group_of = load_checked(self._tensors, name, WORDS).long()
        expect(name, tuple(group_of.shape), (inputs,))
        if not 0 <= int(group_of.min()) <= int(group_of.max()) < groups:
            raise ModelFileError(f"{name} names groups beyond the {groups} that have a scale")
        return group_of
