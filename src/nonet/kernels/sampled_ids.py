"""Ids that were sampled and not read yet, where the host could only write a reference to them: plain torch."""

from __future__ import annotations

import torch

__all__ = ["take_sampled"]


def take_sampled(token_ids: torch.Tensor, sampled: torch.Tensor) -> None:
    """See `Ops.take_sampled`.

    >>> ids = torch.tensor([5, -2, -1], dtype=torch.int32)
    >>> take_sampled(ids, torch.tensor([7, 8]))
    >>> ids.tolist()
    [5, 8, 7]
    """
    at = (token_ids < 0).nonzero().squeeze(1)
    taken = sampled[-1 - token_ids[at].long()].clamp(min=0)
    token_ids[at] = taken.to(token_ids.dtype)
