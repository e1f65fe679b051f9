"""Exact rejection: a token drafted from q stands or is replaced so that the result is distributed as p.

Idea: the draft x stands with probability min(1, p(x) / q(x)); otherwise the token is drawn from max(0, p - q), scaled
to a sum of 1. What stands and what replaces add up to p, whatever q is, as long as x was really drawn from it. Both are
the final distributions: after bias, penalties, grammar, temperature and truncation. A replaced token is never x, so a
row of drafts stands up to the first whose chosen token differs from it.

For a draft without a distribution (q puts all on x) this is the same as drawing from p and comparing, which is what the
runner does there: the tokens are then those of a run without drafts.
Reference: arXiv 2211.17192 (algorithm 1), arXiv 2302.01318 (theorem 1).
Cost: a pass over the vocabulary for each replaced token.
Good for: drafts drawn at random.
Conflicts: none.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from nonet.sampling.rowwise import draw

__all__ = ["NOTHING_DRAFTED", "Drafted", "accept"]


@dataclass(frozen=True, slots=True)
class Drafted:
    """A token that was guessed for a row, and the distribution [V] it was drawn from; None where it was certain."""

    token_id: int
    distribution: torch.Tensor | None


NOTHING_DRAFTED: Mapping[int, Drafted] = MappingProxyType({})


def accept(
    target: torch.Tensor,
    draft: torch.Tensor,
    draft_ids: torch.Tensor,
    accept_uniform: torch.Tensor,
    residual_uniform: torch.Tensor,
) -> torch.Tensor:
    """The chosen ids [R], given p `target` and q `draft` [R, V] and the ids [R] that were drawn from q.

    The two uniforms [R] (float64) are independent of each other and of what drew the drafts.
    """
    at = draft_ids[:, None]
    p = target.gather(1, at).squeeze(1).double()
    q = draft.gather(1, at).squeeze(1).double()
    replaced = (~(accept_uniform * q < p)).nonzero().squeeze(1)
    if not len(replaced):
        return draft_ids
    wanted = target[replaced]
    missing = (wanted - draft[replaced]).clamp_(min=0.0)
    # p and q that are equal but for rounding leave nothing to draw from.
    missing = torch.where(missing.sum(-1, keepdim=True) > 0.0, missing, wanted)
    return draft_ids.index_copy(0, replaced, draw(missing, residual_uniform[replaced]))
