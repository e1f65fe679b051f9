"""Where the bytes will go, predicted from the model's shape: weights, workspace, and one KV block."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nonet.config.resolved import CacheGroup
from nonet.core.gguf import GGUFFile
from nonet.core.model_spec import ModelSpec

__all__ = ["DTYPE_BYTES", "kv_bytes_per_block", "show_bytes", "weight_bytes", "workspace_bytes"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Codes plus a 2-byte scale and a 2-byte minimum for each group of 32 weights.
EIGHT_BITS, FOUR_BITS = 1 + 4 / 32, 0.5 + 4 / 32

# Block formats that fit in 4 bits; the others are held in 8, Q6_K in groups of 16.
FOUR_BIT_KINDS = ("Q4_0", "Q4_1", "Q4_K")

# Arrays as large as the float32 logits that sampling holds at its peak: logits, sorted, ids, probabilities.
LOGIT_COPIES = 4


def weight_bytes(spec: ModelSpec, dtype: str, weight_format: str, model_path: str) -> int:
    """Weights as held in memory, norms and biases left out."""
    if weight_format == "native" and spec.code_bits is None:
        return _native_bytes(model_path, DTYPE_BYTES[dtype])
    embeddings = spec.vocab_size * spec.hidden_size * (1 if spec.tie_embeddings else 2)
    linears = spec.num_parameters - embeddings
    if weight_format == "native":  # published quantised checkpoints leave embeddings as they were
        codes = FOUR_BITS if spec.code_bits == 4 else EIGHT_BITS
        return int(linears * codes + embeddings * DTYPE_BYTES[dtype])
    if weight_format == "int4":
        return int(linears * FOUR_BITS + embeddings * EIGHT_BITS)
    each = EIGHT_BITS if weight_format == "int8" else DTYPE_BYTES[dtype]
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


def _native_bytes(model_path: str, float_bytes: int) -> int:
    """Matrices of a GGUF file in the codes that the kernels read."""
    total = 0.0
    with GGUFFile.open(model_path) as file:
        for tensor in file.tensors.values():
            if len(tensor.shape) < 2:
                continue
            if not tensor.kind.startswith("Q"):
                each: float = float_bytes
            elif tensor.kind in FOUR_BIT_KINDS:
                each = FOUR_BITS
            else:
                each = 1 + 4 / 16 if tensor.kind == "Q6_K" else EIGHT_BITS
            total += math.prod(tensor.shape) * each
    return int(total)
