"""The order of a row's tokens by probability, as far down as truncation has to look.

Tokens are ranked by falling probability, equal ones by rising id. Every truncation keeps a beginning of that ranking,
so its answer is one number per row. Most rows are settled within the first hundred tokens; those that are not are
ranked again deeper, and only the last resort sorts the whole vocabulary. Running sums go in rank order, so a row's
result has the same bits at any depth.

Shapes: R rows, V vocabulary, W ranked tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.sampling.rowwise import best

__all__ = ["Ranking", "depths", "rank"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The W most likely tokens of each row.

    ids, probabilities [R, W]; cumulative [R, W]: float64 running sums of the probabilities; is_complete [R]: all tokens
    with any probability are among the W.
    """

    ids: torch.Tensor
    probabilities: torch.Tensor
    cumulative: torch.Tensor
    is_complete: torch.Tensor
    vocab_size: int

    @property
    def depth(self) -> int:
        return self.ids.shape[1]

    def select(self, rows: torch.Tensor) -> Ranking:
        """The rows where the mask `rows` [R] is true."""
        return Ranking(
            self.ids[rows],
            self.probabilities[rows],
            self.cumulative[rows],
            self.is_complete[rows],
            self.vocab_size,
        )

    def mass(self, kept: torch.Tensor) -> torch.Tensor:
        """Probability [R] of the first `kept` [R] tokens; 1 when all are kept."""
        last = kept.clamp(max=self.depth) - 1
        inside = self.cumulative.gather(1, last[:, None]).squeeze(1)
        return torch.where(kept >= self.vocab_size, 1.0, inside)

    def is_known(self, kept: torch.Tensor) -> torch.Tensor:
        """Rows [R] where this ranking is deep enough to say what the first `kept` tokens are, or where all are kept."""
        return self.is_complete | (kept < self.depth) | (kept >= self.vocab_size)

    def is_settled(self, kept: torch.Tensor) -> torch.Tensor:
        """Rows [R] where the first `kept` tokens are ranked exactly, ties included."""
        last = (kept.clamp(max=self.depth) - 1)[:, None]
        above = self.probabilities.gather(1, last).squeeze(1) > self.probabilities[:, -1]
        return self.is_complete | ((kept < self.depth) & above)

    def draw(self, kept: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Ids [R] drawn from the first `kept` tokens by inverse CDF in rank order."""
        last = kept.clamp(max=self.depth) - 1
        target = uniform * self.cumulative.gather(1, last[:, None]).squeeze(1)
        which = torch.minimum((self.cumulative <= target[:, None]).sum(-1), last)
        return self.ids.gather(1, which[:, None]).squeeze(1)

    def distribution(self, kept: torch.Tensor) -> torch.Tensor:
        """The probabilities [R, V] that `draw` draws from."""
        last = kept.clamp(max=self.depth) - 1
        places = torch.arange(self.depth, device=kept.device)
        inside = torch.where(places <= last[:, None], self.probabilities, 0.0)
        inside = (inside / self.cumulative.gather(1, last[:, None])).to(inside.dtype)
        full = torch.zeros(len(kept), self.vocab_size, device=kept.device, dtype=inside.dtype)
        return full.scatter_(1, self.ids, inside)


def rank(probabilities: torch.Tensor, depth: int) -> Ranking:
    """The `depth` most likely tokens of each row of probabilities [R, V]."""
    vocab_size = probabilities.shape[1]
    values, ids = best(probabilities, depth)
    is_complete = values[:, -1] == 0.0 if depth < vocab_size else torch.ones_like(ids[:, 0]).bool()
    return Ranking(ids, values, values.double().cumsum(-1), is_complete, vocab_size)


def depths(vocab_size: int, device: torch.device) -> tuple[int, ...]:
    """How deep to rank, in the order tried.

    Going deeper depends on values, which the host can read at no cost on a CPU only; elsewhere all is ranked at once.
    """
    if device.type != "cpu":
        return (vocab_size,)
    return (*(depth for depth in _DEPTHS if depth < vocab_size), vocab_size)


_DEPTHS = (128, 2048)
