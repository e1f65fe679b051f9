"""What one forward pass sees, in one frozen value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nonet.kernels.ops import AttentionInputs, LayerCache

__all__ = ["AdapterRows", "ForwardStep"]


@dataclass(frozen=True, slots=True)
class ForwardStep:
    """Tokens of all sequences of a step, one after the other.

    token_ids int32 [T]; rows int32 [R]: tokens whose logits are wanted, at least one; inputs and caches: one entry per
    layer (layers of one cache group share their inputs). `on_queries` is called by each attention layer with its
    number and its rotated queries [T, H * D]; a recorded pass calls nobody.
    """

    token_ids: torch.Tensor
    rows: torch.Tensor
    inputs: tuple[AttentionInputs, ...]
    caches: tuple[LayerCache, ...]
    on_queries: Callable[[int, torch.Tensor], None] | None = None

    @property
    def wants_all(self) -> bool:
        """One token of each sequence, and all their logits: `rows` are the tokens, in their order.

        As many rows as tokens do not say so: both may be rounded up for a graph.
        """
        is_decode = all(inputs.max_query_len == 1 for inputs in self.inputs)
        return is_decode and len(self.rows) == len(self.token_ids)


@dataclass(slots=True)
class AdapterRows:
    """Which adapter slot each token of the step has, 0 for none; the step's buffers own and fill it.

    slots int32, at a fixed address and as long as the largest step. `in_use`: some token of the step has a slot.
    """

    slots: torch.Tensor
    in_use: bool = False
