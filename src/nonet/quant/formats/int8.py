"""Weights in 8-bit integers by round-to-nearest at load, in groups of inputs.

Idea: code = round(w / s) with s = max |w| / 127 over a group of inputs, or over all of an output (group=0).
Reference: the weight-only form of LLM.int8() (arXiv 2208.07339).
Cost: half the bytes of bfloat16; little in quality. With bfloat16 the native kernels round activations to 8 bits too,
by group, which is faster and costs more than the weights do; activations=exact leaves them alone.
The Triton kernels round no activations. Good for: decode, which reads every weight. Conflicts: none; with float32, for
tests, the Triton kernels make the codes dense.
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

__all__ = ["Int8"]


class Int8:
    """8 bits for every matrix, the token table included."""

    def form_of(self, spec: ModelSpec) -> Form:
        return "groupwise"

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `int8:group=...,symmetric=...,activations=...`."""

        group: int = 32  # inputs that share a scale; 0: all
        symmetric: bool = True
        activations: str = "free"  # free, exact, token or group (kernels.inputs)

    def __init__(self, config: Config) -> None:
        check_group("int8", config.group)
        self._config = config
        self._inputs = check_inputs("int8", config.activations)

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int:
        knobs = self._config
        return sum(
            groupwise_bytes(outputs, inputs, bits=8, group=knobs.group, symmetric=knobs.symmetric)
            for _, outputs, inputs in matrices(spec)
        )

    def convert(self, stored: StoredMatrix, role: Role) -> GroupwiseTensor:
        from nonet.quant.rounding import round_to_integers

        weight, knobs = stored.dense(), self._config
        return round_to_integers(
            weight,
            bits=8,
            group=effective_group(weight.shape[1], knobs.group),
            symmetric=knobs.symmetric,
            inputs=self._inputs if role == "linear" else at_the_head(self._inputs),
        )
