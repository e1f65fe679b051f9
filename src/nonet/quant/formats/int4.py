"""Weights in 4-bit integers by round-to-nearest at load, in groups of inputs.

Idea: code = round((w - min) / s) with s = (max - min) / 15 per group; the token table and the output head, where
errors hurt most, have 8 bits. Reference: the groupwise round-to-nearest that GPTQ (arXiv 2210.17323) and AWQ
(arXiv 2306.00978) measure themselves against.
Cost: 4 bits a weight and a scale and minimum per group (5 bits with groups of 32, 4.25 with 128); visible in
quality. With bfloat16 the native kernels round activations to 8 bits by group; activations=exact leaves them alone.
The Triton kernels round no activations. Good for: decode speed and memory. Conflicts: none; with float32, for tests,
the Triton kernels make the codes dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nonet.core.model_spec import ModelSpec
from nonet.quant.formats.base import Form, Role, StoredMatrix
from nonet.quant.formats.integers import at_the_head, check_group, check_inputs
from nonet.quant.formats.matrices import effective_group, groupwise_bytes, matrices

if TYPE_CHECKING:
    from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["Int4"]

EMBEDDING_GROUP = 32


class Int4:
    """4 bits for linears, 8 for the rest."""

    def form_of(self, spec: ModelSpec) -> Form:
        return "groupwise"

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `int4:group=...,symmetric=...,activations=...`."""

        group: int = 32  # inputs that share a scale; 0: all. Its largest divisor of K where it does not divide K
        symmetric: bool = False
        activations: str = "free"  # free, exact, token or group (kernels.inputs)

    def __init__(self, config: Config) -> None:
        check_group("int4", config.group)
        self._config = config
        self._inputs = check_inputs("int4", config.activations)

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int:
        knobs, total = self._config, 0
        for role, outputs, inputs in matrices(spec):
            if role == "linear":
                total += groupwise_bytes(
                    outputs, inputs, bits=4, group=knobs.group, symmetric=knobs.symmetric
                )
            else:
                total += groupwise_bytes(
                    outputs, inputs, bits=8, group=EMBEDDING_GROUP, symmetric=True
                )
        return total

    def convert(self, stored: StoredMatrix, role: Role) -> GroupwiseTensor:
        from nonet.quant.rounding import round_to_integers

        weight, knobs = stored.dense(), self._config
        columns = weight.shape[1]
        if role == "embedding":
            return round_to_integers(
                weight,
                bits=8,
                group=effective_group(columns, EMBEDDING_GROUP),
                symmetric=True,
                inputs=at_the_head(self._inputs),
            )
        return round_to_integers(
            weight,
            bits=4,
            group=effective_group(columns, knobs.group),
            symmetric=knobs.symmetric,
            inputs=self._inputs,
        )
