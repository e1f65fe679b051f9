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
    counter = np.zeros((4, len(key)), dtype=np.uint64)
    counter[0], counter[1], counter[2] = place & _LOW, place >> _HALF, purpose
    first, second, _, _ = philox(counter, np.stack([key & _LOW, key >> _HALF]))
    bits = ((first >> np.uint64(5)) << np.uint64(26)) | (second >> np.uint64(6))
    return np.asarray(bits, dtype=np.float64) * 2.0**-53


def philox(counter: Words, key: Words) -> Words:
    """Philox 4x32-10 of counters [4, R] under keys [2, R]: [4, R].

    Every word is 32 bits, kept in 64 so that products do not overflow. Words 0 and 2 go through a round side by side.
    """
    even, odd = counter[0::2], counter[1::2]
    keys = (key + _WEYL * _ROUND_NUMBERS) & _LOW
    for round_key in keys:
        product = even * _MULTIPLIER
        even = (product >> _HALF)[::-1] ^ odd ^ round_key
        odd = (product & _LOW)[::-1]
    return np.stack([even[0], odd[0], even[1], odd[1]])


_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_MULTIPLIER = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_ROUND_NUMBERS = np.arange(10, dtype=np.uint64)[:, None, None]
