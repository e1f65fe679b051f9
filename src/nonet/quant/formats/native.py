"""Codes and 8-bit floats kept as the files have them: no error beyond theirs, a quarter to a half of the bytes.

Idea: a GGUF block is already scale * code + minimum, so the kernels multiply it as it is. Reference: the GGUF
container. Cost: 4 or 8 bits a weight and a scale and minimum per group. Good for: decode, which reads every weight.
Conflicts: 8-bit floats, the native CPU kernels; wider floats of the file stay dense.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nonet.core.errors import ConfigError
from nonet.core.gguf import GGUFFile
from nonet.core.model_spec import ModelSpec
from nonet.quant.checkpoints.declared import FLOAT8_BLOCK
from nonet.quant.formats.base import Form, Role, StoredMatrix
from nonet.quant.formats.matrices import matrices

if TYPE_CHECKING:
    from nonet.kernels.ops import WeightMatrix

__all__ = ["Native"]

# Codes plus a 2-byte scale and a 2-byte minimum for each group of 32 weights.
EIGHT_BITS, FOUR_BITS = 1 + 4 / 32, 0.5 + 4 / 32

# Block formats that fit in 4 bits; the others are held in 8, Q6_K in groups of 16.
FOUR_BIT_KINDS = ("Q4_0", "Q4_1", "Q4_K")


class Native:
    """Codes where the file has codes."""

    def form_of(self, spec: ModelSpec) -> Form:
        return "float8" if spec.stores_float8 else "groupwise"

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int:
        if spec.code_bits is not None and path:
            # Published quantised checkpoints leave the embeddings as they were.
            embeddings = spec.vocab_size * spec.hidden_size * (1 if spec.tie_embeddings else 2)
            each = FOUR_BITS if spec.code_bits == 4 else EIGHT_BITS
            return int((spec.num_parameters - embeddings) * each + embeddings * float_bytes)
        if spec.stores_float8 and path:
            return _float8_bytes(spec, float_bytes)
        found = _file_bytes(path, float_bytes) if path.endswith(".gguf") else None
        if found is not None:
            return found
        raise ConfigError(
            f"weight_format is native, but {path or 'a made-up model'!r} holds no block formats, integer codes or "
            "8-bit floats; use another weight_format, such as dense or int8"
        )

    def convert(self, stored: StoredMatrix, role: Role) -> WeightMatrix:
        codes = stored.codes()
        return stored.dense() if codes is None else codes


def _float8_bytes(spec: ModelSpec, float_bytes: int) -> int:
    """A byte for each weight of a linear, and at most a scale for each 128 of an output's."""
    return sum(
        outputs
        * (inputs + 4 * -(-inputs // FLOAT8_BLOCK) if role == "linear" else inputs * float_bytes)
        for role, outputs, inputs in matrices(spec)
    )


def _file_bytes(path: str, float_bytes: int) -> int | None:
    """Matrices of a GGUF file in the codes that the kernels read; None where all are floats."""
    total, has_codes = 0.0, False
    with GGUFFile.open(path) as file:
        for tensor in file.tensors.values():
            if len(tensor.shape) < 2:
                continue
            has_codes |= tensor.kind.startswith("Q")
            if not tensor.kind.startswith("Q"):
                each: float = float_bytes
            elif tensor.kind in FOUR_BIT_KINDS:
                each = FOUR_BITS
            else:
                each = 1 + 4 / 16 if tensor.kind == "Q6_K" else EIGHT_BITS
            total += math.prod(tensor.shape) * each
    return int(total) if has_codes else None
