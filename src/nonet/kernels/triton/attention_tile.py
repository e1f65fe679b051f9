"""One tile of keys and values: where it lies in the paged cache, and how it is folded into a running softmax.

FlashAttention's recurrence (arXiv 2205.14135, 2307.08691) in base 2: `high` is the largest score so far times
log2(e), `total` the sum of 2 ** (score - high), `acc` the same sum over values. Rows that see nothing keep
high = -inf and total = 0.

Keys and values may be codes (kernels/triton/cache.py): they are multiplied as they are, for a 16-bit float holds each
exactly; a key's scale goes to its scores, a value's scale to its weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "LOG2_E",
    "block_ids",
    "entry_offsets",
    "entry_scales",
    "fold",
    "fold_tiles",
    "group_rows",
    "head_width",
    "live_entries",
    "seqs_searched",
    "visible_entries",
    "weigh",
]

LOG2_E = tl.constexpr(1.4426950408889634)
LIFT = tl.constexpr(256.0)


def head_width(dim: int) -> int:
    """Numbers of a head that a program holds, a power of two: products sum over 16 at least, of codes over half a head.

    >>> [head_width(dim) for dim in (8, 64, 80)]
    [32, 64, 128]
    """
    return int(max(32, triton.next_power_of_2(dim)))


def seqs_searched(num_seqs: int) -> int:
    """Sequences that a program looks through for its own: few numbers, for each is a kernel of its own to compile.

    >>> [seqs_searched(num_seqs) for num_seqs in (1, 64, 65, 512, 513)]
    [64, 64, 512, 512, 1024]
    """
    return 64 if num_seqs <= 64 else max(512, triton.next_power_of_2(num_seqs))


@triton.jit
def block_ids(table, start, stop, P: tl.constexpr, TILE: tl.constexpr):
    """Blocks of a sequence's entries from `start` on, a multiple of TILE: one if a block holds the tile, else [TILE].

    Loops load them one tile ahead: the compiler then need not wait for them before it asks for keys. Entries from
    `stop` on are said to be in the null block.
    """
    entry = start
    if P % TILE != 0:
        entry += tl.arange(0, TILE)
    return tl.load(table + entry // P, mask=entry < stop, other=0)


@triton.jit
def entry_offsets(
    blocks, start, head, K: tl.constexpr, P: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr
):
    """Element offsets [TILE] in a cache [blocks, K, P, D] of the entries from `start` on."""
    entry = tl.arange(0, TILE)
    within = start % P + entry
    if P % TILE != 0:
        within = (start + entry) % P
    return (blocks.to(tl.int64) * K + head) * (P * D) + within * D


@triton.jit
def entry_scales(
    key_scales, value_scales, blocks, start, head, live,
    K: tl.constexpr, P: tl.constexpr, TILE: tl.constexpr, IS_CODED: tl.constexpr,
):  # fmt: skip
    """float32 [TILE] of keys and of values, zero for entries that are not `live`; numbers have none."""
    if IS_CODED:
        at = entry_offsets(blocks, start, head, K, P, 1, TILE)
        k_scale = tl.load(key_scales + at, mask=live, other=0.0).to(tl.float32)
        v_scale = tl.load(value_scales + at, mask=live, other=0.0).to(tl.float32)
    else:
        k_scale, v_scale = 0.0, 0.0
    return k_scale, v_scale


@triton.jit
def live_entries(start, stop, oldest, TILE: tl.constexpr):
    """Boolean [TILE]: entries from `start` on that are there and that some query may see.

    Freed and unwritten entries may hold NaN, and 0 * NaN would reach the result.
    """
    entry = start + tl.arange(0, TILE)
    return (entry < stop) & (entry >= oldest)


@triton.jit
def group_rows(ROWS: tl.constexpr, GROUP: tl.constexpr):
    """Query rows of one KV head: (query, head within the group) of each; all heads of a query are neighbours."""
    row = tl.arange(0, ROWS)
    return row // GROUP, row % GROUP


@triton.jit
def visible_entries(position, start, window, TILE: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Boolean [ROWS, TILE]: what the queries at `position` [ROWS] see of the entries from `start` on."""
    entry = start + tl.arange(0, TILE)[None, :]
    seen = entry <= position[:, None]
    if HAS_WINDOW:
        seen = seen & (entry > position[:, None] - window)
    return seen


@triton.jit
def fold(
    q,
    k,
    v,
    k_scale,
    v_scale,
    seen,
    acc,
    high,
    total,
    scale,
    softcap,
    MASKED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_CODED: tl.constexpr,
):
    """Take one tile into (acc, high, total)."""
    if IS_CODED and q.dtype == tl.bfloat16:
        # Codes become float16 in one instruction, bfloat16 in three; both hold them exactly.
        q = q.to(tl.float16)
    scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
    if IS_CODED:
        scores = scores * k_scale[None, :]
    weights, shrink, high, total = weigh(
        scores, seen, high, total, scale, softcap, MASKED, HAS_SOFTCAP
    )
    if IS_CODED:
        # Scales are small: lifted, so that their products stay among float16's normal numbers.
        weights = weights * (v_scale * LIFT)[None, :]
        part = tl.dot(weights.to(q.dtype), v.to(q.dtype), input_precision=PRECISION)
        acc = acc * shrink[:, None] + part * (1.0 / LIFT)
    else:
        acc = tl.dot(
            weights.to(q.dtype), v.to(q.dtype), acc * shrink[:, None], input_precision=PRECISION
        )
    return acc, high, total


@triton.jit
def weigh(
    scores, seen, high, total, scale, softcap, MASKED: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """One tile's step of the softmax: (weights [ROWS, TILE], what older sums shrink by, high, total)."""
    factor = scale * LOG2_E
    if HAS_SOFTCAP:
        # softcap * tanh(y), with tanh(y) = 1 - 2 / (1 + exp(2 y))
        scores = softcap - 2 * softcap / (1 + tl.exp(scores * (2 * scale / softcap)))
        factor = LOG2_E
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_high = tl.maximum(high, tl.max(scores, 1) * factor)
    base = new_high
    if MASKED:
        base = tl.where(new_high == float("-inf"), 0.0, new_high)
    weights = tl.exp2(scores * factor - base[:, None])
    shrink = tl.exp2(high - base)
    return weights, shrink, new_high, total * shrink + tl.sum(weights, 1)


@triton.jit
def fold_tiles(
    q_tile, position, keys, values, table, blocks, head, start, stop, length, oldest,
    scale, softcap, window,
    K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr, STRIDE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(acc, high, total) of a sequence's queries over the tiles that begin at `start`, `start` + STRIDE, ... < `stop`.

    `blocks` are the first tile's block ids; `length` entries are there, of which no query sees one before `oldest`.
    Of numbers; for codes there is `attention_coded`.
    """
    lane = tl.arange(0, BLOCK_D)[None, :]
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for at in range(start, stop, STRIDE):
        place = entry_offsets(blocks, at, head, K, P, D, TILE)[:, None] + lane
        wide = live_entries(at, length, oldest, TILE)[:, None] & (lane < D)
        blocks = block_ids(table, at + STRIDE, length, P, TILE)
        k = tl.load(keys + place, mask=wide, other=0.0)
        v = tl.load(values + place, mask=wide, other=0.0)
        seen = visible_entries(position, at, window, TILE, HAS_WINDOW)
        acc, high, total = fold(
            q_tile, k, v, 0.0, 0.0, seen, acc, high, total, scale, softcap,
            True, HAS_SOFTCAP, PRECISION, False,
        )  # fmt: skip
    return acc, high, total
