"""What a layout of quantised weights has to answer: which modules are stored in it, and what each of them holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from nonet.core.errors import ModelFileError
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor

__all__ = [
    "FLOATS",
    "WORDS",
    "CheckpointFormat",
    "Codes",
    "StoredTensors",
    "StoredWeight",
    "load_checked",
    "matrix_shape",
    "modules_with",
]

FLOATS = ("F32", "F16", "BF16")
WORDS = ("I32",)

Codes = GroupwiseTensor | Float8Tensor


class StoredTensors(Protocol):
    """The tensors of a checkpoint as the files have them."""

    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> str:
        """As safetensors spells it: "BF16", "I32", "F8_E4M3"."""
        ...

    def load(self, name: str) -> torch.Tensor:
        """A float tensor; UnsupportedModelError for any other."""
        ...

    def load_stored(self, name: str) -> torch.Tensor:
        """A tensor of any type, bit for bit."""
        ...

    def load_codes(self, name: str) -> Codes | None: ...

    def close(self) -> None: ...


class StoredWeight(Protocol):
    """One matrix [N, K], outputs by inputs, read from its tensors."""

    def dense(self) -> torch.Tensor:
        """In the type, and with the rounding, that the reference library dequantises to."""
        ...

    def as_codes(self) -> Codes | None:
        """The same products, not rounded, as they are stored; None where they fit no form that kernels know."""
        ...


class CheckpointFormat(Protocol):
    """A layout, opened on one checkpoint: built as `Format(tensors, config)`, `config` being its quantization_config.

    Raises UnsupportedModelError for a variant that is not read, ModelFileError for tensors that contradict each other.
    """

    def modules(self) -> Mapping[str, tuple[int, int]]:
        """Every module that is stored in this layout, with its shape [N, K]."""
        ...

    def parts(self, module: str) -> Sequence[str]:
        """The tensors, present or not, that make up or accompany the module's weight."""
        ...

    def read(self, module: str) -> StoredWeight: ...


def modules_with(tensors: StoredTensors, suffix: str) -> list[str]:
    """Modules that have a tensor of this name."""
    return [n.removesuffix(f".{suffix}") for n in tensors.names() if n.endswith(f".{suffix}")]


def matrix_shape(tensors: StoredTensors, name: str) -> tuple[int, int]:
    """Two sizes of at least one; ModelFileError for any other shape."""
    match tensors.shape(name):
        case (rows, columns) if rows > 0 and columns > 0:
            return rows, columns
        case shape:
            raise ModelFileError(f"{name} has shape {shape}; a matrix is needed")


def load_checked(tensors: StoredTensors, name: str, dtypes: Sequence[str]) -> torch.Tensor:
    """A tensor of one of these types; ModelFileError where it is missing or of another."""
    if name not in tensors.names():
        raise ModelFileError(f"there is no tensor {name!r}, which its neighbours need")
    if tensors.dtype(name) not in dtypes:
        raise ModelFileError(
            f"{name} has dtype {tensors.dtype(name)}; {' or '.join(dtypes)} is needed"
        )
    return tensors.load_stored(name)
