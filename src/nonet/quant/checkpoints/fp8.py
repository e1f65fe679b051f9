"""FP8 checkpoints: float8_e4m3fn weights with a scale per tensor, per output, or per block of 128 x 128.

Idea: `weight = values * scale`; `weight_scale_inv`, DeepSeek's name, is multiplied too, despite its name.
Reference: DeepSeek-V3 (arXiv 2412.19437) for blocks; AutoFP8 for `weight_scale` and the static `input_scale`.
Cost: with weight format native the values stay as they are, and inputs are rounded with a scale for each token (each
128 of its inputs, in blocks), finer than a static one, which stays readable as `...input_scale`; with dense the product
is made at load. Good for: checkpoints as published. Conflicts: e5m2 and e4m3fnuz weights are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.fields import Fields
from nonet.quant.checkpoints.base import (
    FLOATS,
    StoredTensors,
    load_checked,
    matrix_shape,
    modules_with,
)
from nonet.quant.checkpoints.scaled import ScaledWeight, block_size

__all__ = ["FP8"]

STORED = "F8_E4M3"
SCALES = ("weight_scale_inv", "weight_scale")


class FP8:
    """A `CheckpointFormat`."""

    def __init__(self, tensors: StoredTensors, config: Fields) -> None:
        self._tensors = tensors
        self._block = block_size(config, "weight_block_size")
        self._scales = {
            module: f"{module}.{suffix}"
            for suffix in SCALES
            for module in modules_with(tensors, suffix)
        }
        known = frozenset(tensors.names())
        for module, scale in self._scales.items():
            if f"{module}.weight" not in known:
                raise ModelFileError(f"{scale} has no {module}.weight to scale")
            stored = tensors.dtype(f"{module}.weight")
            if stored != STORED:
                raise UnsupportedModelError(
                    f"{module}.weight is scaled and has dtype {stored}; nonet reads {STORED}"
                )

    def modules(self) -> Mapping[str, tuple[int, int]]:
        shapes: dict[str, tuple[int, int]] = {}
        for module in self._scales:
            shapes[module] = matrix_shape(self._tensors, f"{module}.weight")
        return shapes

    def parts(self, module: str) -> Sequence[str]:
        return [f"{module}.weight", self._scales[module]]

    def read(self, module: str) -> ScaledWeight:
        weight, scale_name = self.parts(module)
        values = self._tensors.load_stored(weight)
        scale = load_checked(self._tensors, scale_name, (*FLOATS, "F8_E8M0"))
        return ScaledWeight.of(scale_name, values, scale, self._block)
