"""How a matrix is held in memory: the question every weight format answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from nonet.kernels.groupwise import GroupwiseTensor

__all__ = ["Role", "StoredMatrix", "WeightFormat"]

Role = Literal["linear", "embedding"]  # embedding: the token table and the output head


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix of a checkpoint [N, K], read when asked: in its float type, or as the codes it is stored in."""

    dense: Callable[[], torch.Tensor]
    groupwise: Callable[[], GroupwiseTensor | None]


class WeightFormat(Protocol):
    """Decides what the kernels get of each stored matrix. Pure: reads, converts, keeps nothing."""

    def convert(self, stored: StoredMatrix, role: Role) -> torch.Tensor | GroupwiseTensor: ...
