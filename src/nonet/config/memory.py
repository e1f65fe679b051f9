"""Where the bytes will go, predicted from the model's shape: weights, workspace, and one KV block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nonet.config.resolved import CacheGroup
from nonet.core.model_spec import ModelSpec

__all__ = ["DTYPE_BYTES", "kv_bytes_per_block", "show_bytes", "weight_bytes", "workspace_bytes"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Codes plus a 2-byte scale and a 2-byte minimum for each group of 32 weights.
ROUNDED_BYTES = {"int8": 1 + 4 / 32, "int4": 0.5 + 4 / 32}

# Arrays as large as the float32 logits that sampling holds at its peak: logits, sorted, ids, probabilities.
LOGIT_COPIES = 4


def weight_bytes(spec: ModelSpec, dtype: str, weight_format: str, model_path: str) -> int:
    """Weights as held in memory. Block formats kept as in the file take what the file takes."""
    if weight_format == "native":
        return Path(model_path).stat().st_size
    each = ROUNDED_BYTES.get(weight_format, DTYPE_BYTES[dtype])
    return int(spec.num_parameters * each)


def kv_bytes_per_block(
    spec: ModelSpec, groups: Sequence[CacheGroup], block_size: int, dtype: str
) -> int:
    """Keys and values of `block_size` tokens in as many layers as the largest group has."""
    layers = max(len(group.layers) for group in groups)
    return 2 * layers * block_size * spec.num_kv_heads * spec.head_dim * DTYPE_BYTES[dtype]


def workspace_bytes(
    spec: ModelSpec, max_tokens_per_step: int, max_num_seqs: int, max_model_len: int
) -> int:
    """Activations of one step in float32, sampling, and the rotary tables."""
    heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    per_token = 3 * spec.hidden_size + heads + 3 * spec.intermediate_size
    tables = (2 if spec.rope_local else 1) * max_model_len * spec.head_dim
    logits = LOGIT_COPIES * max_num_seqs * spec.vocab_size
    return 4 * (max_tokens_per_step * per_token + logits + tables)


def show_bytes(count: float) -> str:
    """Bytes for people.

    >>> show_bytes(269_030_016)
    '256.6 MiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
