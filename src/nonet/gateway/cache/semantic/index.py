"""The nearest vectors: all of them compared up to a size, above it a graph proposes and the exact product decides.

Used by one thread. Vectors have length 1, so the inner product is the cosine.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nonet.core.errors import ConfigError
from nonet.embed.base import Vectors

__all__ = ["Index"]

PROPOSED = 64  # by the graph, for each that is asked for at least


class Index:
    """Vectors by key. The rows are dense: the last takes the place of one that is removed."""

    def __init__(self, dimensions: int, exact_up_to: int) -> None:
        self._rows: Vectors = np.zeros((8, dimensions), np.float32)
        self._keys: list[bytes] = []
        self._places: dict[bytes, int] = {}
        self._exact_up_to = exact_up_to
        self._graph: _Graph | None = None

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: bytes, vector: Vectors) -> None:
        assert key not in self._places
        place = len(self._keys)
        if place == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[place] = vector
        self._keys.append(key)
        self._places[key] = place
        if self._graph is not None:
            self._graph.add(key, vector)
        elif len(self._keys) > self._exact_up_to:
            self._graph = _Graph(self._rows.shape[1])
            for each, row in zip(self._keys, self._rows, strict=False):
                self._graph.add(each, row)

    def remove(self, key: bytes) -> None:
        place = self._places.pop(key)
        last = self._keys.pop()
        if last != key:
            self._rows[place] = self._rows[len(self._keys)]
            self._keys[place] = last
            self._places[last] = place
        if self._graph is not None:
            self._graph.remove(key)

    def search(self, vector: Vectors, count: int) -> list[tuple[bytes, float]]:
        """Up to `count` keys with their cosines, the nearest first."""
        if not self._keys:
            return []
        if self._graph is None:
            places = np.arange(len(self._keys))
            likeness = self._rows[: len(self._keys)] @ vector
        else:
            proposed = self._graph.search(vector, max(count, PROPOSED))
            places = np.array([self._places[key] for key in proposed], np.int64)
            likeness = self._rows[places] @ vector
        best = np.arange(len(places))
        if len(places) > count:
            best = np.argpartition(-likeness, count)[:count]
        best = best[np.argsort(-likeness[best], kind="stable")]
        return [(self._keys[places[one]], float(likeness[one])) for one in best]


class _Graph:
    """A graph over the vectors, by usearch, which knows them by numbers."""

    def __init__(self, dimensions: int) -> None:
        try:
            from usearch.index import Index as Usearch
        except ImportError as error:
            raise ConfigError(
                f"the semantic cache needs usearch for so many entries ({error}); "
                "install it, or set max_entries to at most exact_up_to"
            ) from None
        self._index: Any = Usearch(ndim=dimensions, metric="ip", dtype="f16")
        self._numbers: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._next = 0

    def add(self, key: bytes, vector: Vectors) -> None:
        number, self._next = self._next, self._next + 1
        self._numbers[key], self._names[number] = number, key
        self._index.add(number, vector)

    def remove(self, key: bytes) -> None:
        number = self._numbers.pop(key)
        del self._names[number]
        self._index.remove(number)

    def search(self, vector: Vectors, count: int) -> list[bytes]:
        found = self._index.search(vector, count)
        return [self._names[int(number)] for number in found.keys if int(number) in self._names]
