"""Where answers are kept: the recent ones in memory, all of them in a tier below, both within a bound of bytes.

What is in the tier is known by an index in memory, so an ask that was never answered costs no look at the disk. The
least recently used goes first when there is no room. Times are those of the wall clock, as entries outlive the process.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from nonet.core.errors import StoreError
from nonet.gateway.cache.stored import Entry
from nonet.gateway.cache.tier import Tier

__all__ = ["Shelf", "ShelfLimits"]

logger = logging.getLogger("nonet.gateway")


@dataclass(frozen=True, slots=True)
class ShelfLimits:
    """Bounds of one shelf."""

    ttl_s: float
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the index knows of an entry on disk."""

    tenant: str
    made_s: float
    size: int


class Shelf:
    """Entries by key. Without a tier it is memory only. Used from one event loop."""

    def __init__(self, limits: ShelfLimits, wall: Callable[[], float], tier: Tier | None) -> None:
        self._limits = limits
        self._wall = wall
        self._tier = tier
        self._memory: OrderedDict[bytes, Entry] = OrderedDict()
        self._memory_bytes = 0
        self._disk: OrderedDict[bytes, _Mark] = OrderedDict()
        self._disk_bytes = 0

    async def start(self) -> None:
        """Read the index; drop what is too old."""
        if self._tier is None:
            return
        for key, tenant, made_s, size in await self._tier.start(self._wall() - self._limits.ttl_s):
            self._disk[key] = _Mark(tenant, made_s, size)
            self._disk_bytes += size
        self._make_room()

    @property
    def num_entries(self) -> int:
        return len(self._disk.keys() | self._memory.keys())

    @property
    def num_bytes(self) -> tuple[int, int]:
        """In memory and on disk."""
        return self._memory_bytes, self._disk_bytes

    def show(self) -> dict[str, Any]:
        memory, disk = self.num_bytes
        return {"entries": self.num_entries, "memory_bytes": memory, "disk_bytes": disk}

    def holds(self, entry: Entry, max_age_s: float | None = None) -> bool:
        """Whether this very entry would be found now."""
        return self._memory.get(entry.key) is entry and self._is_fresh(entry.made_s, max_age_s)

    def find(self, key: bytes, max_age_s: float | None = None) -> Entry | None:
        """An entry in memory that is young enough."""
        entry = self._memory.get(key)
        if entry is None or not self._is_fresh(entry.made_s, max_age_s):
            return None
        self._memory.move_to_end(key)
        if key in self._disk:
            self._disk.move_to_end(key)
        return entry

    def has(self, key: bytes, max_age_s: float | None = None) -> bool:
        """Whether an entry may be found, in memory or on disk."""
        entry = self._memory.get(key)
        in_memory = entry is not None and self._is_fresh(entry.made_s, max_age_s)
        return in_memory or self.may_be_on_disk(key, max_age_s)

    def may_be_on_disk(self, key: bytes, max_age_s: float | None = None) -> bool:
        mark = self._disk.get(key)
        return mark is not None and self._is_fresh(mark.made_s, max_age_s)

    async def load(self, key: bytes) -> Entry | None:
        """An entry of the tier, which is then in memory too. A tier that cannot be read holds nothing."""
        assert self._tier is not None
        try:
            entry = await self._tier.load(key)
        except (StoreError, msgspec.DecodeError) as error:
            logger.warning("event=cache_unreadable error=%s", error)
            self._drop_disk(key)
            return None
        if entry is None or key not in self._disk:  # not written yet, or purged meanwhile
            return None
        self._keep_in_memory(entry)
        return entry

    def put(self, entry: Entry) -> None:
        """Keep an entry, unless it is larger than the whole shelf."""
        if entry.num_bytes <= self._limits.memory_bytes:
            self._keep_in_memory(entry)
        size = entry.num_bytes
        if self._tier is None or size > self._limits.disk_bytes:
            return
        self._forget_disk(entry.key)
        self._disk[entry.key] = _Mark(entry.tenant, entry.made_s, size)
        self._disk_bytes += size
        self._tier.put(entry)
        self._make_room()

    def drop(self, key: bytes) -> None:
        self._forget_memory(key)
        self._drop_disk(key)

    def count(self, tenant: str | None = None) -> int:
        """How many entries `purge` would drop."""
        return len(self._keys(tenant))

    def purge(self, tenant: str | None = None) -> int:
        """Drop everything, or one tenant's; how many entries went."""
        gone = self._keys(tenant)
        for key in gone:
            self.drop(key)
        return len(gone)

    def _keys(self, tenant: str | None) -> set[bytes]:
        found = {key for key, mark in self._disk.items() if tenant in (None, mark.tenant)}
        return found | {
            key for key, entry in self._memory.items() if tenant in (None, entry.tenant)
        }

    def _is_fresh(self, made_s: float, max_age_s: float | None) -> bool:
        age_s = self._wall() - made_s
        limit_s = self._limits.ttl_s if max_age_s is None else min(max_age_s, self._limits.ttl_s)
        return age_s < limit_s

    def _keep_in_memory(self, entry: Entry) -> None:
        self._forget_memory(entry.key)
        self._memory[entry.key] = entry
        self._memory_bytes += entry.num_bytes
        while self._memory_bytes > self._limits.memory_bytes:
            self._forget_memory(next(iter(self._memory)))

    def _forget_memory(self, key: bytes) -> None:
        entry = self._memory.pop(key, None)
        if entry is not None:
            self._memory_bytes -= entry.num_bytes

    def _make_room(self) -> None:
        while self._disk_bytes > self._limits.disk_bytes:
            self.drop(next(iter(self._disk)))

    def _drop_disk(self, key: bytes) -> None:
        if self._forget_disk(key) and self._tier is not None:
            self._tier.drop(key)

    def _forget_disk(self, key: bytes) -> bool:
        mark = self._disk.pop(key, None)
        if mark is not None:
            self._disk_bytes -= mark.size
        return mark is not None
