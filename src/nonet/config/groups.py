"""Cache groups: layers that share a block table, cut so that one block of any group takes the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

from nonet.config.resolved import CacheGroup
from nonet.core.model_spec import ModelSpec

__all__ = ["blocks_for", "cache_groups", "longest_that_fits", "padded_layers"]

# Fewer groups mean fewer block tables to keep and upload; a tenth of padding is what we pay for them.
MAX_PADDING = 0.1


def cache_groups(spec: ModelSpec) -> tuple[CacheGroup, ...]:
    """Layers of equal window, split in groups of one size; the last group of a window may be short (padded).

    The size is the largest that wastes at most a tenth of the layers' memory. Full attention comes first, then the
    windows from wide to narrow.
    """
    by_window: dict[int | None, list[int]] = {}
    for layer, window in enumerate(spec.windows):
        by_window.setdefault(window, []).append(layer)
    order = sorted(by_window, key=lambda window: (window is not None, -(window or 0)))
    size = _group_size([len(by_window[window]) for window in order])
    return tuple(
        CacheGroup(tuple(layers[start : start + size]), window)
        for window in order
        for layers in [by_window[window]]
        for start in range(0, len(layers), size)
    )


def padded_layers(groups: Sequence[CacheGroup]) -> int:
    """Layers' worth of memory that short groups leave unused in each set of blocks."""
    size = max(len(group.layers) for group in groups)
    return sum(size - len(group.layers) for group in groups)


def blocks_for(
    groups: Sequence[CacheGroup], num_tokens: int, block_size: int, max_tokens_per_step: int
) -> int:
    """Most blocks that a sequence of `num_tokens` holds at once, over all groups.

    A sliding window keeps its window and the chunk being computed, plus one block because neither begins on a border.
    """
    total = 0
    for group in groups:
        blocks = -(-num_tokens // block_size)
        if group.window is not None:
            held = group.window - 1 + max_tokens_per_step
            blocks = min(blocks, -(-held // block_size) + 1)
        total += blocks
    return total


def longest_that_fits(
    groups: Sequence[CacheGroup], num_blocks: int, block_size: int, max_tokens_per_step: int
) -> int:
    """Most tokens, in whole blocks, that one sequence can have when all blocks are its own."""
    low, high = 0, num_blocks  # in blocks of tokens: a full group can hold no more than there are
    if all(group.window is not None for group in groups):
        high = 1 << 20  # windows bound the blocks, not the tokens
    while low < high:
        middle = (low + high + 1) // 2
        need = blocks_for(groups, middle * block_size, block_size, max_tokens_per_step)
        low, high = (middle, high) if need <= num_blocks else (low, middle - 1)
    return low * block_size


def _group_size(counts: list[int]) -> int:
    layers = sum(counts)
    for size in range(min(counts), 0, -1):
        padding = sum(-count % size for count in counts)
        if padding <= MAX_PADDING * layers:
            return size
    return 1
