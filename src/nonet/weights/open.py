"""A path to the source of its weights."""

from __future__ import annotations

from pathlib import Path

from nonet.quant.checkpoints.source import QuantizedSource
from nonet.weights.base import WeightSource
from nonet.weights.gguf_source import GGUFSource
from nonet.weights.huggingface_spec import quantization_config
from nonet.weights.safetensors_source import SafetensorsSource

__all__ = ["open_weights"]


def open_weights(path: Path) -> WeightSource:
    """The weights of a Hugging Face directory or a GGUF file; the caller closes the source.

    Raises ModelFileError for a broken file, UnsupportedModelError for formats that nonet cannot read.
    """
    if not path.is_dir():
        return GGUFSource(path)
    config = quantization_config(path)
    files = SafetensorsSource(path)
    return files if config is None else QuantizedSource(files, config)
