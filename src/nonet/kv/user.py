"""What the cache and the sequences that use it say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nonet.core.request import PrefixLease

__all__ = ["CacheUser", "LeaseHolder", "PrefixHit"]


class CacheUser(Protocol):
    """What the cache reads of a sequence.

    `num_computed` tokens are known to be in the cache; `num_planned` will be, once the steps in flight are done. After
    `compact_at` tokens, if that is a number, the cache is compacted. `cache_keys` belongs to the prefix index: kept
    with the sequence, so that each block is hashed once in its life.
    """

    seq_id: int
    token_ids: list[int]
    num_computed: int
    num_planned: int
    compact_at: int | None
    cache_keys: list[bytes]

    @property
    def adapter_id(self) -> str: ...

    @property
    def cache_salt(self) -> str: ...

    @property
    def can_hit(self) -> bool:
        """False for a sequence that must compute each of its tokens."""
        ...


class LeaseHolder(CacheUser, Protocol):
    """What the cache reads of a sequence whose prompt, or beginnings of it, shall stay."""

    num_cached: int | None  # tokens that it found in the cache
    num_leased: list[int]

    @property
    def leases(self) -> tuple[PrefixLease, ...]:
        """From the shortest beginning to the longest."""
        ...


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What a prompt found: `blocks[g]` are the first entries of group g's table; `num_idle` of them no one uses now."""

    num_tokens: int
    blocks: tuple[list[int], ...]
    num_idle: int = 0
