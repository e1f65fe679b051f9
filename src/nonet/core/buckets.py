"""The sizes that steps are recorded at: few enough to hold, close enough that padding costs little."""

from __future__ import annotations

__all__ = [
    "FEW_QUERIES",
    "MOST_MIXED_TOKENS",
    "bucket_of",
    "buckets",
    "crowd_of",
    "crowds",
    "fast_rows",
    "mixed_tokens",
    "mixed_tokens_of",
]

# A step of more tokens keeps the device busy for longer than the host needs to launch it.
MOST_MIXED_TOKENS = 2048

# Chunks of few tokens (drafts to verify, the end of a prompt that was cached) are told apart by these lengths, for
# attention reads their keys in its own way.
FEW_QUERIES = (2, 4, 8, 16)


def bucket_of(size: int, most: int) -> int:
    """The batch that a decode step of `size` sequences runs at; beyond 256, one that products are fast at.

    >>> [bucket_of(size, 600) for size in (1, 3, 9, 70, 199, 300, 400)]
    [1, 4, 16, 72, 200, 320, 512]
    """
    if size <= 8:
        return min(1 << (size - 1).bit_length(), most)
    return min(fast_rows(size) if size > 256 else -(-size // 8) * 8, most)


def buckets(most: int) -> list[int]:
    """All of them, up to a batch of `most`.

    >>> buckets(20)
    [1, 2, 4, 8, 16, 20]
    """
    return sorted({bucket_of(size, most) for size in range(1, most + 1)})


def mixed_tokens_of(tokens: int) -> int:
    """The tokens that a step with chunks of prompts runs at.

    Up to 128 the weights are read for any number in the same time; beyond, it is one that products are fast at.

    >>> [mixed_tokens_of(tokens) for tokens in (2, 17, 100, 130, 300, 520, 2000)]
    [16, 32, 128, 192, 320, 640, 2048]
    """
    if tokens <= 128:
        return max(16, 1 << (tokens - 1).bit_length())
    return fast_rows(tokens)


def fast_rows(rows: int) -> int:
    """So many rows or a few more: with 400 or 448 cuBLAS takes longer on an H100 than with 512.

    Measured in bfloat16 for the layers of an 8B shape: benchmarks/2026-11-29-h100-profile.
    """
    step = 64 if rows <= 384 else 128
    return -(-rows // step) * step


def mixed_tokens(most: int) -> list[int]:
    """All of them, up to `most` tokens.

    >>> mixed_tokens(200)
    [16, 32, 64, 128, 192]
    """
    sizes = {mixed_tokens_of(tokens) for tokens in range(1, most + 1)}
    return sorted(size for size in sizes if size <= most)


def crowd_of(size: int, most: int) -> int:
    """The sequences that such a step runs at: it has more tokens than that, padding included.

    >>> [crowd_of(size, 200) for size in (1, 17, 65, 130)]
    [16, 64, 128, 200]
    """
    if size <= 16:
        return min(16, most)
    return min(max(64, 1 << (size - 1).bit_length()), most)


def crowds(most: int) -> list[int]:
    """All of them, up to `most` sequences.

    >>> crowds(200)
    [16, 64, 128, 200]
    """
    return sorted({crowd_of(size, most) for size in range(1, most + 1)})
