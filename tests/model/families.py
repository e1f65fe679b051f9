"""Tiny random checkpoints of every family, written by Hugging Face transformers itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

__all__ = ["CONFIGS", "save", "save_words"]

SIZES = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(**changes: object) -> PreTrainedConfig:
    return LlamaConfig(**{**SIZES, **changes})


def rope(kind: str, **values: object) -> dict[str, object]:
    return {"rope_type": kind, "rope_theta": 10000.0, **values}


def gemma(**changes: object) -> PreTrainedConfig:
    sizes = {**SIZES, "num_hidden_layers": 6, "sliding_window": 24, "query_pre_attn_scalar": 20}
    return Gemma3TextConfig(
        **{**sizes, "num_attention_heads": 4, "num_key_value_heads": 1, **changes}
    )


def qwen2_with_windows() -> PreTrainedConfig:
    return Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=20, max_window_layers=1)


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": llama,
    "llama-bytes": lambda: llama(vocab_size=260),
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-bias": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-linear": lambda: llama(rope_parameters=rope("linear", factor=4.0)),
    "llama-llama3": lambda: llama(rope_parameters=rope("llama3", factor=8.0, **LLAMA3)),
    "llama-yarn": lambda: llama(
        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=128)
    ),
    "llama-wide-heads": lambda: llama(head_dim=80, num_key_value_heads=6),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=21),
    "mistral-full": lambda: MistralConfig(**SIZES, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2-windows": qwen2_with_windows,
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma3": gemma,
    "gemma3-untied": lambda: gemma(tie_word_embeddings=False),
}


def save(name: str, folder: Path, **save_options: object) -> PreTrainedModel:
    """Write the checkpoint `name` to the folder and return the model, float32, on the CPU."""
    torch.manual_seed(hash_of(name))
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough that a wrong rotation, window or norm shows far above rounding; norms stay near one.
            noise = torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.05)
            parameter.add_(noise)
    model = model.float().eval()
    model.save_pretrained(folder, **save_options)
    return model


def hash_of(name: str) -> int:
    """A seed that does not change between processes."""
    return sum(ord(letter) * (index + 1) for index, letter in enumerate(name))


def save_words(folder: Path, words: Sequence[str] = ()) -> None:
    """A tokenizer whose tokens are these words, or as many made-up ones as the vocabulary has."""
    words = words or [f"t{number}" for number in range(int(str(SIZES["vocab_size"])))]
    model = tokenizers.models.BPE({word: number for number, word in enumerate(words)}, [])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
