"""Model shapes for dummy weights: a config.json in a folder is all that an engine needs to make them.

python benchmarks/shapes.py llama-8b DIR && nonet bench kernel linear --model DIR --dummy-weights
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

__all__ = ["SHAPES", "write_shape"]

_LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES: dict[str, dict[str, object]] = {
    "tiny": {**_LLAMA, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False},
    "llama-1b": {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "llama-8b": {**_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
    "llama-70b": {**_LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                  "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
}  # fmt: skip


def write_shape(folder: Path, shape: str, initializer_range: float = 0.02) -> str:
    """Write the shape's config.json; returns the folder as the engine's `model`. Weights are that wide."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**SHAPES[shape], "initializer_range": initializer_range}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return str(folder)


if __name__ == "__main__":
    print(write_shape(Path(sys.argv[2]), sys.argv[1], 1e-3))
