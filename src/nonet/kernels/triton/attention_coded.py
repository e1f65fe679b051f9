"""Tiles of a cache in codes of 8 bits, folded into a running softmax two neighbouring dims at a time.

A matrix product takes its second operand as pairs along the dimension that it sums over. Values are summed over
entries, which lie a row apart; shared memory gives such pairs in words of 16 bits at once (ldmatrix, transposed), and
bytes one by one. So codes are read as words of two dims, and even and odd dims are multiplied apart.

The way of a code to a number: Kim et al., "Who Says Elephants Can't Run" (arXiv 2211.10017).
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import LayerCache
from nonet.kernels.triton.attention_tile import (
    LIFT,
    block_ids,
    entry_offsets,
    entry_scales,
    fold_tiles,
    live_entries,
    visible_entries,
    weigh,
)

__all__ = ["Codes", "codes_of", "fold_any_tiles", "numbers_of", "words_of"]

# Of two words $2: the numbers of their low bytes to $0, of their high bytes to $1.
_FLOAT8 = """{
    .reg .b32 bytes;
    .reg .b16 even, odd;
    prmt.b32 bytes, $2, 0, 0x3120;
    mov.b32 {even, odd}, bytes;
    cvt.rn.f16x2.e4m3x2 $0, even;
    cvt.rn.f16x2.e4m3x2 $1, odd;
}"""
# A byte plus 128 under the exponent of 1024 is 1152 + byte in float16.
_INT8 = """{
    .reg .b32 moved, magic, centre;
    xor.b32 moved, $2, 0x80808080;
    mov.b32 magic, 0x64646464;
    mov.b32 centre, 0x64806480;
    prmt.b32 $0, moved, magic, 0x4240;
    prmt.b32 $1, moved, magic, 0x4341;
    sub.rn.f16x2 $0, $0, centre;
    sub.rn.f16x2 $1, $1, centre;
}"""
_INSTRUCTIONS = {torch.float8_e4m3fn: _FLOAT8, torch.int8: _INT8}


class Codes(NamedTuple):
    """What kernels need to know of codes."""

    are_floats: bool
    instructions: str | None  # that make them numbers; the interpreter knows none


@functools.cache
def _codes(dtype: torch.dtype) -> Codes:
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return Codes(dtype == torch.float8_e4m3fn, None if is_interpreted else _INSTRUCTIONS[dtype])


def codes_of(cache: LayerCache) -> Codes | None:
    """None for a cache of numbers."""
    return None if cache.format is None else _codes(cache.keys.dtype)


def words_of(cache: LayerCache) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values as the kernels read them: numbers, or codes [N, K, P, D] as words int16 [N, K, P, D / 2]."""
    if cache.format is None:
        return cache.keys, cache.values
    return cache.keys.view(torch.int16), cache.values.view(torch.int16)


@triton.jit
def fold_any_tiles(
    q_tile, position, keys, values, key_scales, value_scales, table, blocks, head, start, stop, length, oldest,
    scale, softcap, window,
    K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, STRIDE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """As `attention_tile.fold_tiles`, of numbers or, with CODES, of words."""
    if CODES is None:
        acc, high, total = fold_tiles(
            q_tile, position, keys, values, table, blocks, head, start, stop, length, oldest, scale, softcap, window,
            K, D, P, BLOCK_D, ROWS, TILE, STRIDE, HAS_WINDOW, HAS_SOFTCAP, PRECISION,
        )  # fmt: skip
    else:
        acc, high, total = _fold_words(
            q_tile, position, keys, values, key_scales, value_scales, table, blocks, head, start, stop, length, oldest,
            scale, softcap, window,
            K, D, P, BLOCK_D, ROWS, TILE, STRIDE, HAS_WINDOW, HAS_SOFTCAP, PRECISION, CODES,
        )  # fmt: skip
    return acc, high, total


@triton.jit
def _fold_words(
    q_tile, position, keys, values, key_scales, value_scales, table, blocks, head, start, stop, length, oldest,
    scale, softcap, window,
    K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, STRIDE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = BLOCK_D // 2
    if q_tile.dtype == tl.bfloat16:
        # Codes become float16 in fewer instructions than bfloat16; both hold them exactly.
        q_tile = q_tile.to(tl.float16)
    q_even, q_odd = tl.split(tl.reshape(q_tile, [ROWS, HALF, 2]))
    lane = tl.arange(0, HALF)[None, :]
    even = tl.zeros([ROWS, HALF], tl.float32)
    odd = tl.zeros([ROWS, HALF], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    # Scales are too short for an asynchronous copy; a tile's products cover the way of the next one's.
    k_scale, v_scale = entry_scales(
        key_scales, value_scales, blocks, start, head,
        live_entries(start, length, oldest, TILE), K, P, TILE, True,
    )  # fmt: skip
    for at in range(start, stop, STRIDE):
        place = entry_offsets(blocks, at, head, K, P, D // 2, TILE)[:, None] + lane
        wide = live_entries(at, length, oldest, TILE)[:, None] & (lane < D // 2)
        blocks = block_ids(table, at + STRIDE, length, P, TILE)
        next_k_scale, next_v_scale = entry_scales(
            key_scales, value_scales, blocks, at + STRIDE, head,
            live_entries(at + STRIDE, length, oldest, TILE), K, P, TILE, True,
        )  # fmt: skip
        k_even, k_odd = numbers_of(tl.load(keys + place, mask=wide, other=0), CODES)
        v_words = tl.load(values + place, mask=wide, other=0)
        scores = tl.dot(q_even, tl.trans(k_even.to(q_even.dtype)), input_precision=PRECISION)
        scores = tl.dot(q_odd, tl.trans(k_odd.to(q_odd.dtype)), scores, input_precision=PRECISION)
        seen = visible_entries(position, at, window, TILE, HAS_WINDOW)
        weights, shrink, high, total = weigh(
            scores * k_scale[None, :], seen, high, total, scale, softcap, True, HAS_SOFTCAP
        )
        # Scales are small: lifted, so that their products stay among float16's normal numbers.
        weights = (weights * (v_scale * LIFT)[None, :]).to(q_even.dtype)
        v_even, v_odd = numbers_of(v_words, CODES)
        even = tl.dot(
            weights, v_even.to(weights.dtype), even * shrink[:, None], input_precision=PRECISION
        )
        odd = tl.dot(
            weights, v_odd.to(weights.dtype), odd * shrink[:, None], input_precision=PRECISION
        )
        k_scale, v_scale = next_k_scale, next_v_scale
    acc = tl.reshape(tl.join(even, odd), [ROWS, BLOCK_D]) * (1.0 / LIFT)
    return acc, high, total


@triton.jit
def numbers_of(words, CODES: tl.constexpr):
    """The numbers of words int16: of their low bytes and of their high bytes, float16 of the same shape, exact."""
    ARE_FLOATS: tl.constexpr = CODES[0]
    INSTRUCTIONS: tl.constexpr = CODES[1]
    if INSTRUCTIONS is None:
        low, above = (words & 0xFF).to(tl.uint8), ((words >> 8) & 0xFF).to(tl.uint8)
        if ARE_FLOATS:
            even = low.to(tl.float8e4nv, bitcast=True).to(tl.float16)
            odd = above.to(tl.float8e4nv, bitcast=True).to(tl.float16)
        else:
            even = low.to(tl.int8, bitcast=True).to(tl.float16)
            odd = above.to(tl.int8, bitcast=True).to(tl.float16)
    else:
        even, odd = tl.inline_asm_elementwise(
            INSTRUCTIONS, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    return even, odd
