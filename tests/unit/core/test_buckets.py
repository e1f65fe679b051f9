"""Batches of recorded decode steps."""

from __future__ import annotations

from nonet.core.buckets import bucket_of, buckets


def test_buckets_hold_their_batch() -> None:
    for most in (1, 7, 64, 200, 1024):
        met = set()
        for size in range(1, most + 1):
            bucket = bucket_of(size, most)
            assert size <= bucket <= most
            assert size <= 64 or bucket <= size * 1.25
            met.add(bucket)
        assert buckets(most) == sorted(met)
        assert most in met
