"""Log probabilities that are reported to the caller.

They are those of the model itself: taken from the logits before bias, penalties, temperature and truncation. The rank
of a token is 1 plus the number of tokens strictly more likely; alternatives are ordered by falling log probability,
then by rising id.

Shapes: R rows, V vocabulary, N alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nonet.core.outputs import TokenLogprob
from nonet.sampling.ranking import depths
from nonet.sampling.rowwise import best
from nonet.sampling.upload import upload

__all__ = ["LogprobTensors", "measure", "prompt_logprobs"]


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """What `measure` found: ids, logprobs, ranks [R]; top_ids, top_logprobs [R, N]."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    def to_host(self) -> LogprobTensors:
        """Copies that begin now; they hold nothing before the device has got there."""
        there = (self.ids, self.logprobs, self.ranks, self.top_ids, self.top_logprobs)
        return LogprobTensors(*(one.to("cpu", non_blocking=True) for one in there))

    def read(self, num_top: Sequence[int]) -> list[TokenLogprob]:
        """For the caller, with the first `num_top` alternatives of each row."""
        columns = zip(
            self.ids.tolist(),
            self.logprobs.tolist(),
            self.ranks.tolist(),
            self.top_ids.tolist(),
            self.top_logprobs.tolist(),
            num_top,
            strict=True,
        )
        return [
            TokenLogprob(token_id, logprob, rank, list(zip(ids[:n], values[:n], strict=True)))
            for token_id, logprob, rank, ids, values, n in columns
        ]


def measure(logits: torch.Tensor, ids: torch.Tensor, num_top: int) -> LogprobTensors:
    """Log probabilities of `ids` [R] under logits [R, V], with the `num_top` best alternatives."""
    vocab_size = logits.shape[1]
    rows = max(1, _VALUES_AT_ONCE // vocab_size)
    parts = [
        _measure(some, some_ids, min(num_top, vocab_size))
        for some, some_ids in zip(torch.split(logits, rows), torch.split(ids, rows), strict=True)
    ]
    return LogprobTensors(ids, *(torch.cat(column) for column in zip(*parts, strict=True)))


def prompt_logprobs(
    logits: torch.Tensor, target_ids: Sequence[int], num_top: int
) -> list[TokenLogprob]:
    """Of each token `target_ids[i]` under row i of logits [T, V], with `num_top` alternatives."""
    if not target_ids:
        return []
    with torch.inference_mode():
        ids = upload(target_ids, logits.device)
        return measure(logits, ids, num_top).read([num_top] * len(target_ids))


# Rows are taken in parts of this size (8 MiB), which the allocator keeps; larger ones are paged in anew each time.
_VALUES_AT_ONCE = 1 << 21


def _measure(
    logits: torch.Tensor, ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, ids[:, None])
    # Counting in float32 vectorises, and is exact below 2**24.
    is_above = torch.gt(logprobs, chosen, out=torch.empty_like(logprobs))
    ranks = is_above.sum(-1).long() + 1
    return chosen.squeeze(1), ranks, *_top(logprobs, num_top)


def _top(logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log probabilities [R, count] of the `count` best of each row, exact in ties."""
    if count == 0:
        empty = logprobs[:, :0]
        return empty.long(), empty
    for depth in depths(logprobs.shape[1], logprobs.device):
        values, ids = best(logprobs, depth)
        is_exact = depth == logprobs.shape[1] or (
            depth > count and bool((values[:, count - 1] > values[:, -1]).all())
        )
        if is_exact:
            break
    return ids[:, :count], values[:, :count]
