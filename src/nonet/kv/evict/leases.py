"""Promises that a block stays cached until some time, whatever the evictor would rather do.

A leased block that becomes idle is kept here and not handed to the evictor, so that it is not free; when its lease
ends, it becomes an idle block like any other. How many blocks may be leased is bounded, so that what is left always
holds a sequence of full length.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["Leases"]


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    ends_s: float


class Leases:
    """Leases on at most `max_blocks` blocks. Time moves only with `end`.

    >>> leases = Leases(max_blocks=2)
    >>> leases.grant([4, 7], ttl_s=300.0), leases.grant([9], ttl_s=300.0)
    (True, False)
    >>> leases.end(now=299.0), leases.end(now=300.0)
    ([], [4, 7])
    """

    def __init__(self, max_blocks: int) -> None:
        self.max_blocks = max_blocks
        self._now_s = 0.0
        self._leases: dict[int, _Lease] = {}
        self._idle: set[int] = set()
        self._ends: list[
            tuple[float, int]
        ] = []  # one entry per lease; early where it was renewed since

    @property
    def num_idle(self) -> int:
        """Leased blocks that no table refers to: neither live nor free."""
        return len(self._idle)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._leases

    def __len__(self) -> int:
        return len(self._leases)

    def is_idle(self, block_id: int) -> bool:
        return block_id in self._idle

    def grant(self, block_ids: Collection[int], ttl_s: float) -> bool:
        """Keep all of these live blocks for `ttl_s` after their last use; False, and nothing changes, for want of room.

        A block that is leased already keeps the longer promise.
        """
        new = [block_id for block_id in block_ids if block_id not in self._leases]
        if len(self._leases) + len(new) > self.max_blocks:
            return False
        ends_s = self._now_s + ttl_s
        for block_id in new:
            self._leases[block_id] = _Lease(ttl_s, ends_s)
            heapq.heappush(self._ends, (ends_s, block_id))
        for block_id in block_ids:
            lease = self._leases[block_id]
            if lease.ends_s < ends_s:
                lease.ttl_s, lease.ends_s = ttl_s, ends_s
        return True

    def on_use(self, block_id: int) -> None:
        """A leased block was read: its time begins anew."""
        lease = self._leases[block_id]
        lease.ends_s = self._now_s + lease.ttl_s
        self._idle.discard(block_id)

    def on_free(self, block_id: int) -> None:
        """A leased block became idle."""
        self._idle.add(block_id)

    def end(self, now: float) -> list[int]:
        """Time is `now`: end what has run out. Returns the blocks among them that are idle, the first to end first."""
        self._now_s = now
        freed = []
        while self._ends and self._ends[0][0] <= now:
            _, block_id = heapq.heappop(self._ends)
            ends_s = self._leases[block_id].ends_s
            if ends_s > now:
                heapq.heappush(self._ends, (ends_s, block_id))
                continue
            del self._leases[block_id]
            if block_id in self._idle:
                self._idle.remove(block_id)
                freed.append(block_id)
        return freed
