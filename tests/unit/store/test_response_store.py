"""Turns are kept, walked back, forgotten and never shown to another tenant, in memory and on disk alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nonet.core.errors import NotFoundError
from nonet.store.database import Database
from nonet.store.responses import (
    RETENTION_S,
    MemoryResponses,
    ResponseRecord,
    ResponseStore,
    SqliteResponses,
)


class Wall:
    """A clock on the wall that is moved by hand."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def record(
    name: str, previous: str | None = None, tenant: str = "t", size: int = 1
) -> ResponseRecord:
    return ResponseRecord(
        response_id=name,
        tenant=tenant,
        previous_id=previous,
        created_s=1_000_000.0,
        input=b"[" + b" " * size + b"]",
        answer=b"{}",
    )


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture(params=["memory", "disk"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, wall: Wall
) -> AsyncIterator[ResponseStore]:
    if request.param == "memory":
        yield MemoryResponses()
        return
    database = Database(tmp_path / "nonet.db")
    database.open()
    made = SqliteResponses(database, wall)
    await made.start()
    yield made
    await database.close()


async def test_what_is_put_comes_back(store: ResponseStore) -> None:
    one = record("r1")
    await store.put(one)
    assert await store.get("t", "r1") == one
    with pytest.raises(NotFoundError, match="'r2'"):
        await store.get("t", "r2")


async def test_a_conversation_is_walked_to_its_beginning(store: ResponseStore) -> None:
    for name, previous in (("r1", None), ("r2", "r1"), ("other", "r1"), ("r3", "r2")):
        await store.put(record(name, previous))
    assert [turn.response_id for turn in await store.turns("t", "r3")] == ["r1", "r2", "r3"]
    assert [turn.response_id for turn in await store.turns("t", "other")] == ["r1", "other"]
    await store.delete("t", "r2")
    with pytest.raises(NotFoundError, match="'r2'"):
        await store.turns("t", "r3")


async def test_tenants_are_apart(store: ResponseStore) -> None:
    await store.put(record("r1"))
    await store.put(record("mine", "r1", tenant="u"))
    for call in (
        store.get("u", "r1"),
        store.delete("u", "r1"),
        store.turns("u", "r1"),
        store.turns("u", "mine"),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert (await store.get("t", "r1")).response_id == "r1"


async def test_deleted_is_gone(store: ResponseStore) -> None:
    await store.put(record("r1"))
    await store.delete("t", "r1")
    for call in (store.get("t", "r1"), store.delete("t", "r1")):
        with pytest.raises(NotFoundError):
            await call


async def test_memory_is_bounded() -> None:
    store = MemoryResponses(max_bytes=4000)
    for number in range(10):
        await store.put(record(f"r{number}", size=500))
    assert (await store.get("t", "r9")).response_id == "r9"
    with pytest.raises(NotFoundError):
        await store.get("t", "r6")


async def test_the_disk_outlives_the_process_and_forgets_in_time(
    tmp_path: Path, wall: Wall
) -> None:
    for turn in range(2):
        database = Database(tmp_path / "nonet.db")
        database.open()
        store = SqliteResponses(database, wall)
        await store.start()
        if turn == 0:
            await store.put(record("r1"))
        else:
            assert (await store.get("t", "r1")).response_id == "r1"
            wall.now_s += RETENTION_S + 1
            with pytest.raises(NotFoundError):
                await store.get("t", "r1")
            await store.put(record("r2"))
            assert await database.read(_num_rows) == 1
        await database.close()


def _num_rows(connection: object) -> int:
    return connection.execute("SELECT count(*) FROM responses").fetchone()[0]  # type: ignore[attr-defined,no-any-return]
