"""Reads what a model is, from a Hugging Face directory or a GGUF file, and refuses shapes that cannot be.

Nothing here imports torch or runs code that came with the model: `auto_map` and the like are not looked at.
"""

from __future__ import annotations

from pathlib import Path

from nonet.core.errors import ModelFileError
from nonet.core.gguf import GGUFFile
from nonet.core.model_spec import ModelSpec
from nonet.weights.gguf_spec import gguf_spec
from nonet.weights.huggingface_spec import huggingface_spec

__all__ = ["check_spec", "read_spec"]


def read_spec(path: Path | str) -> ModelSpec:
    """The spec of the model in a directory (config.json) or in a GGUF file. Reads no weights.

    Raises ModelFileError for a broken file, UnsupportedModelError for a sound model that nonet has no code for.
    """
    path = Path(path)
    if path.is_dir():
        spec = huggingface_spec(path)
    else:
        with GGUFFile.open(path) as file:
            spec = gguf_spec(file, str(path))
    check_spec(spec, str(path))
    return spec


# Several times the largest model known; what is above is a broken or hostile file, not a model.
_LARGEST = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_layers": 1 << 10,
    "num_heads": 1 << 10,
    "num_kv_heads": 1 << 10,
    "head_dim": 1 << 10,
    "max_position": 1 << 28,
}


def check_spec(spec: ModelSpec, where: str) -> None:
    """Raise ModelFileError when the numbers do not make a model."""
    for field, largest in _LARGEST.items():
        value = getattr(spec, field)
        if not 1 <= value <= largest:
            raise ModelFileError(
                f"{where}: {field} is {value}; a number from 1 to {largest} is needed"
            )
    if spec.num_heads % spec.num_kv_heads:
        raise ModelFileError(
            f"{where}: {spec.num_heads} query heads cannot share {spec.num_kv_heads} KV heads evenly"
        )
    if spec.head_dim % 2:
        raise ModelFileError(
            f"{where}: head_dim is {spec.head_dim}; rotary embedding needs an even one"
        )
