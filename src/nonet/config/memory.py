"""Where the bytes will go, predicted from the model's shape: weights, workspace, and one KV block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nonet.config.resolved import CacheGroup
from nonet.core.buckets import FEW_QUERIES, MOST_MIXED_TOKENS, buckets, crowds, mixed_tokens
from nonet.core.model_spec import ModelSpec

__all__ = [
    "DTYPE_BYTES",
    "KEPT_FORMS",
    "NUMBERS_BYTES",
    "RUNTIME_BYTES",
    "EntryFormat",
    "HeldWeights",
    "adapter_bytes",
    "graph_bytes",
    "kv_bytes_per_block",
    "show_bytes",
    "weight_bytes",
    "workspace_bytes",
]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Forms of weights that an implementation of the kernels keeps; any other it makes dense when it loads them.
KEPT_FORMS = {
    "native": ("groupwise", "integers_by_group"),
    "triton": ("float8", "groupwise"),
}

# Arrays as large as the float32 logits that sampling holds at its peak: logits, sorted, ids, probabilities.
LOGIT_COPIES = 4


# What a process takes of a device before it holds a model: the CUDA context, modules, workspaces of the libraries.
RUNTIME_BYTES = {"cuda": 1 << 30, "cpu": 0}

# Of the cache in which kernels hold a long step's codes of keys and values as numbers.
NUMBERS_BYTES = {"triton": 128 << 20}

# What the driver keeps for a graph of a few hundred nodes.
GRAPH_BYTES = 4 << 20


class EntryFormat(Protocol):
    """What a plan asks of a KV format (`kernels.kv_format.KVFormat`)."""

    name: str
    kernels: tuple[str, ...]  # implementations that hold it

    def entry_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """Bytes of one key or one value of one head, its scale included."""
        ...


class HeldWeights(Protocol):
    """What a plan asks of a weight format (`quant.formats.base.WeightFormat`)."""

    def form_of(self, spec: ModelSpec) -> str: ...

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int: ...


def weight_bytes(
    spec: ModelSpec, dtype: str, held: HeldWeights, kernels: str, model_path: str
) -> int:
    """Weights as held in memory, norms and biases left out. `model_path` is "" for made-up weights."""
    kept = held.num_bytes(spec, DTYPE_BYTES[dtype], model_path)
    is_kept = held.form_of(spec) in KEPT_FORMS.get(kernels, ())
    return kept if is_kept else spec.num_parameters * DTYPE_BYTES[dtype]


def kv_bytes_per_block(
    spec: ModelSpec,
    groups: Sequence[CacheGroup],
    block_size: int,
    dtype: str,
    kv_format: EntryFormat | None = None,
) -> int:
    """Keys and values of `block_size` tokens in as many layers as the largest group has; without a format, in dtype."""
    layers = max(len(group.layers) for group in groups)
    each = spec.head_dim * DTYPE_BYTES[dtype]
    if kv_format is not None:
        each = kv_format.entry_bytes(spec.head_dim, DTYPE_BYTES[dtype])
    return 2 * layers * block_size * spec.num_kv_heads * each


def workspace_bytes(
    spec: ModelSpec, max_tokens_per_step: int, max_num_seqs: int, max_model_len: int
) -> int:
    """Activations of one step in float32, sampling, and the rotary tables."""
    tables = (2 if spec.rope_local else 1) * max_model_len * spec.head_dim
    logits = LOGIT_COPIES * max_num_seqs * spec.vocab_size
    return 4 * (max_tokens_per_step * _activations(spec) + logits + tables)


def graph_bytes(
    spec: ModelSpec, max_num_seqs: int, max_tokens_per_step: int, max_rows: int, recordings: int = 1
) -> int:
    """CUDA graphs of decode steps and of small steps with chunks: all of a recording share the memory of the largest.

    Where adapters are served, their steps have a recording of their own.
    """
    tokens = mixed_tokens(min(max_tokens_per_step, MOST_MIXED_TOKENS))
    of_each_crowd = len(tokens) + len(FEW_QUERIES)
    count = len(buckets(max_num_seqs)) + of_each_crowd * len(crowds(max_num_seqs))
    widest = max([max_num_seqs, *tokens])
    shared = 4 * (max_rows * spec.vocab_size + widest * _activations(spec))
    return recordings * (shared + count * GRAPH_BYTES)


def adapter_bytes(spec: ModelSpec, rank: int, dtype: str) -> int:
    """One slot: both factors of every linear layer, at the largest rank."""
    each_layer = sum(outputs + inputs for outputs, inputs in spec.linears.values())
    return spec.num_layers * rank * each_layer * DTYPE_BYTES[dtype]


def _activations(spec: ModelSpec) -> int:
    """Numbers that one token has at a time, between the layers and within the widest part of one."""
    heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    return 3 * spec.hidden_size + heads + 3 * spec.intermediate_size


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
