"""Fast row-by-row primitives over the vocabulary: argmax, the best few, and a draw by inverse CDF.

Each row's result is the same to the last bit whatever the other rows are: sums run over groups of fixed size and then
in order, never in a way that depends on the batch or on the number of threads.

Shapes: R rows, V vocabulary, W candidates.
"""

from __future__ import annotations

import torch

__all__ = ["argmax", "best", "draw"]


def argmax(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [R] of the largest values [R, V], the lowest id of a tie, and those values [R]; NaN counts as largest.

    Group maxima first: they vectorise, which an argmax over the whole row does not.
    """
    groups = _grouped(values, _SUM_GROUP, float("-inf"))
    group = groups.amax(-1).argmax(-1)
    members = _group_at(groups, group)
    offset = members.argmax(-1)
    ids = group * _SUM_GROUP + offset
    return ids, members.gather(1, offset[:, None]).squeeze(1)


def best(values: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `width` largest of values [R, V] and their ids, ordered by falling value, then by rising id.

    With width < V, entries equal to the last one may have left out equal values of lower id; those above it are exact.
    """
    size = values.shape[1]
    if width >= size:
        ordered, ids = torch.sort(values, dim=-1, descending=True, stable=True)
        return ordered, ids
    candidates, ids = _candidates(values, width)
    _, which = candidates.topk(width, dim=-1, sorted=False)
    ids = ids.gather(1, which)
    keys = _sort_keys(candidates.gather(1, which), ids)
    ids = _LOW_WORD - (torch.sort(keys, dim=-1, descending=True).values & _LOW_WORD)
    return values.gather(1, ids), ids


def draw(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Ids [R] with probability proportional to weights [R, V], by inverse CDF of uniform [R] (float64) in id order.

    Never an id of weight 0, unless a whole row is 0 or not finite; then the id is any valid one.
    """
    groups = _grouped(weights, _SUM_GROUP, 0.0)
    sums = groups.sum(-1).double().cumsum(-1)
    target = uniform * sums[:, -1]
    last_group = sums.shape[1] - 1
    group = (sums <= target[:, None]).sum(-1).clamp_(max=last_group)
    before = torch.where(
        group > 0, sums.gather(1, (group - 1).clamp_(min=0)[:, None]).squeeze(1), 0.0
    )
    members = _group_at(groups, group)
    inner = members.double().cumsum(-1)
    offset = (inner <= (target - before)[:, None]).sum(-1)
    # The group's sum and its running sum round differently, so the target may lie past the end by an ulp.
    positions = torch.arange(_SUM_GROUP, device=weights.device)
    last = torch.where(members > 0, positions, 0).amax(-1)
    ids = group * _SUM_GROUP + torch.minimum(offset, last)
    return ids.clamp_(max=weights.shape[1] - 1)


_SUM_GROUP = 64
_BEST_GROUP = 32
_LOW_WORD = 0xFFFFFFFF


def _grouped(values: torch.Tensor, group: int, fill: float) -> torch.Tensor:
    """values [R, V] as [R, ceil(V / group), group]; a copy only when V is not a multiple of the group."""
    missing = -values.shape[1] % group
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=fill)
    return values.reshape(values.shape[0], -1, group)


def _group_at(groups: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    wanted = index[:, None, None].expand(-1, 1, groups.shape[2])
    return groups.gather(1, wanted).squeeze(1)


def _candidates(values: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A part of each row [R, C] and its ids, holding every value above the `width`-th largest.

    At most width - 1 groups have a maximum above that value, so the width groups of largest maximum hold them all.
    """
    num_groups = -(-values.shape[1] // _BEST_GROUP)
    if width >= num_groups:
        return values, torch.arange(values.shape[1], device=values.device).expand_as(values)
    groups = _grouped(values, _BEST_GROUP, float("-inf"))
    _, chosen = groups.amax(-1).topk(width, dim=-1, sorted=False)
    part = groups.gather(1, chosen[:, :, None].expand(-1, -1, _BEST_GROUP)).flatten(1)
    offsets = torch.arange(_BEST_GROUP, device=values.device)
    ids = (chosen[:, :, None] * _BEST_GROUP + offsets).flatten(1)
    return part, ids.clamp_(max=values.shape[1] - 1)  # padding; seen only where a row ends in -inf


def _sort_keys(values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """int64 keys whose falling order is falling float32 value, then rising id."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats as integers of the same order
    return (ordered.long() << 32) | (_LOW_WORD - ids)
