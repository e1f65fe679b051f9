"""The batches that decode steps are recorded at: few enough to hold, close enough that padding costs little."""

from __future__ import annotations

__all__ = ["bucket_of", "buckets"]


def bucket_of(size: int, most: int) -> int:
    """The batch that a decode step of `size` sequences runs at: padding costs at most an eighth beyond 64 rows.

    >>> [bucket_of(size, 200) for size in (1, 3, 9, 70, 199)]
    [1, 4, 16, 72, 200]
    """
    if size <= 8:
        return min(1 << (size - 1).bit_length(), most)
    step = 8 if size <= 256 else 64
    return min(-(-size // step) * step, most)


def buckets(most: int) -> list[int]:
    """All of them, up to a batch of `most`.

    >>> buckets(20)
    [1, 2, 4, 8, 16, 20]
    """
    return sorted({bucket_of(size, most) for size in range(1, most + 1)})
