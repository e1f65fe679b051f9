"""The seam: how much does each entry of a sequence's KV matter?

A pruner is asked when the last token of a prompt longer than its budget has been computed, for as many layers at a time
as fit in little memory. It returns scores and nothing else: the engine keeps the best `budget` entries of each KV head
in the order they had, copies them to other blocks and frees those that held the prompt. Entries keep the rotation of
the position they were computed at, and later tokens count their positions from the whole prompt. Layers with a sliding
window are left alone: their cache is short already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from nonet.kernels.ops import QKVLayout

__all__ = ["LayersView", "Needs", "Pruner"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a pruner declares before the engine starts."""

    budget: int  # entries that each KV head keeps
    query_window: int = 0  # last queries of the prompt that it wants to see; at most `budget`


@dataclass(frozen=True, slots=True)
class LayersView:
    """The KV of one sequence in C layers, to read: L entries, K KV heads of D elements, w queries of H heads.

    `read_keys` and `read_values` bring [C, K, L, D], as numbers in the dtype of the cache or, where it holds another
    format, in float32; each call copies them. Products of theirs should be summed in float32.
    """

    layers: tuple[int, ...]
    layout: QKVLayout
    positions: torch.Tensor  # int64 [L]: of the token that each entry belongs to, rising
    queries: torch.Tensor  # [C, w, H, D], rotated: of the last w tokens and entries
    scale: float  # what q · k is multiplied with before the softmax
    softcap: float | None
    read_keys: Callable[[], torch.Tensor]
    read_values: Callable[[], torch.Tensor]


class Pruner(Protocol):
    """Holds no state between calls, and never makes the host wait for the device."""

    @property
    def needs(self) -> Needs: ...

    def score(self, view: LayersView) -> torch.Tensor:
        """float32 [C, K, L]: the higher, the rather an entry stays; infinite for one that must. Of equals the first
        stays.

        At most `needs.budget` entries of a head may be infinite.
        """
        ...
