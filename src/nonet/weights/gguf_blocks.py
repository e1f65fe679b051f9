"""The block formats of GGUF, unpacked to codes, scales and minima without loss.

A block is a run of 32 or 256 neighbours in a row with its own float16 scale; the K formats divide it into groups that
have small integer scales of their own. The products below are exact in float32, so `GroupwiseTensor.dequantize` gives
the very numbers of the format's reference (only a zero may differ in its sign).

Letters in comments: n blocks, g groups of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from nonet.core.gguf import BLOCK_LAYOUTS
from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["BLOCK_FORMATS", "unpack_blocks"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Unpacked = tuple[Bytes, Floats, Floats]  # codes [n, block], scale [n, g], minimum [n, g]


@dataclass(frozen=True, slots=True)
class _Format:
    unpack: Callable[[Bytes], Unpacked]  # blocks [n, bytes of a block]
    group: int
    bits: int


def unpack_blocks(kind: str, raw: memoryview, rows: int, columns: int) -> GroupwiseTensor:
    """A stored matrix [rows, columns] as codes; `raw` is read, not kept."""
    layout = BLOCK_FORMATS[kind]
    _, block_bytes = BLOCK_LAYOUTS[kind]
    codes, scale, minimum = layout.unpack(np.frombuffer(raw, np.uint8).reshape(-1, block_bytes))
    groups = columns // layout.group
    return GroupwiseTensor(
        torch.from_numpy(codes.reshape(rows, columns)),
        torch.from_numpy(scale.reshape(rows, groups)),
        torch.from_numpy(minimum.reshape(rows, groups)),
        layout.group,
        layout.bits,
    )


def _q4_0(blocks: Bytes) -> Unpacked:
    scale = _half(blocks, 0)
    return _nibbles(blocks[:, 2:]), scale, scale * np.float32(-8)


def _q4_1(blocks: Bytes) -> Unpacked:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Unpacked:
    scale = _half(blocks, 0)
    return _with_fifth_bit(blocks[:, 6:], blocks[:, 2:6]), scale, scale * np.float32(-16)


def _q5_1(blocks: Bytes) -> Unpacked:
    return _with_fifth_bit(blocks[:, 8:], blocks[:, 4:8]), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Unpacked:
    scale = _half(blocks, 0)
    return blocks[:, 2:] ^ np.uint8(128), scale, scale * np.float32(-128)  # int8 to code - 128


def _q4_k(blocks: Bytes) -> Unpacked:
    scale, minimum = _k_scales(blocks)
    return _k_nibbles(blocks[:, 16:]).reshape(-1, 256), scale, minimum


def _q5_k(blocks: Bytes) -> Unpacked:
    scale, minimum = _k_scales(blocks)
    codes = _k_nibbles(blocks[:, 48:])
    high = blocks[:, 16:48]  # bit i of byte j belongs to element j of group i
    for group in range(8):
        codes[:, group] |= ((high >> group) & 1) << 4
    return codes.reshape(-1, 256), scale, minimum


def _q6_k(blocks: Bytes) -> Unpacked:
    codes = np.empty((len(blocks), 2, 4, 32), np.uint8)
    for half in range(2):
        low = blocks[:, half * 64 : half * 64 + 64]
        high = blocks[:, 128 + half * 32 : 160 + half * 32]
        for quarter in range(4):
            nibble = low[:, quarter % 2 * 32 : quarter % 2 * 32 + 32] >> quarter // 2 * 4
            two_bits = (high >> quarter * 2) & 3
            codes[:, half, quarter] = (nibble & 15) | (two_bits << 4)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    scale = _half(blocks, 208) * scales.astype(np.float32)
    return codes.reshape(-1, 256), scale, scale * np.float32(-32)


BLOCK_FORMATS: dict[str, _Format] = {
    "Q4_0": _Format(_q4_0, 32, 4),
    "Q4_1": _Format(_q4_1, 32, 4),
    "Q5_0": _Format(_q5_0, 32, 8),
    "Q5_1": _Format(_q5_1, 32, 8),
    "Q8_0": _Format(_q8_0, 32, 8),
    "Q4_K": _Format(_q4_k, 32, 4),
    "Q5_K": _Format(_q5_k, 32, 8),
    "Q6_K": _Format(_q6_k, 16, 8),
}


def _half(blocks: Bytes, start: int) -> Floats:
    """The float16 at byte `start` of each block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """[n, 16] to [n, 32]: all low halves, then all high halves."""
    codes = np.empty((len(packed), 2, 16), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0])
    np.right_shift(packed, 4, out=codes[:, 1])
    return codes.reshape(-1, 32)


def _with_fifth_bit(packed: Bytes, high: Bytes) -> Bytes:
    """Nibbles [n, 16] and one more bit for each of 32 elements [n, 4]."""
    codes = np.unpackbits(high, axis=1, bitorder="little")
    codes <<= 4
    codes |= _nibbles(packed)
    return codes


def _k_nibbles(packed: Bytes) -> Bytes:
    """[n, 128] to [n, 8, 32]: each 32 bytes hold one group in their low halves and the next in their high halves."""
    codes = np.empty((len(packed), 4, 2, 32), np.uint8)
    packed = packed.reshape(-1, 4, 32)
    np.bitwise_and(packed, 15, out=codes[:, :, 0])
    np.right_shift(packed, 4, out=codes[:, :, 1])
    return codes.reshape(-1, 8, 32)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and minimum [n, 8]: 6-bit integers in 12 bytes, times the block's two float16.

    Groups 0 to 3 have their six bits in bytes 0-3 (scale) and 4-7 (minimum). Groups 4 to 7 have four bits in bytes
    8-11 (scale low, minimum high) and two in the top of bytes 0-3 and 4-7.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6 << 4)), axis=1)
    minima = np.concatenate((second & 63, (third >> 4) | (second >> 6 << 4)), axis=1)
    return (
        _half(blocks, 0) * scales.astype(np.float32),
        -_half(blocks, 2) * minima.astype(np.float32),
    )
