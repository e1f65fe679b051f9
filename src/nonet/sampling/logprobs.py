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

__all__ = ["LogprobTensors", "measure", "prompt_logprobs"]


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """What `measure` found, still on the device: ids, logprobs, ranks [R]; top_ids, top_logprobs [R, N]."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor

    def read(self, num_top: Sequence[int]) -> list[TokenLogprob]:
        """To the host, with the first `num_top` alternatives of each row."""
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
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, ids[:, None])
    ranks = (logprobs > chosen).sum(-1) + 1
    top_logprobs, top_ids = _top(logprobs, min(num_top, logits.shape[1]))
    return LogprobTensors(ids, chosen.squeeze(1), ranks, top_ids, top_logprobs)


def prompt_logprobs(
    logits: torch.Tensor, target_ids: Sequence[int], num_top: int
) -> list[TokenLogprob]:
    """Of each token `target_ids[i]` under row i of logits [T, V]; a few rows at a time, so that memory stays small."""
    results: list[TokenLogprob] = []
    with torch.inference_mode():
        for start in range(0, len(target_ids), _ROWS_AT_ONCE):
            part = target_ids[start : start + _ROWS_AT_ONCE]
            ids = torch.tensor(part, device=logits.device)
            found = measure(logits[start : start + len(part)], ids, num_top)
            results += found.read([num_top] * len(part))
    return results


_ROWS_AT_ONCE = 32


def _top(logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` best of each row [R, count] and their ids, exact in ties."""
    if count == 0:
        empty = logprobs[:, :0]
        return empty, empty.long()
    for depth in depths(logprobs.shape[1], logprobs.device):
        values, ids = best(logprobs, depth)
        is_exact = depth == logprobs.shape[1] or (
            depth > count and bool((values[:, count - 1] > values[:, -1]).all())
        )
        if is_exact:
            break
    return values[:, :count], ids[:, :count]
