"""Model shapes for dummy weights: a config.json in a folder is all that an engine needs to make them.

On the command line a made-up vocabulary comes with it, so that a server runs on it too.

python benchmarks/shapes.py llama-8b DIR && nonet bench kernel linear --model DIR --dummy-weights
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nonet.text.vocabulary import byte_level_alphabet

__all__ = ["SHAPES", "write_shape", "write_tokenizer"]

_LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "rope_theta": 500000.0,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip
SHAPES: dict[str, dict[str, object]] = {
    "tiny": {**_LLAMA, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False},
    "tiny-draft": {**_LLAMA, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
    "0.5b": {**_LLAMA, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
    "qwen3-0.6b": {**_LLAMA, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
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


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A vocabulary of that size for a server to run with: all bytes, then made-up words that no text becomes; and a
    plain chat template."""
    vocab = dict(sorted(byte_level_alphabet().items(), key=lambda item: item[1]))
    vocab |= {f"\u0120w{number}": number for number in range(len(vocab), vocab_size)}
    byte_level = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
    }  # fmt: skip
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": vocab, "merges": [],
    }  # fmt: skip
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    template = "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}"
    config = json.dumps({"chat_template": template})
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


if __name__ == "__main__":
    _, name, target = sys.argv
    print(write_shape(Path(target), name, 1e-3))
    vocab_size = SHAPES[name]["vocab_size"]
    assert isinstance(vocab_size, int)
    write_tokenizer(Path(target), vocab_size)
