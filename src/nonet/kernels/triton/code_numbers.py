"""How codes of 8 or 4 bits in 16-bit words become numbers, in a few instructions of two numbers each.

Plain arithmetic on words is compiled to instructions on pairs of 16-bit integers, and some of them gave wrong numbers
on an H200 (triton 3.6; 4 bits with minima, stored in 16 bits).

The idea of packed codes with the magic exponent: Kim et al., "Who Says Elephants Can't Run" (arXiv 2211.10017).
"""

from __future__ import annotations

import functools
import os

import torch
import triton
import triton.language as tl

__all__ = ["code_numbers", "conversion"]


@triton.jit
def code_numbers(
    word, PART: tl.constexpr, BITS: tl.constexpr, CONVERT: tl.constexpr, LIKE: tl.constexpr
):
    """The code PART up in each word minus the centre, as a LIKE, exactly: two words a register in, two numbers out."""
    if CONVERT is None:  # Triton's interpreter knows no assembler
        code = (word.to(tl.int32) >> (PART * BITS)) & ((1 << BITS) - 1)
        number = (code - (1 << (BITS - 1))).to(LIKE)
    elif LIKE == tl.bfloat16:  # noqa: SIM300
        number = tl.inline_asm_elementwise(
            CONVERT[PART], "=r,r", [word], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        number = tl.inline_asm_elementwise(
            CONVERT[PART], "=r,r", [word], dtype=tl.float16, is_pure=True, pack=2
        )
    return number


@functools.cache
def conversion(bits: int, dtype: torch.dtype) -> tuple[str, ...] | None:
    """For each part of a word, the instructions that make its codes numbers; the interpreter knows none."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    kind = "bf16x2" if dtype == torch.bfloat16 else "f16x2"
    if bits == 8:
        return tuple(_eight(byte, kind) for byte in (0, 1))
    # 128 + code and 136 in bfloat16; 1024 + code and 1032 in float16.
    magic, centre = (0x4300, 0x4308) if dtype == torch.bfloat16 else (0x6400, 0x6408)
    return tuple(_four(shift, magic * 0x10001, centre * 0x10001, kind) for shift in (0, 4, 8, 12))


def _four(shift: int, magic: int, centre: int, kind: str) -> str:
    """A code under the exponent of `magic` is magic + code: one subtraction makes it a number."""
    return f"""{{
        .reg .b32 bits, offset;
        shr.b32 bits, $1, {shift};
        lop3.b32 bits, bits, 0x000F000F, {magic:#x}, 0xEA;
        mov.b32 offset, {centre:#x};
        sub.rn.{kind} $0, bits, offset;
    }}"""


def _eight(byte: int, kind: str) -> str:
    """As `_four`, by way of float32, for a bfloat16 has no room for the magic of 8 bits: 2**23 + code - 2**23 - 128."""
    return f"""{{
        .reg .b32 low, high;
        .reg .f32 below, above;
        prmt.b32 low, $1, 0x4B000000, {0x7540 + byte:#x};
        prmt.b32 high, $1, 0x4B000000, {0x7540 + byte + 2:#x};
        mov.b32 below, low;
        mov.b32 above, high;
        sub.rn.f32 below, below, 0f4B000080;
        sub.rn.f32 above, above, 0f4B000080;
        cvt.rn.{kind}.f32 $0, above, below;
    }}"""
