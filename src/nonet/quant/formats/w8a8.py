"""Weights and activations in 8-bit integers: products of integers, scaled by output and by token.

Idea: y[t, n] = s_x[t] * s_w[n] * sum_k q_x[t, k] * q_w[n, k], with s_x = max |x_t| / 127 found at run time and
s_w = max |w_n| / 127 at load; the integer sums are exact. Reference: LLM.int8() (arXiv 2208.07339) without its
outlier columns; SmoothQuant (arXiv 2211.10438) calls it per-token, per-channel.
Cost: half the bytes of bfloat16; a token with outliers loses most. Good for: prefill and large batches on CPUs with
int8 dot products; a GPU has fp8 for it. Conflicts: with a group, the Triton kernels, in whose place kernels auto takes
the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nonet.core.model_spec import ModelSpec
from nonet.quant.formats.base import Form, Role, StoredMatrix
from nonet.quant.formats.integers import check_group
from nonet.quant.formats.matrices import effective_group, groupwise_bytes, matrices

if TYPE_CHECKING:
    from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["W8A8"]


class W8A8:
    """Int8 on both sides in every layer; the token table and the output head are rounded on the weights' side only."""

    def form_of(self, spec: ModelSpec) -> Form:
        is_cut = any(
            effective_group(inputs, self._group) < inputs for _, inputs in spec.linears.values()
        )
        return "integers_by_group" if is_cut else "groupwise"

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `w8a8:group=...`."""

        group: int = 0  # inputs of an output that share a scale; 0: all

    def __init__(self, config: Config) -> None:
        check_group("w8a8", config.group)
        self._group = config.group

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int:
        return sum(
            groupwise_bytes(outputs, inputs, bits=8, group=self._group, symmetric=True)
            for _, outputs, inputs in matrices(spec)
        )

    def convert(self, stored: StoredMatrix, role: Role) -> GroupwiseTensor:
        from nonet.quant.rounding import round_to_integers

        weight = stored.dense()
        return round_to_integers(
            weight,
            bits=8,
            group=effective_group(weight.shape[1], self._group),
            symmetric=True,
            inputs="token" if role == "linear" else "free",
        )
