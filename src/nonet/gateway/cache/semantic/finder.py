"""The thread that knows texts by their vectors: it embeds, searches and compares, beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from nonet.embed.base import Embedder, Vectors
from nonet.gateway.cache.semantic.gates import Marks, marks_of
from nonet.gateway.cache.semantic.index import Index

__all__ = ["Finder", "Found"]

T = TypeVar("T")

NEAREST = 8  # entries that are looked at, as the gates refuse some


@dataclass(frozen=True, slots=True)
class Found:
    """A text's vector and marks, and the keys of its partition that are nearest, with their similarity."""

    vector: Vectors
    marks: Marks
    near: list[tuple[bytes, float]]


class Finder:
    """One index for each partition. All work is done in one thread, in the order of the calls."""

    def __init__(self, embedder: Embedder, exact_up_to: int) -> None:
        self._embedder = embedder
        self._exact_up_to = exact_up_to
        self._indexes: dict[bytes, Index] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="semantic")

    async def find(self, partition: bytes, text: str) -> Found | None:
        """None for a text that is too long for the encoder, or empty."""
        return await self._run(lambda: self._find(partition, text))

    async def alike(self, one: str, two: str) -> float:
        """How alike two answers are: the least of their parts, 0 when one is longer by a part."""
        return await self._run(lambda: self._alike(one, two))

    def add(self, partition: bytes, rows: Iterable[tuple[bytes, Vectors]]) -> None:
        self._thread.submit(self._add, partition, list(rows))

    def remove(self, partition: bytes, key: bytes) -> None:
        self._thread.submit(self._remove, partition, key)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, job: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def _find(self, partition: bytes, text: str) -> Found | None:
        ids = self._embedder.encode(text)
        if not text.strip() or len(ids) > self._embedder.max_tokens:
            return None
        vector = self._embedder.embed([ids])[0]
        index = self._indexes.get(partition)
        near = index.search(vector, NEAREST) if index is not None else []
        return Found(vector, marks_of(text), near)

    def _alike(self, one: str, two: str) -> float:
        size = self._embedder.max_tokens
        first, second = (
            [ids[start : start + size] for start in range(0, len(ids), size)]
            for ids in (self._embedder.encode(text) for text in (one, two))
        )
        if len(first) != len(second):
            return 0.0
        pairs = zip(self._embedder.embed(first), self._embedder.embed(second), strict=True)
        return min(float(left @ right) for left, right in pairs)

    def _add(self, partition: bytes, rows: list[tuple[bytes, Vectors]]) -> None:
        index = self._indexes.get(partition)
        if index is None:
            index = Index(self._embedder.dimensions, self._exact_up_to)
            self._indexes[partition] = index
        for key, vector in rows:
            index.add(key, vector)

    def _remove(self, partition: bytes, key: bytes) -> None:
        index = self._indexes[partition]
        index.remove(key)
        if not len(index):
            del self._indexes[partition]
