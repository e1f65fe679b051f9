"""The sizes of recorded steps."""

from __future__ import annotations

from nonet.core.buckets import bucket_of, buckets, crowd_of, crowds, mixed_tokens, mixed_tokens_of


def test_buckets_hold_their_batch() -> None:
    for most in (1, 7, 64, 200, 1024):
        met = set()
        for size in range(1, most + 1):
            bucket = bucket_of(size, most)
            assert size <= bucket <= most
            assert size <= 64 or bucket <= size * 1.34
            met.add(bucket)
        assert buckets(most) == sorted(met)
        assert most in met


def test_small_steps_with_chunks_are_padded_by_a_bounded_share() -> None:
    sizes = mixed_tokens(2048)
    for tokens in range(1, 2049):
        size = mixed_tokens_of(tokens)
        assert size in sizes
        assert tokens <= size
        assert tokens <= 128 or size - tokens < (64 if tokens <= 384 else 128)
    assert len(sizes) < 24
    assert mixed_tokens(100) == [16, 32, 64]


def test_crowds_hold_their_sequences() -> None:
    for most in (1, 7, 64, 200, 1024):
        assert {crowd_of(size, most) for size in range(1, most + 1)} == set(crowds(most))
        assert all(size <= crowd_of(size, most) <= most for size in range(1, most + 1))
        assert len(crowds(most)) <= 6
