"""The seam: how does a text become a vector?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Embedder", "Vectors", "normalised"]

Vectors = npt.NDArray[np.float32]


class Embedder(Protocol):
    """Loaded once; may be used by one thread at a time. It blocks while it computes."""

    @property
    def dimensions(self) -> int: ...

    @property
    def max_tokens(self) -> int:
        """Most tokens of one text, marks of its ends included."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text with the marks of its ends, however many."""
        ...

    def embed(self, token_ids: Sequence[Sequence[int]]) -> Vectors:
        """One vector of length 1 for each text [N, D]; a text has 1 to `max_tokens` ids."""
        ...


def normalised(vectors: Vectors) -> Vectors:
    """Each row at length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32, copy=False)
    return scaled
