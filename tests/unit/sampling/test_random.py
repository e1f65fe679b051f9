"""Counter-based random numbers: published vectors, uniformity, independence of streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampling_cases import p_value

from nonet.sampling.random import Purpose, philox, uniforms

# Random123's known answers for philox4x32-10: counter, key, output.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def test_philox_known_answers_together() -> None:
    counter = np.array([words(vector[0]) for vector in VECTORS], dtype=np.uint64).T
    key = np.array([words(vector[1]) for vector in VECTORS], dtype=np.uint64).T
    expected = np.array([words(vector[2]) for vector in VECTORS], dtype=np.uint64).T
    np.testing.assert_array_equal(philox(counter, key), expected)


def test_uniforms_are_uniform() -> None:
    numbers = uniforms([11] * 100_000, range(100_000), Purpose.SAMPLE)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    bins = torch.from_numpy((numbers * 64).astype(np.int64))
    assert p_value(bins, torch.full((64,), 1 / 64)) > 0.001


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((3, 0, Purpose.SAMPLE), (3, 0, Purpose.ACCEPT)),
        ((3, 0, Purpose.DRAFT), (3, 0, Purpose.RESIDUAL)),
        ((3, 0, Purpose.SAMPLE), (4, 0, Purpose.SAMPLE)),
        ((3, 0, Purpose.SAMPLE), (3, 1, Purpose.SAMPLE)),
        ((3, 0, Purpose.SAMPLE), (3, 2**32, Purpose.SAMPLE)),
        ((3, 0, Purpose.SAMPLE), (3 + 2**32, 0, Purpose.SAMPLE)),
    ],
)
def test_streams_are_uncorrelated(
    one: tuple[int, int, Purpose], other: tuple[int, int, Purpose]
) -> None:
    count = 20_000
    streams = [
        uniforms([seed] * count, [start + i for i in range(count)], purpose)
        for seed, start, purpose in (one, other)
    ]
    assert abs(np.corrcoef(streams[0], streams[1])[0, 1]) < 0.03


def test_a_number_does_not_depend_on_the_batch() -> None:
    seeds, positions = [1, 2, 3, 2**64 - 1], [9, 8, 7, 6]
    together = uniforms(seeds, positions, Purpose.SAMPLE)
    alone = [uniforms([s], [p], Purpose.SAMPLE)[0] for s, p in zip(seeds, positions, strict=True)]
    assert together.tolist() == alone
    assert len(set(alone)) == 4


def test_every_allowed_seed_works() -> None:
    numbers = uniforms([-(2**63), -1, 0, 2**63, 2**64 - 1], [0] * 5, Purpose.SAMPLE)
    assert numbers[1] == numbers[4]  # equal modulo 2**64
    assert len(set(numbers.tolist())) == 3  # and -(2**63) equals 2**63
