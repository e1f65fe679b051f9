"""What every tier below a cache's memory does; a new one is a line of TIERS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from nonet.core.errors import StoreError
from nonet.gateway.answer import ChoiceText, Usage
from nonet.gateway.cache.shelf import Shelf, ShelfLimits
from nonet.gateway.cache.stored import Entry, decode_steps, encode_answer
from nonet.gateway.cache.tier import Held, SqliteTier, Tier
from nonet.store.database import Database

Opened = AbstractAsyncContextManager[Tier]  # closed, everything asked for is in it


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Tier]:
    database = Database(folder / "answers.db", full_sync=False)
    database.open()
    yield SqliteTier(database)
    await database.close()


TIERS: dict[str, Callable[[Path], Opened]] = {"sqlite": sqlite}


@pytest.fixture(params=TIERS)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Opened]:
    return lambda: TIERS[request.param](tmp_path)


def entry(key: bytes, said: str, made_s: float = 1000.0, tenant: str = "t") -> Entry:
    steps = [[ChoiceText(0, said, [1, 2], finish_reason="stop")]]
    return Entry.from_body(key, tenant, made_s, encode_answer(steps, Usage(3, 2), "stop", 0.5))


def said(found: Entry | None) -> str | None:
    return None if found is None else decode_steps(found)[0][0].text


async def test_what_is_kept_outlives_its_process(opened: Callable[[], Opened]) -> None:
    kept = [entry(b"a", "one", 1000.0), entry(b"\x00b", "zwei é", 999.0, "other")]
    async with opened() as tier:
        assert await tier.start(0.0) == []
        for one in kept:
            tier.put(one)
    async with opened() as tier:
        held = await tier.start(0.0)
        assert held == [Held(e.key, e.tenant, e.made_s, e.num_bytes) for e in reversed(kept)]
        for one in kept:
            found = await tier.load(one.key)
            assert found is not None
            assert (found.tenant, found.made_s, found.body) == (one.tenant, one.made_s, one.body)
            assert said(found) == said(one)
        assert await tier.load(b"unknown") is None


async def test_the_last_change_of_a_key_stands(opened: Callable[[], Opened]) -> None:
    async with opened() as tier:
        await tier.start(0.0)
        tier.put(entry(b"a", "old"))
        tier.put(entry(b"a", "new"))
        tier.put(entry(b"b", "gone"))
        tier.drop(b"b")
        tier.put(entry(b"c", "first"))
        tier.drop(b"c")
        tier.put(entry(b"c", "again"))
        tier.drop(b"never there")
    async with opened() as tier:
        assert {one.key for one in await tier.start(0.0)} == {b"a", b"c"}
        assert [said(await tier.load(key)) for key in (b"a", b"b", b"c")] == ["new", None, "again"]


async def test_what_is_too_old_goes_at_the_start(opened: Callable[[], Opened]) -> None:
    async with opened() as tier:
        await tier.start(0.0)
        for number in range(4):
            tier.put(entry(b"%d" % number, "x", made_s=float(number)))
    async with opened() as tier:
        assert [one.key for one in await tier.start(2.0)] == [b"2", b"3"]
        assert await tier.load(b"1") is None


class Broken:
    """A tier whose store is away."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.dropped: list[bytes] = []

    async def start(self, oldest_s: float) -> list[Held]:
        return [Held(b"a", "t", 1000.0, 10)]

    async def load(self, key: bytes) -> Entry | None:
        raise self.error

    def put(self, entry: Entry) -> None:
        raise AssertionError(entry)

    def drop(self, key: bytes) -> None:
        self.dropped.append(key)


@pytest.mark.parametrize("error", [StoreError("away"), msgspec.DecodeError("no answer")])
async def test_a_tier_that_fails_costs_a_hit_only(error: Exception) -> None:
    tier = Broken(error)
    shelf = Shelf(ShelfLimits(ttl_s=1e9, memory_bytes=1000, disk_bytes=1000), lambda: 1001.0, tier)
    await shelf.start()
    assert shelf.may_be_on_disk(b"a")
    assert await shelf.load(b"a") is None
    assert not shelf.may_be_on_disk(b"a")
    assert tier.dropped == [b"a"]
