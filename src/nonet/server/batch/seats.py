"""How many lines of batches may run: what the engine has room for beside everybody else.

A line starts only while nobody waits in the engine and some of its sequences are free, so that whoever comes next
finds room. What already runs gives way by the scheduler's policy, if that knows service classes.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from nonet.core.messages import EngineStats

__all__ = ["IdleSeats"]

POLL_S = 0.02
KEPT_FREE = 8  # one in so many sequences


class _Engine(Protocol):
    @property
    def stats(self) -> EngineStats: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def num_in_flight(self) -> int: ...


class IdleSeats:
    """Seats for lines, handed out in the order of asking, so that batches take turns."""

    def __init__(self, engine: _Engine, max_num_seqs: int, most: int | None = None) -> None:
        """`most` bounds the lines at a time; None leaves it to the engine's size."""
        room = max(1, max_num_seqs - max(1, max_num_seqs // KEPT_FREE))
        self._engine = engine
        self._room = room
        self.most = room if most is None else min(room, most)
        self._num_taken = 0
        self._turn = asyncio.Lock()
        self._given = asyncio.Event()

    async def take(self) -> None:
        """Wait for a seat; `give` it back."""
        async with self._turn:
            while not self.is_free():
                self._given.clear()
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._given.wait()
                except TimeoutError:
                    continue
            self._num_taken += 1

    def give(self) -> None:
        self._num_taken -= 1
        self._given.set()

    def is_free(self) -> bool:
        """Whether one more line may start now."""
        engine = self._engine
        in_flight = (
            engine.num_in_flight
        )  # lines whose text is still being prepared are not among them
        if not engine.is_ready or self._num_taken >= self.most:
            return False
        if max(in_flight, self._num_taken) >= self._room:
            return False
        return in_flight == 0 or engine.stats.num_waiting == 0
