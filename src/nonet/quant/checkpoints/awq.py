"""AutoAWQ's GEMM layout: eight codes in a word along the outputs, in an order that suits its GPU kernel.

Idea: the search for scales is over once a checkpoint is written; what is left is `scale * (code - zero)` in groups.
Reference: AWQ (arXiv 2306.00978); tensors as AutoAWQ writes them: qweight int32 [K, N/8], qzeros int32 [K/g, N/8],
scales [K/g, N]. The nibble at bits 4i of a word holds column 0, 2, 4, 6, 1, 3, 5, 7 for i from 0 to 7, and zeros are
stored as they are.
Cost: 4 bits a weight, a scale and a zero per group. Good for: checkpoints as published. Conflicts: other layouts of
the same method (gemv, marlin, llm-awq) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from nonet.core.errors import UnsupportedModelError
from nonet.core.fields import Fields
from nonet.quant.checkpoints.affine import AffineWeight, expect, regular_group, unpack_words
from nonet.quant.checkpoints.base import (
    FLOATS,
    WORDS,
    StoredTensors,
    load_checked,
    matrix_shape,
    modules_with,
)

__all__ = ["AWQ"]

BITS = 4
PER_WORD = 32 // BITS
# Column c of eight lies in nibble NIBBLE_OF_COLUMN[c].
NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)


class AWQ:
    """A `CheckpointFormat`."""

    def __init__(self, tensors: StoredTensors, config: Fields) -> None:
        self._tensors = tensors
        self._group = config.integer("group_size", low=-1)
        version = str(config.values.get("version") or "gemm").lower()
        backend = str(config.values.get("backend") or "autoawq").lower()
        if version != "gemm" or backend != "autoawq":
            raise UnsupportedModelError(
                f"{config.where}: AWQ in version {version!r} of {backend!r} cannot be read; 'gemm' of 'autoawq' can"
            )
        if config.integer("bits") != BITS:
            raise UnsupportedModelError(
                f"{config.where}: AWQ with {config.integer('bits')} bits cannot be read; 4 bits can"
            )

    def modules(self) -> Mapping[str, tuple[int, int]]:
        shapes: dict[str, tuple[int, int]] = {}
        for module in modules_with(self._tensors, "qweight"):
            inputs, words = matrix_shape(self._tensors, f"{module}.qweight")
            shapes[module] = (words * PER_WORD, inputs)
        return shapes

    def parts(self, module: str) -> Sequence[str]:
        return [f"{module}.{part}" for part in ("qweight", "qzeros", "scales")]

    def read(self, module: str) -> AffineWeight:
        names = self.parts(module)
        qweight, qzeros = (load_checked(self._tensors, name, WORDS) for name in names[:2])
        scales = load_checked(self._tensors, names[2], FLOATS)
        inputs, words = qweight.shape
        group = inputs if self._group < 1 else self._group
        groups = -(-inputs // group)
        expect(f"{module}.qzeros", tuple(qzeros.shape), (groups, words))
        expect(f"{module}.scales", tuple(scales.shape), (groups, words * PER_WORD))
        group_of = torch.arange(inputs) // group
        return AffineWeight(
            codes=_columns_in_order(qweight).t().contiguous(),
            scale=scales.t(),
            zero=_columns_in_order(qzeros).t().to(torch.int32),
            group_of=group_of,
            group=regular_group(group_of, groups),
            bits=BITS,
        )


def _columns_in_order(words: torch.Tensor) -> torch.Tensor:
    nibbles = unpack_words(words, BITS, dim=1).view(words.shape[0], -1, PER_WORD)
    return nibbles[:, :, list(NIBBLE_OF_COLUMN)].reshape(words.shape[0], -1)
