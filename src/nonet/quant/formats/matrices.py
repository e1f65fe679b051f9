"""The matrices of a model as a plan sees them, and the bytes they take in codes of a given size."""

from __future__ import annotations

from collections.abc import Iterator

from nonet.core.model_spec import ModelSpec
from nonet.quant.formats.base import Role

__all__ = ["effective_group", "groupwise_bytes", "matrices"]


def matrices(spec: ModelSpec) -> Iterator[tuple[Role, int, int]]:
    """(role, outputs, inputs) of every matrix; projections that are stacked count as one."""
    hidden, heads = spec.hidden_size, spec.num_heads * spec.head_dim
    for _ in range(1 if spec.tie_embeddings else 2):
        yield "embedding", spec.vocab_size, hidden
    for _ in range(spec.num_layers):
        yield "linear", heads + 2 * spec.num_kv_heads * spec.head_dim, hidden
        yield "linear", hidden, heads
        yield "linear", 2 * spec.intermediate_size, hidden
        yield "linear", hidden, spec.intermediate_size


def effective_group(columns: int, group: int) -> int:
    """The size of the groups that `columns` inputs are cut in when groups of `group` are asked for, 0 being all.

    Where `group` does not divide them, it is the largest smaller size that does: of those that kernels keep in
    codes, which are multiples of 16, if there is one.
    """
    if group == 0 or group >= columns:
        return columns
    divisors = [size for size in range(group, 0, -1) if columns % size == 0]
    return next((size for size in divisors if size % 16 == 0), divisors[0])


def groupwise_bytes(outputs: int, inputs: int, *, bits: int, group: int, symmetric: bool) -> int:
    """Codes, and a scale of two bytes for each group, with as large a minimum where zero points differ.

    Kernels hold at most 256 inputs to a scale, so wider groups repeat theirs.
    """
    group = effective_group(inputs, group)
    if group > 256:
        group = effective_group(group, 256)
    numbers = outputs * (inputs // group) * (1 if symmetric else 2)
    return outputs * inputs * bits // 8 + 2 * numbers
