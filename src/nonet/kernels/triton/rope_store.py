"""Between the fused projection and attention: norms on heads, rotation, and the write to the KV cache, in one pass.

The cache is [blocks, K, P, D]: the entries of one head in one block are contiguous, which is what attention reads. In a
format, an entry is rounded here: its scale comes from its own numbers, in float32 as they are after rotation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nonet.kernels.ops import AttentionInputs, LayerCache, QKVLayout
from nonet.kernels.triton.cache import encode, entry_scale, largest_code
from nonet.kernels.triton.chained import chain, let_next_begin, wait_for_last
from nonet.kernels.triton.scaled import Scaled, load_scaled, open_product

__all__ = ["rope_store"]

# With many tokens, larger programs: fewer of them are launched. With few, small ones: more are in flight.
MANY_TOKENS = 256
HEADS_WITH_MANY = 16
HEADS_WITH_FEW = 4


def rope_store(
    qkv: torch.Tensor | Scaled,
    layout: QKVLayout,
    cos_sin: torch.Tensor,
    cache: LayerCache,
    inputs: AttentionInputs,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    eps: float,
    is_chained: bool = False,
) -> torch.Tensor:
    """Rotates q in place, stores k and v; returns a strided view [T, H * D] of qkv."""
    heads, kv_heads, dim = layout.num_heads, layout.num_kv_heads, layout.head_dim
    numbers, rows, columns, is_scaled = open_product(qkv)
    tokens = numbers.shape[0]
    if tokens:
        each = HEADS_WITH_MANY if tokens >= MANY_TOKENS else HEADS_WITH_FEW
        grid = (tokens, triton.cdiv(heads + 2 * kv_heads, each))
        _rope_store[grid](
            numbers,
            rows,
            columns,
            cos_sin,
            cache.keys,
            cache.values,
            cache.key_scales,
            cache.value_scales,
            inputs.positions,
            inputs.slots,
            q_norm if q_norm is not None else cos_sin,
            k_norm if k_norm is not None else cos_sin,
            eps,
            H=heads,
            K=kv_heads,
            D=dim,
            P=cache.block_size,
            HALF=triton.next_power_of_2(dim // 2),
            HEADS=each,
            Q_NORM=q_norm is not None,
            K_NORM=k_norm is not None,
            LARGEST=largest_code(cache),
            SCALED=is_scaled,
            CHAINED=is_chained,
            num_warps=2 if dim <= 128 else 4,
            **chain(is_chained),
        )
    return numbers[:, : heads * dim]


@triton.jit
def _rope_store(
    qkv, rows, columns, cos_sin, keys, values, key_scales, value_scales, positions, slots, q_norm, k_norm, eps,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, P: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, LARGEST: tl.constexpr, SCALED: tl.constexpr,
    CHAINED: tl.constexpr,
):  # fmt: skip
    wait_for_last(CHAINED)
    let_next_begin(CHAINED)
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    lane = tl.arange(0, HALF)
    inside = (head[:, None] < H + 2 * K) & (lane[None, :] < D // 2)
    row = qkv + token.to(tl.int64) * ((H + 2 * K) * D)
    at = head[:, None] * D + lane[None, :]
    width: tl.constexpr = (H + 2 * K) * D
    long_token = token.to(tl.int64)
    first = load_scaled(qkv, long_token, at, rows, columns, width, inside, SCALED)
    second = load_scaled(qkv, long_token, at + D // 2, rows, columns, width, inside, SCALED)
    is_q = head < H
    is_k = (head >= H) & (head < H + K)
    if Q_NORM:
        first, second = _norm(first, second, q_norm, is_q, lane, eps, row, D)
    if K_NORM:
        first, second = _norm(first, second, k_norm, is_k, lane, eps, row, D)
    angle = cos_sin + position * D + lane
    turned = (is_q | is_k)[:, None]
    cos = tl.where(turned, tl.load(angle, mask=lane < D // 2, other=0.0)[None, :], 1.0)
    sin = tl.where(turned, tl.load(angle + D // 2, mask=lane < D // 2, other=0.0)[None, :], 0.0)
    turned_first = first * cos - second * sin
    turned_second = second * cos + first * sin
    _store(row + at, turned_first, turned_second, inside & is_q[:, None], D)
    is_v = (head >= H + K) & (head < H + 2 * K)
    kept = inside & (slot >= 0)
    kept_k, kept_v = kept & is_k[:, None], kept & is_v[:, None]
    kv_head = tl.where(is_k, head - H, head - H - K)[:, None]
    entry = (slot // P * K + kv_head) * P + slot % P
    place = entry * D + lane[None, :]
    if LARGEST == 0:
        _store(keys + place, turned_first, turned_second, kept_k, D)
        _store(values + place, turned_first, turned_second, kept_v, D)
    else:
        scale = entry_scale(turned_first, turned_second, LARGEST)
        first_code = encode(turned_first, scale, keys, LARGEST)
        second_code = encode(turned_second, scale, keys, LARGEST)
        _store(keys + place, first_code, second_code, kept_k, D)
        _store(values + place, first_code, second_code, kept_v, D)
        _store_scales(key_scales + entry, scale, is_k & (slot >= 0))
        _store_scales(value_scales + entry, scale, is_v & (slot >= 0))


@triton.jit
def _norm(first, second, weight, mine, lane, eps, like, D: tl.constexpr):
    """RMSNorm of the heads that are `mine`, rounded as if it were an operation of its own."""
    mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D
    scale = tl.rsqrt(mean + eps)[:, None]
    w_first = tl.load(weight + lane, mask=lane < D // 2, other=0.0)[None, :]
    w_second = tl.load(weight + D // 2 + lane, mask=lane < D // 2, other=0.0)[None, :]
    dtype = like.dtype.element_ty
    normed_first = (first * scale * w_first).to(dtype).to(tl.float32)
    normed_second = (second * scale * w_second).to(dtype).to(tl.float32)
    return tl.where(mine[:, None], normed_first, first), tl.where(
        mine[:, None], normed_second, second
    )


@triton.jit
def _store(place, first, second, mask, D: tl.constexpr):
    tl.store(place, first.to(place.dtype.element_ty), mask=mask)
    tl.store(place + D // 2, second.to(place.dtype.element_ty), mask=mask)


@triton.jit
def _store_scales(place, scale, mine):
    """float32 [HEADS, 1] to the places [HEADS, 1] of the heads that are `mine` [HEADS]."""
    tl.store(place, scale.to(tl.bfloat16), mask=mine[:, None])
