"""Gathered low-rank products: each token adds second * (first * x) with the factors of its own slot.

Two launches for each linear layer, whatever the slots are, so that a CUDA graph can hold them. The first leaves sums
over shares of the inputs, the second adds these up in order, so nothing depends on who comes when. Few tokens (decode)
take one program each and their factors are streamed once (BGMV of Punica, arXiv 2310.18547); many tokens take tiles and
tensor cores, and a tile goes through the distinct slots of its tokens (SGMV without sorting: the tokens of a sequence
stand together, so a tile has few slots). Filler of a slot, of an adapter of lower rank or of matrices that it leaves
alone, is not read: reading the factors is what takes the time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import LowRankFactors

__all__ = ["FEW_TOKENS", "expand", "room_for_inner", "shrink"]

FEW_TOKENS = 128  # up to here every token has programs of its own
MOST_PARTS = 3
TILE_TOKENS = 64
FEW_INPUTS, FEW_OUTPUTS = 512, 1024  # measured on an H100
TILE_INPUTS, TILE_OUTPUTS = 64, 128
MOST_SHARES = 16  # of the inputs, in tiles
WANTED_PROGRAMS = 256


def room_for_inner(x: torch.Tensor, factors: LowRankFactors) -> torch.Tensor:
    """For what `shrink` makes of x [T, K]: float32 [shares of the inputs, T, P * R]."""
    tokens, inputs = x.shape
    few = tokens <= FEW_TOKENS
    shares = triton.cdiv(inputs, FEW_INPUTS) if few else _tile_shares(tokens, inputs, factors)
    width = factors.first.shape[1]
    return torch.empty(shares, tokens, width, dtype=torch.float32, device=x.device)


def shrink(
    x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor, inner: torch.Tensor
) -> None:
    """first * x of each token's slot, share by share; int32 slots [T], where 0 makes nothing."""
    if not len(x):
        return
    assert x.is_contiguous()
    assert len(factors.ends) <= MOST_PARTS
    (_shrink_few if len(x) <= FEW_TOKENS else _shrink_tiles)(x, factors, slots, inner)


def expand(
    out: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor, inner: torch.Tensor
) -> None:
    """out [T, N] += second * the sum of the shares, in place; slot 0 adds nothing."""
    if not len(out):
        return
    assert out.is_contiguous()
    (_expand_few if len(out) <= FEW_TOKENS else _expand_tiles)(out, factors, slots, inner)


def _tile_shares(tokens: int, inputs: int, factors: LowRankFactors) -> int:
    """How often the inputs are cut so that the device is busy: a power of two, to compile few variants."""
    programs = triton.cdiv(tokens, TILE_TOKENS) * len(factors.ends)
    shares = 1
    while shares < MOST_SHARES and shares * programs < WANTED_PROGRAMS:
        shares *= 2
    most = triton.next_power_of_2(triton.cdiv(inputs, TILE_INPUTS))
    return shares if shares < most else int(most)


def _shrink_few(
    x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor, inner: torch.Tensor
) -> None:
    tokens, inputs = x.shape
    _shrink_few_kernel[(tokens, inner.shape[0], len(factors.ends))](
        x,
        factors.first,
        _ranks_of(factors),
        slots,
        inner,
        tokens,
        K=inputs,
        WIDTH=inner.shape[2],
        RANK=factors.rank,
        TERMS=triton.next_power_of_2(factors.rank),
        INPUTS=FEW_INPUTS,
        HAS_RANKS=factors.ranks is not None,
        num_warps=4,
    )


def _expand_few(
    out: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor, inner: torch.Tensor
) -> None:
    shares, tokens, width = inner.shape
    ends = _padded_ends(factors)
    _expand_few_kernel[(tokens, _column_tiles(factors, FEW_OUTPUTS))](
        out,
        factors.second,
        _ranks_of(factors),
        slots,
        inner,
        tokens,
        N=out.shape[1],
        WIDTH=width,
        RANK=factors.rank,
        TERMS=triton.next_power_of_2(factors.rank),
        SHARES=shares,
        SHARES_PADDED=triton.next_power_of_2(shares),
        OUTPUTS=FEW_OUTPUTS,
        END0=ends[0],
        END1=ends[1],
        HAS_RANKS=factors.ranks is not None,
        num_warps=4,
    )


def _shrink_tiles(
    x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor, inner: torch.Tensor
) -> None:
    tokens, inputs = x.shape
    shares = inner.shape[0]
    _shrink_tiles_kernel[(triton.cdiv(tokens, TILE_TOKENS), shares, len(factors.ends))](
        x,
        factors.first,
        _ranks_of(factors),
        slots,
        inner,
        tokens,
        K=inputs,
        WIDTH=inner.shape[2],
        RANK=factors.rank,
        TERMS=max(16, triton.next_power_of_2(factors.rank)),
        TOKENS=TILE_TOKENS,
        INPUTS=TILE_INPUTS,
        STEPS=triton.cdiv(triton.cdiv(inputs, TILE_INPUTS), shares),
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        HAS_RANKS=factors.ranks is not None,
        num_warps=4,
    )


def _expand_tiles(
    out: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor, inner: torch.Tensor
) -> None:
    shares, tokens, width = inner.shape
    ends = _padded_ends(factors)
    grid = (triton.cdiv(tokens, TILE_TOKENS), _column_tiles(factors, TILE_OUTPUTS))
    _expand_tiles_kernel[grid](
        out,
        factors.second,
        _ranks_of(factors),
        slots,
        inner,
        tokens,
        N=out.shape[1],
        WIDTH=width,
        RANK=factors.rank,
        TERMS=max(16, triton.next_power_of_2(factors.rank)),
        SHARES=shares,
        TOKENS=TILE_TOKENS,
        OUTPUTS=TILE_OUTPUTS,
        END0=ends[0],
        END1=ends[1],
        PRECISION="ieee" if out.dtype == torch.float32 else "tf32",
        HAS_RANKS=factors.ranks is not None,
        num_warps=4,
    )


def _ranks_of(factors: LowRankFactors) -> torch.Tensor:
    """Where there are none, something in their place that is not read."""
    return factors.first if factors.ranks is None else factors.ranks


def _padded_ends(factors: LowRankFactors) -> tuple[int, int]:
    """Ends of the first two parts; of fewer, their last again."""
    ends = [*factors.ends, factors.ends[-1]]
    return ends[0], ends[1]


def _column_tiles(factors: LowRankFactors, size: int) -> int:
    """Tiles of `size` columns, none over the border of two parts."""
    starts = (0, *factors.ends[:-1])
    return sum(
        triton.cdiv(end - start, size) for start, end in zip(starts, factors.ends, strict=True)
    )


@triton.jit(do_not_specialize=["tokens"])
def _shrink_few_kernel(
    x, first, ranks, slots, inner, tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, TERMS: tl.constexpr,
    INPUTS: tl.constexpr, HAS_RANKS: tl.constexpr,
):  # fmt: skip
    token, share, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots + token)
    if slot > 0:
        used = _used_terms(ranks, slot, part, WIDTH, RANK, HAS_RANKS)
        if used > 0:
            term = tl.arange(0, TERMS)
            at = share * INPUTS + tl.arange(0, INPUTS)
            row = (slot - 1).to(tl.int64) * WIDTH + part * RANK + term
            factor = tl.load(
                first + row[:, None] * K + at[None, :],
                mask=(term < used)[:, None] & (at < K)[None, :],
                other=0.0,
            )
            value = tl.load(x + token.to(tl.int64) * K + at, mask=at < K, other=0.0)
            total = tl.sum(factor.to(tl.float32) * value.to(tl.float32)[None, :], axis=1)
            to = (share * tokens + token).to(tl.int64) * WIDTH + part * RANK + term
            tl.store(inner + to, total, mask=term < RANK)


@triton.jit(do_not_specialize=["tokens"])
def _expand_few_kernel(
    out, second, ranks, slots, inner, tokens,
    N: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, TERMS: tl.constexpr,
    SHARES: tl.constexpr, SHARES_PADDED: tl.constexpr, OUTPUTS: tl.constexpr,
    END0: tl.constexpr, END1: tl.constexpr, HAS_RANKS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    if slot > 0:
        part, start, end = _columns(tl.program_id(1), N, OUTPUTS, END0, END1)
        used = _used_terms(ranks, slot, part, WIDTH, RANK, HAS_RANKS)
        if used > 0:
            term = tl.arange(0, TERMS)
            share = tl.arange(0, SHARES_PADDED)
            from_ = (share * tokens + token).to(tl.int64)[:, None] * WIDTH + part * RANK
            mask = (share < SHARES)[:, None] & (term < RANK)[None, :]
            total = tl.sum(tl.load(inner + from_ + term[None, :], mask=mask, other=0.0), axis=0)
            at = start + tl.arange(0, OUTPUTS)
            inside = at < end
            row = (slot - 1).to(tl.int64) * RANK + term
            factor = tl.load(
                second + row[:, None] * N + at[None, :],
                mask=(term < used)[:, None] & inside[None, :],
                other=0.0,
            )
            added = tl.sum(factor.to(tl.float32) * total[:, None], axis=0)
            to = out + token.to(tl.int64) * N + at
            before = tl.load(to, mask=inside, other=0.0).to(tl.float32)
            tl.store(to, (before + added).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _shrink_tiles_kernel(
    x, first, ranks, slots, inner, tokens,
    K: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, TERMS: tl.constexpr,
    TOKENS: tl.constexpr, INPUTS: tl.constexpr, STEPS: tl.constexpr, PRECISION: tl.constexpr,
    HAS_RANKS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    share, part = tl.program_id(1), tl.program_id(2)
    term = tl.arange(0, TERMS)
    left = tl.load(slots + token, mask=token < tokens, other=0)
    slot = tl.max(left, axis=0)
    while slot > 0:
        mine = left == slot
        used = _used_terms(ranks, slot, part, WIDTH, RANK, HAS_RANKS)
        if used > 0:
            row = (slot - 1).to(tl.int64) * WIDTH + part * RANK + term
            acc = tl.zeros([TOKENS, TERMS], tl.float32)
            for step in range(STEPS):
                at = (share * STEPS + step) * INPUTS + tl.arange(0, INPUTS)
                value = tl.load(
                    x + token.to(tl.int64)[:, None] * K + at[None, :],
                    mask=mine[:, None] & (at < K)[None, :],
                    other=0.0,
                )
                factor = tl.load(
                    first + row[None, :] * K + at[:, None],
                    mask=(term < used)[None, :] & (at < K)[:, None],
                    other=0.0,
                )
                acc = tl.dot(value, factor, acc, input_precision=PRECISION)
            to = (share * tokens + token).to(tl.int64)[:, None] * WIDTH + part * RANK
            tl.store(inner + to + term[None, :], acc, mask=mine[:, None] & (term < RANK)[None, :])
        left = tl.where(mine, 0, left)
        slot = tl.max(left, axis=0)


@triton.jit(do_not_specialize=["tokens"])
def _expand_tiles_kernel(
    out, second, ranks, slots, inner, tokens,
    N: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr, TERMS: tl.constexpr,
    SHARES: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, END0: tl.constexpr,
    END1: tl.constexpr, PRECISION: tl.constexpr, HAS_RANKS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    part, start, end = _columns(tl.program_id(1), N, OUTPUTS, END0, END1)
    term = tl.arange(0, TERMS)
    at = start + tl.arange(0, OUTPUTS)
    inside = at < end
    left = tl.load(slots + token, mask=token < tokens, other=0)
    slot = tl.max(left, axis=0)
    while slot > 0:
        mine = left == slot
        used = _used_terms(ranks, slot, part, WIDTH, RANK, HAS_RANKS)
        if used > 0:
            total = tl.zeros([TOKENS, TERMS], tl.float32)
            for share in range(SHARES):
                from_ = (share * tokens + token).to(tl.int64)[:, None] * WIDTH + part * RANK
                total += tl.load(
                    inner + from_ + term[None, :],
                    mask=mine[:, None] & (term < RANK)[None, :],
                    other=0.0,
                )
            row = (slot - 1).to(tl.int64) * RANK + term
            factor = tl.load(
                second + row[:, None] * N + at[None, :],
                mask=(term < used)[:, None] & inside[None, :],
                other=0.0,
            )
            added = tl.dot(total.to(factor.dtype), factor, input_precision=PRECISION)
            to = out + token.to(tl.int64)[:, None] * N + at[None, :]
            mask = mine[:, None] & inside[None, :]
            before = tl.load(to, mask=mask, other=0.0).to(tl.float32)
            tl.store(to, (before + added).to(out.dtype.element_ty), mask=mask)
        left = tl.where(mine, 0, left)
        slot = tl.max(left, axis=0)


@triton.jit
def _used_terms(
    ranks, slot, part, WIDTH: tl.constexpr, RANK: tl.constexpr, HAS_RANKS: tl.constexpr
):
    """How many terms of a slot's part are no filler; where it is 0, `inner` is not written either."""
    return tl.load(ranks + (slot - 1) * (WIDTH // RANK) + part) if HAS_RANKS else RANK


@triton.jit
def _columns(tile, N: tl.constexpr, OUTPUTS: tl.constexpr, END0: tl.constexpr, END1: tl.constexpr):
    """(part, first column, end of the part's columns) of a tile; tiles are counted over the parts."""
    tiles0: tl.constexpr = (END0 + OUTPUTS - 1) // OUTPUTS
    tiles1: tl.constexpr = tiles0 + (END1 - END0 + OUTPUTS - 1) // OUTPUTS
    part = (tile >= tiles0).to(tl.int32) + (tile >= tiles1).to(tl.int32)
    before = tl.where(part == 0, 0, tl.where(part == 1, tiles0, tiles1))
    base = tl.where(part == 0, 0, tl.where(part == 1, END0, END1))
    end = tl.where(part == 0, END0, tl.where(part == 1, END1, N))
    return part, base + (tile - before) * OUTPUTS, end
