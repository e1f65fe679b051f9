"""The exact-match cache: an ask that was answered before is answered from the shelf.

Idea: the answer to a deterministic ask is a function of the ask. Its SHA-256 over rendered token ids, sampling, model
    and tenant finds the answer that was kept; equal asks at one time share one run of the model.
Reference: none; HTTP's own caching (RFC 9111) gave the words of Cache-Control.
Cost: a hash of the ask, and the memory and disk that answers take, both bounded.
Good for: repeated evaluation runs, retries, canned questions, pipelines that are run again after a change elsewhere.
Conflicts: none; an ask without temperature 0 or a seed passes by, unless the caller says that a sampled answer will do.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any

from nonet.core.errors import ConfigError
from nonet.gateway.answer import Ask, ChoiceText, Outcome, Reply, Usage
from nonet.gateway.cache.flight import Flight, finish_of, replayed
from nonet.gateway.cache.key import ask_key, is_deterministic
from nonet.gateway.cache.shelf import Shelf, ShelfLimits
from nonet.gateway.cache.stored import Entry, encode_answer
from nonet.gateway.cache.tier import SqliteTier
from nonet.gateway.pipeline import Next
from nonet.gateway.site import Site
from nonet.telemetry.events import Saving

__all__ = ["ExactCache"]

MIB = 1024 * 1024

logger = logging.getLogger("nonet.gateway")


class ExactCache:
    """Answers of deterministic asks, by the SHA-256 of all that they depend on."""

    name = "exact"

    @dataclass(frozen=True, slots=True)
    class Config:
        ttl_s: float = 86400.0
        memory_mib: float = 64.0
        disk_mib: float = 1024.0  # needs a data_dir; 0 keeps answers in memory only
        max_entry_mib: float = 4.0  # a larger answer is not kept

        def __post_init__(self) -> None:
            for name in ("ttl_s", "memory_mib", "max_entry_mib"):
                if not getattr(self, name) > 0:
                    raise ConfigError(
                        f"exact_cache: {name} is {getattr(self, name):g}; give a number above 0"
                    )
            if not self.disk_mib >= 0:
                raise ConfigError(
                    f"exact_cache: disk_mib is {self.disk_mib:g}; give 0 or a number above it"
                )

    def __init__(self, config: Config, site: Site) -> None:
        self._site = site
        self._max_entry_bytes = int(config.max_entry_mib * MIB)
        limits = ShelfLimits(
            ttl_s=config.ttl_s,
            memory_bytes=int(config.memory_mib * MIB),
            disk_bytes=int(config.disk_mib * MIB),
        )
        database = site.database if config.disk_mib else None
        tier = SqliteTier(database) if database is not None else None
        self.shelf = Shelf(limits, site.wall, tier)
        self._flights: dict[bytes, Flight] = {}

    async def start(self) -> None:
        await self.shelf.start()

    async def close(self) -> None:
        """What is in flight ends with its readers."""

    def show(self) -> dict[str, Any]:
        return self.shelf.show()

    def count(self, tenant: str | None = None) -> int:
        return self.shelf.count(tenant)

    def purge(self, tenant: str | None = None) -> int:
        """Drop everything, or one tenant's; how many entries went. What is being made now is not kept either."""
        for flight in self._flights.values():
            flight.make_private()
        self._flights.clear()
        return self.shelf.purge(tenant)

    async def handle(self, ask: Ask, next: Next) -> Reply:
        wishes = ask.caller.wishes
        held = ask.held
        if isinstance(held, Entry):
            key = held.key
        elif wishes.no_store or not (wishes.allow_sampled or is_deterministic(ask)):
            reply = await next(ask)
            reply.outcome.cache = reply.outcome.cache or "bypass"
            return reply
        else:
            key = ask_key(ask, self._site.fingerprint)
        if wishes.no_cache:
            return await self._lead(key, ask, next)
        entry = self.shelf.find(key, wishes.max_age_s)
        if entry is None and self.shelf.may_be_on_disk(key, wishes.max_age_s):
            entry = await self.shelf.load(key)
        if entry is not None:
            return self._replay(ask, entry)
        flight = self._flights.get(key)
        if flight is not None and flight.may_join(ask):
            return await self._follow(flight)
        return await self._lead(key, ask, next)

    def _replay(self, ask: Ask, entry: Entry) -> Reply:
        outcome = Outcome(
            cache="exact",
            savings=[Saving("exact_cache", seconds=entry.seconds)],
            entry=entry,
            total=entry.usage,
            finish=entry.finish,
        )
        usage = Usage(prompt_tokens=entry.usage.prompt_tokens)
        pieces = NOTHING if ask.held is entry else replayed(entry, usage, entry.usage)
        return Reply(pieces, usage, outcome, pending_bytes=lambda: 0)

    async def _lead(self, key: bytes, ask: Ask, next: Next) -> Reply:
        began_s = self._site.clock.now()
        tenant = ask.caller.tenant
        landed = partial(self._landed, key, tenant, ask.num_choices, began_s)
        flight = Flight(ask, next, self._max_entry_bytes, landed)
        self._flights[key] = flight
        flight.on_over(partial(self._over, key, flight))
        reply = await flight.join()
        below = flight.outcome
        reply.outcome = Outcome(
            cache="semantic" if below.cache == "semantic" else "miss",
            similarity=below.similarity,
            savings=below.savings,
            total=below.total,
            finish=below.finish,
            headers=below.headers,
        )
        return reply

    async def _follow(self, flight: Flight) -> Reply:
        reply = await flight.join()
        reply.outcome = Outcome(cache="exact")
        return reply

    def _landed(
        self, key: bytes, tenant: str, num_choices: int, began_s: float, flight: Flight
    ) -> None:
        finish = finish_of(flight.steps, num_choices)
        if finish is None or flight.outcome.cache == "semantic":
            return
        seconds = self._site.clock.now() - began_s
        body = encode_answer(flight.steps, flight.usage, finish, seconds)
        if len(body) <= self._max_entry_bytes:
            self.shelf.put(Entry.from_body(key, tenant, self._site.wall(), body))

    def _over(self, key: bytes, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


class _Nothing(AsyncGenerator[list[ChoiceText], None]):
    """No pieces. One serves all: a generator costs the event loop more than all else of a hit."""

    async def asend(self, value: None) -> list[ChoiceText]:
        raise StopAsyncIteration

    async def athrow(self, *_: Any) -> list[ChoiceText]:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        return None


NOTHING = _Nothing()
