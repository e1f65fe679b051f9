"""An adapter in host memory, and the shape of the layers that it adds to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Adapter", "HostFactors", "LayerShape"]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One linear layer of the model: matrices of `inputs` columns on top of each other, by their names."""

    names: tuple[str, ...]  # "model.layers.0.self_attn.q_proj", ...
    outputs: tuple[int, ...]
    inputs: int

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each matrix's outputs end."""
        return tuple(sum(self.outputs[: part + 1]) for part in range(len(self.outputs)))


@dataclass(frozen=True, slots=True)
class HostFactors:
    """What an adapter adds to one layer: first [P, r, K], second [r, N], scale included; r is the largest rank.

    `ranks` are those of the matrices, 0 for one that stays as it is; the rest of their rows are zeros.
    """

    first: torch.Tensor
    second: torch.Tensor
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A checked adapter. `layers[i]` is None where layer i stays as it is.

    `adapter_id` is the name with a hash of the content, so that another content is another id, also in the hashes of
    the prefix cache.
    """

    name: str
    adapter_id: str
    rank: int  # the largest
    layers: tuple[HostFactors | None, ...]
