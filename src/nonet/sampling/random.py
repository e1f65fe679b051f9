"""Random numbers that are a function of (sequence seed, position, purpose) and of nothing else.

Philox 4x32-10: a counter-based generator, so a draw needs no state to keep, save or restore. A sequence draws the same
numbers alone or in a batch, in any slot, before and after a preemption. Two draws at one position (a draft's and its
acceptance) differ in `purpose`, hence are independent. The host knows seeds and positions, so it makes the numbers.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["Purpose", "philox", "uniforms"]

Words = npt.NDArray[np.uint64]


class Purpose(IntEnum):
    """What a draw is for; streams of different purposes are independent."""

    SAMPLE = 0  # the token after the known ones; also the bonus token after accepted drafts
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


def uniforms(
    seeds: Sequence[int], positions: Sequence[int], purpose: Purpose
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per (seed, position), of 53 random bits. Seeds count modulo 2**64.

    >>> bool(uniforms([7, 7], [3, 4], Purpose.SAMPLE)[0] == uniforms([7], [3], Purpose.SAMPLE)[0])
    True
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)
    place = np.array(positions, dtype=np.uint64)
    zero = np.zeros_like(place)
    counter = (place & _LOW, place >> _HALF, zero + np.uint64(purpose), zero)
    first, second, _, _ = philox(counter, (key & _LOW, key >> _HALF))
    bits = ((first >> np.uint64(5)) << np.uint64(26)) | (second >> np.uint64(6))
    return bits.astype(np.float64) * 2.0**-53


def philox(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Philox 4x32-10 over arrays: every word is 32 bits, kept in 64 so that products do not overflow."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left = c0 * _MULTIPLIER_0
        right = c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (right >> _HALF) ^ c1 ^ k0,
            right & _LOW,
            (left >> _HALF) ^ c3 ^ k1,
            left & _LOW,
        )
        k0 = (k0 + _WEYL_0) & _LOW
        k1 = (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


_ROUNDS = 10
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
