"""Tables of cosines and sines for rotary position embedding, with the usual stretchings of the context.

Reference: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071). The frequencies agree with Hugging Face's.
"""

from __future__ import annotations

import math

import torch

from nonet.core.errors import UnsupportedModelError
from nonet.core.model_spec import RopeScaling, RopeSpec

__all__ = ["cos_sin_table", "inverse_frequencies"]


def cos_sin_table(
    rope: RopeSpec, head_dim: int, num_positions: int, max_position: int
) -> torch.Tensor:
    """float32 [num_positions, D]: D / 2 cosines, then D / 2 sines. `max_position` is the model's trained context."""
    frequencies, factor = inverse_frequencies(rope, head_dim, max_position)
    angles = torch.arange(num_positions, dtype=torch.float32).unsqueeze(1) * frequencies
    return torch.cat((angles.cos() * factor, angles.sin() * factor), dim=-1)


def inverse_frequencies(
    rope: RopeSpec, head_dim: int, max_position: int
) -> tuple[torch.Tensor, float]:
    """float32 [D / 2] radians per token, and what cosines and sines are multiplied with."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / (rope.theta**exponents)
    scaling = rope.scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(plain, rope.theta, head_dim, scaling, max_position)
    raise UnsupportedModelError(
        f"RoPE scaling {scaling.kind!r} is not known; linear, llama3 and yarn are"
    )


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Long wavelengths are divided by the factor, short ones kept, those between blended."""
    wavelength = 2 * math.pi / plain
    original = scaling.original_max_position
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * plain / scaling.factor + blend * plain


def _yarn(
    plain: torch.Tensor, theta: float, head_dim: int, scaling: RopeScaling, max_position: int
) -> tuple[torch.Tensor, float]:
    original = scaling.original_max_position or max_position

    def dimension(rotations: float) -> float:
        """The (fractional) pair that turns that many times over the original context."""
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), head_dim - 1)
    width = max(high - low, 0.001)  # equal borders would divide by zero
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0.0, 1.0)
    frequencies = plain / scaling.factor * ramp + plain * (1 - ramp)
    factor = scaling.attention_factor
    if factor is None:
        factor = 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
    return frequencies, factor
