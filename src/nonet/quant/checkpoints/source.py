"""A quantised checkpoint shown as ordinary tensors: `q_proj.qweight` and its company become `q_proj.weight`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nonet.core.errors import ModelFileError
from nonet.core.fields import Fields
from nonet.quant.checkpoints import CHECKPOINT_FORMATS
from nonet.quant.checkpoints.base import CheckpointFormat, Codes, StoredTensors

__all__ = ["QuantizedSource"]


class QuantizedSource:
    """A `WeightSource` over another one. Modules that were not converted pass through.

    >>> source = QuantizedSource(files, config)  # doctest: +SKIP
    >>> source.load("model.layers.0.mlp.up_proj.weight").dtype  # doctest: +SKIP
    torch.float16
    """

    def __init__(self, tensors: StoredTensors, config: Fields) -> None:
        """`config` is the quantization_config of a method that `CHECKPOINT_FORMATS` holds."""
        method = config.text("quant_method")
        self.format = f"safetensors, {method}"
        self._tensors = tensors
        self._layout: CheckpointFormat = CHECKPOINT_FORMATS.load(method)(tensors, config)
        shapes = self._layout.modules()
        if not shapes:
            raise ModelFileError(
                f"{config.where} says {method}, but no tensor is stored in that layout"
            )
        self._shapes = {f"{module}.weight": shape for module, shape in shapes.items()}
        hidden = {part for module in shapes for part in self._layout.parts(module)}
        kept = [name for name in tensors.names() if name not in hidden | self._shapes.keys()]
        self._names = [*self._shapes, *kept]

    def names(self) -> Sequence[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name) or self._tensors.shape(name)

    def load(self, name: str) -> torch.Tensor:
        if name not in self._shapes:
            return self._tensors.load(name)
        return self._layout.read(name.removesuffix(".weight")).dense()

    def load_codes(self, name: str) -> Codes | None:
        if name not in self._shapes:
            return self._tensors.load_codes(name)
        return self._layout.read(name.removesuffix(".weight")).as_codes()

    def close(self) -> None:
        self._tensors.close()
