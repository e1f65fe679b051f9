"""Puts ids that were sampled on the device where the host could only write a reference to them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["take_sampled"]


def take_sampled(token_ids: torch.Tensor, sampled: torch.Tensor) -> None:
    """token_ids int32 [T], in place: -(n + 1) becomes sampled[n] (int64 [R]), or 0 where that is no id."""
    count = len(token_ids)
    if count and len(sampled):
        _take_sampled[(triton.cdiv(count, 256),)](token_ids, sampled, count, BLOCK=256, num_warps=2)


@triton.jit(do_not_specialize=["count"])
def _take_sampled(token_ids, sampled, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    reference = tl.load(token_ids + at, mask=at < count, other=0)
    is_unread = reference < 0
    token = tl.load(sampled - (reference.to(tl.int64) + 1), mask=is_unread, other=0)
    tl.store(token_ids + at, tl.maximum(token, 0).to(tl.int32), mask=is_unread)
