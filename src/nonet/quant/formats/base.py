"""How a matrix is held in memory: the question every weight format answers, for a plan and for a matrix.

A plan is made where torch is not loaded, so the files of this folder import it only where a matrix is converted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from nonet.core.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from nonet.kernels.float8 import Float8Tensor
    from nonet.kernels.groupwise import GroupwiseTensor
    from nonet.kernels.ops import WeightMatrix

__all__ = ["Form", "Role", "StoredMatrix", "WeightFormat"]

Role = Literal["linear", "embedding"]  # embedding: the token table and the output head

# What a linear becomes: floats, a GroupwiseTensor or a Float8Tensor. Integers by group: a GroupwiseTensor with several
# scales for an output, whose inputs become integers too.
Form = Literal["dense", "groupwise", "integers_by_group", "float8"]


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix of a checkpoint [N, K], read when asked: in its float type, or as the codes it is stored in."""

    dense: Callable[[], torch.Tensor]
    codes: Callable[[], GroupwiseTensor | Float8Tensor | None]


class WeightFormat(Protocol):
    """Decides what the kernels get of each stored matrix. Pure: reads, converts, keeps nothing.

    Knobs are fields of a frozen `Config` inside the class, checked in its constructor.
    """

    def form_of(self, spec: ModelSpec) -> Form:
        """What the linears of this model become."""
        ...

    def num_bytes(self, spec: ModelSpec, float_bytes: int, path: str) -> int:
        """Bytes of all matrices in kernels that keep this form; `float_bytes` is the size of the model's dtype.

        `path` is the model's, "" for made-up weights; only headers may be read. ConfigError where this model cannot
        be held so.
        """
        ...

    def convert(self, stored: StoredMatrix, role: Role) -> WeightMatrix: ...
