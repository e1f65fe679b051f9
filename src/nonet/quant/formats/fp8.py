"""Weights and activations in 8-bit floats (e4m3), scaled by output, by tensor, or in blocks of 128 x 128.

Idea: values = cast(w / s) with s = max |w| / 448; activations likewise at run time, with one scale a token, or one for
128 of a token's inputs where weights are in blocks. Reference: FP8 formats (arXiv 2209.05433); blocks as in
DeepSeek-V3 (arXiv 2412.19437).
Cost: half the bytes of bfloat16; three bits of mantissa, so more error than int8 where there are no outliers. Good for:
GPUs with FP8 arithmetic. Conflicts: the native CPU kernels; activations=exact makes the weights dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError
from nonet.core.model_spec import ModelSpec
from nonet.quant.formats.base import Form, Role, StoredMatrix
from nonet.quant.formats.matrices import matrices

if TYPE_CHECKING:
    from nonet.kernels.inputs import Inputs
    from nonet.kernels.ops import WeightMatrix

__all__ = ["Float8"]

BLOCK = 128
SCALES = ("channel", "tensor", "block")
ACTIVATIONS = ("dynamic", "exact")


class Float8:
    """8-bit floats for linears; the token table and the output head keep the model's dtype."""

    def form_of(self, spec: ModelSpec) -> Form:
        return "float8"

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `fp8:scale=...,activations=...`."""

        scale: str = "channel"  # one for each output (channel), for the tensor, or for each 128 x 128 (block)
        activations: str = "dynamic"  # dynamic: rounded at run time; exact: not rounded

    def __init__(self, config: Config) -> None:
        for knob, given, known in (
            ("scale", config.scale, SCALES),
            ("activations", config.activations, ACTIVATIONS),
        ):
            if given not in known:
                raise ConfigError(
                    f"weight format 'fp8': {knob} is {given!r}. {did_you_mean(given, list(known))}"
                )
        self._scale = config.scale
        self._inputs: Inputs = "exact"
        if config.activations == "dynamic":
            self._inputs = "group" if config.scale == "block" else "token"

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int:
        """Scales are four bytes and kept for each output."""
        total = 0
        for role, outputs, inputs in matrices(spec):
            scales = -(-inputs // BLOCK) if self._scale == "block" else 1
            each = inputs + 4 * scales if role == "linear" else inputs * float_bytes
            total += outputs * each
        return total

    def convert(self, stored: StoredMatrix, role: Role) -> WeightMatrix:
        weight = stored.dense()
        if role == "embedding":
            return weight
        from nonet.quant.rounding import round_to_float8

        rows, columns = weight.shape
        blocks = {"channel": (1, columns), "tensor": (rows, columns), "block": (BLOCK, BLOCK)}
        return round_to_float8(weight, block=blocks[self._scale], inputs=self._inputs)
