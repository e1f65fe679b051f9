"""Choosing a token for each row of logits in one launch, without the host: argmax, and a draw from a cut distribution.

A program takes a row and walks over it as often as it must; a row of 128k logits stays in the L2 cache. Where top-k and
top-p cut is found by bisection: over the bits of the logits, which are ordered as integers are, so the threshold is
exact. Equal logits stand in the order of their ids, as everywhere else. Each row is summed in one fixed order.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["TritonSampling"]

BLOCK = 8192
WARPS = 16
# A program for each row fills the device from here on; below, each row is dealt out over several.
MANY_ROWS = 64
PARTS = 16


class TritonSampling:
    """Implements `kernels.ops.SamplingKernels`."""

    def argmax(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count, width = values.shape
        parts = 1 if count >= MANY_ROWS else PARTS
        block = _block(-(-width // parts))
        ids = torch.empty(count, parts, dtype=torch.int64, device=values.device)
        largest = torch.empty(count, parts, dtype=torch.float32, device=values.device)
        if not count:
            return ids[:, 0], largest[:, 0]
        share = triton.cdiv(triton.cdiv(width, parts), block) * block
        _argmax[(count, parts)](
            values,
            values.stride(0),
            ids,
            largest,
            WIDTH=width,
            SHARE=share,
            PARTS=parts,
            BLOCK=block,
            num_warps=WARPS,
        )
        if parts > 1:
            _best_part[(count,)](ids, largest, PARTS=parts, num_warps=1)
        return ids[:, 0], largest[:, 0]

    def draw(
        self,
        logits: torch.Tensor,
        uniform: torch.Tensor,
        min_p: torch.Tensor,
        top_k: torch.Tensor,
        top_p: torch.Tensor,
    ) -> torch.Tensor:
        count, width = logits.shape
        ids = torch.empty(count, dtype=torch.int64, device=logits.device)
        if count:
            _draw[(count,)](
                logits,
                logits.stride(0),
                uniform,
                min_p,
                top_k,
                top_p,
                ids,
                WIDTH=width,
                BLOCK=_block(width),
                num_warps=WARPS,
            )
        return ids


def _block(width: int) -> int:
    return int(min(BLOCK, triton.next_power_of_2(width)))


@triton.jit
def _argmax(
    values, stride, ids, largest,
    WIDTH: tl.constexpr, SHARE: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK], tl.int32) + part * SHARE
    for start in range(part * SHARE, part * SHARE + SHARE, BLOCK):
        at = start + lane
        value = tl.load(values + row * stride + at, mask=at < WIDTH, other=float("-inf"))
        value = tl.where(value != value, float("inf"), value)
        place = tl.where(value > best, start, place)
        best = tl.maximum(best, value)
    high = tl.max(best, 0)
    id_ = tl.min(tl.where(best == high, place + lane, WIDTH), 0)
    tl.store(ids + row * PARTS + part, tl.minimum(id_, WIDTH - 1).to(tl.int64))
    tl.store(largest + row * PARTS + part, high)


@triton.jit
def _best_part(ids, largest, PARTS: tl.constexpr):
    """The first entry of each row becomes the best of its parts."""
    row = tl.program_id(0).to(tl.int64)
    at = row * PARTS + tl.arange(0, PARTS)
    value, id_ = tl.load(largest + at), tl.load(ids + at)
    high = tl.max(value, 0)
    first = tl.min(tl.where(value == high, id_, 1 << 40), 0)
    tl.debug_barrier()
    tl.store(ids + row * PARTS, first)
    tl.store(largest + row * PARTS, high)


@triton.jit
def _draw(
    logits, stride, uniform, min_p, top_k, top_p, ids, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    number = tl.program_id(0)
    row = logits + number.to(tl.int64) * stride
    high = _highest(row, WIDTH, BLOCK)
    least = tl.load(min_p + number)
    most = tl.load(top_k + number)
    share = tl.load(top_p + number)
    # What is kept: everything above the key `floor`, and the first `ties` of the entries that equal it.
    top = _key(high)
    floor = tl.full([], -2147483648, tl.int64)
    ties = tl.full([], WIDTH, tl.int32)
    if (most > 0) & (most < WIDTH):
        low, above = floor, top + 1
        while above - low > 1:
            middle = (low + above) >> 1
            if _count(row, high, least, middle, WIDTH, BLOCK) >= most:
                low = middle
            else:
                above = middle
        floor = low
        ties = most - _count(row, high, least, floor + 1, WIDTH, BLOCK)
    if share < 1.0:
        tie_mass = _tie_mass(row, high, least, floor, ties, WIDTH, BLOCK)
        needed = (_mass(row, high, least, floor + 1, WIDTH, BLOCK) + tie_mass) * share
        low, above = floor, top + 1
        while above - low > 1:
            middle = (low + above) >> 1
            if _mass(row, high, least, middle, WIDTH, BLOCK) >= needed:
                low = middle
            else:
                above = middle
        missing = needed - _mass(row, high, least, low + 1, WIDTH, BLOCK)
        each = _weight_of(low, high)
        wanted = tl.maximum(tl.ceil(missing / tl.maximum(each, 1e-37)), 1.0)
        ties = tl.minimum(wanted, tl.where(low == floor, ties, WIDTH).to(tl.float32)).to(tl.int32)
        floor = low
    tie_mass = _tie_mass(row, high, least, floor, ties, WIDTH, BLOCK)
    total = _mass(row, high, least, floor + 1, WIDTH, BLOCK) + tie_mass
    target = (tl.load(uniform + number) * total.to(tl.float64)).to(tl.float32)
    chosen = _at(row, high, least, floor, ties, target, WIDTH, BLOCK)
    tl.store(ids + number, chosen.to(tl.int64))


@triton.jit
def _highest(row, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        at = start + lane
        best = tl.maximum(best, tl.load(row + at, mask=at < WIDTH, other=float("-inf")))
    return tl.max(best, 0)


@triton.jit
def _key(value):
    """int64 that is ordered as the float32 is."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)  # + 0.0 makes -0.0 equal to 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _weight_of(key, high):
    """exp(value - high) of the value with that key."""
    bits = key.to(tl.int32)
    value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return tl.exp(value - high)


@triton.jit
def _entries(row, high, least, start, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """(key, weight) [BLOCK] of the entries from `start` on; weight 0 where min-p or the end of the row leaves none."""
    at = start + tl.arange(0, BLOCK)
    value = tl.load(row + at, mask=at < WIDTH, other=float("-inf"))
    weight = tl.exp(value - high)
    return _key(value), tl.where(weight >= least, weight, 0.0)


@triton.jit
def _count(row, high, least, floor, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """How many entries have at least the key `floor`."""
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, WIDTH, BLOCK):
        key, weight = _entries(row, high, least, start, WIDTH, BLOCK)
        count += ((key >= floor) & (weight > 0)).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def _mass(row, high, least, floor, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The weight of the entries that have at least the key `floor`."""
    mass = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        key, weight = _entries(row, high, least, start, WIDTH, BLOCK)
        mass += tl.where(key >= floor, weight, 0.0)
    return tl.sum(mass, 0)


@triton.jit
def _tie_mass(row, high, least, floor, ties, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The weight of the first `ties` entries that have the key `floor`."""
    count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, WIDTH, BLOCK):
        key, weight = _entries(row, high, least, start, WIDTH, BLOCK)
        count += ((key == floor) & (weight > 0)).to(tl.int32)
    held = tl.minimum(tl.sum(count, 0), ties)
    return tl.where(held > 0, held.to(tl.float32) * _weight_of(floor, high), 0.0)


@triton.jit
def _at(row, high, least, floor, ties, target, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The first kept entry, in the order of ids, at which the running weight passes `target`; the last one at least."""
    lane = tl.arange(0, BLOCK)
    chosen = tl.full([], WIDTH, tl.int32)
    final = tl.zeros([], tl.int32)
    before = tl.zeros([], tl.float32)
    ties_before = tl.zeros([], tl.int32)
    for start in range(0, WIDTH, BLOCK):
        key, weight = _entries(row, high, least, start, WIDTH, BLOCK)
        equal = (key == floor) & (weight > 0)
        rank = ties_before + tl.cumsum(equal.to(tl.int32), 0)
        kept = (weight > 0) & ((key > floor) | (equal & (rank <= ties)))
        mine = tl.where(kept, weight, 0.0)
        passed = kept & (before + tl.cumsum(mine, 0) > target)
        chosen = tl.minimum(chosen, tl.min(tl.where(passed, start + lane, WIDTH), 0))
        final = tl.maximum(final, tl.max(tl.where(kept, start + lane, 0), 0))
        before += tl.sum(mine, 0)
        ties_before += tl.sum(equal.to(tl.int32), 0)
    return tl.where(chosen < WIDTH, chosen, final)
