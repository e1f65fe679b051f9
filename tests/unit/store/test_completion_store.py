"""Stored chat completions: found by id, listed by page, model and metadata, changed, forgotten, apart by tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nonet.core.errors import NotFoundError
from nonet.store import completions
from nonet.store.completions import CompletionRecord, CompletionStore
from nonet.store.database import Database
from nonet.store.responses import RETENTION_S

BORN_S = 1_000_000.0


class Wall:
    """A clock on the wall that is moved by hand."""

    now_s = BORN_S

    def __call__(self) -> float:
        return self.now_s


def record(name: str, tenant: str = "t", model: str = "m", **metadata: str) -> CompletionRecord:
    return CompletionRecord(
        completion_id=name,
        tenant=tenant,
        model=model,
        created_s=BORN_S,
        metadata=metadata,
        messages=b"[]",
        answer=b'{"id": "%s"}' % name.encode(),
    )


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "nonet.db")
    made.open()
    yield made
    await made.close()


@pytest.fixture
async def store(database: Database, wall: Wall) -> CompletionStore:
    made = CompletionStore(database, wall)
    await made.start()
    return made


async def names(store: CompletionStore, tenant: str = "t", **asked: Any) -> list[str]:
    found = await store.page(tenant, **{"limit": 100, "order": "asc", **asked})
    return [one.completion_id for one in found]


async def test_found_as_it_was_put(store: CompletionStore) -> None:
    one = record("c1", a="1", **{'quote" $.\\': "é"})
    await store.put(one)
    assert await store.get("t", "c1") == one


async def test_pages(store: CompletionStore) -> None:
    for number in range(5):
        await store.put(record(f"c{number}"))
    assert await names(store) == ["c0", "c1", "c2", "c3", "c4"]
    assert await names(store, limit=2) == ["c0", "c1"]
    assert await names(store, limit=2, after="c1") == ["c2", "c3"]
    assert await names(store, limit=2, order="desc") == ["c4", "c3"]
    assert await names(store, limit=2, order="desc", after="c1") == ["c0"]
    with pytest.raises(NotFoundError):
        await names(store, after="c9")


FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "all": ({}, ["c0", "c1", "c2", "c3"]),
    "a model": ({"model": "other"}, ["c3"]),
    "a key": ({"metadata": {"a": "1"}}, ["c1", "c2", "c3"]),
    "two keys": ({"metadata": {"a": "1", "b": "2"}}, ["c2"]),
    "another value": ({"metadata": {"a": "2"}}, []),
    "a value of no other type": ({"metadata": {"a": "1.0"}}, []),
    "the key of one, the value of another": ({"metadata": {"a": "2", "b": "1"}}, []),
    "an odd key": ({"metadata": {'x"]\\': "%'--"}}, ["c3"]),
    "with a model": ({"metadata": {"a": "1"}, "model": "m"}, ["c1", "c2"]),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_filters(store: CompletionStore, name: str) -> None:
    asked, expected = FILTERS[name]
    await store.put(record("c0"))
    await store.put(record("c1", a="1"))
    await store.put(record("c2", a="1", b="2"))
    await store.put(record("c3", model="other", a="1", **{'x"]\\': "%'--"}))
    assert await names(store, **asked) == expected


async def test_metadata_is_replaced(store: CompletionStore) -> None:
    await store.put(record("c1", a="1"))
    changed = await store.note("t", "c1", {"b": "2"})
    assert changed == await store.get("t", "c1")
    assert changed.metadata == {"b": "2"}
    assert await names(store, metadata={"a": "1"}) == []
    assert await names(store, metadata={"b": "2"}) == ["c1"]


async def refused(store: CompletionStore, tenant: str, name: str) -> list[str]:
    """The ways to a completion that are closed."""
    ways: dict[str, Callable[[], Any]] = {
        "get": lambda: store.get(tenant, name),
        "note": lambda: store.note(tenant, name, {"mine": "now"}),
        "delete": lambda: store.delete(tenant, name),
        "after": lambda: names(store, tenant, after=name),
    }
    closed = []
    for way, go in ways.items():
        try:
            await go()
        except NotFoundError:
            closed.append(way)
    return closed


ALL_WAYS = ["get", "note", "delete", "after"]


async def test_another_tenants_cannot_be_reached(store: CompletionStore) -> None:
    await store.put(record("c1", a="1"))
    await store.put(record("c2", tenant="u"))
    assert await refused(store, "u", "c1") == ALL_WAYS
    assert await names(store, "u") == ["c2"]
    assert await names(store, "u", metadata={"a": "1"}) == []
    assert await store.get("t", "c1") == record("c1", a="1")


async def test_a_search_that_forgets_the_tenant_is_noticed(
    store: CompletionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = completions.FIND.replace("tenant = ?", "? IS NOT NULL")
    monkeypatch.setattr(completions, "FIND", loose)
    await store.put(record("c1"))
    assert await refused(store, "u", "c1") != ALL_WAYS


async def test_deleted_is_gone(store: CompletionStore) -> None:
    await store.put(record("c1"))
    await store.delete("t", "c1")
    assert await refused(store, "t", "c1") == ALL_WAYS
    assert await names(store) == []


async def test_what_is_too_old_is_forgotten(
    store: CompletionStore, database: Database, wall: Wall
) -> None:
    await store.put(record("c1"))
    wall.now_s += RETENTION_S
    assert await names(store) == ["c1"]
    wall.now_s += 1
    assert await refused(store, "t", "c1") == ALL_WAYS
    assert await names(store) == []
    fresh = record("c2")
    await store.put(CompletionRecord(**{**_fields(fresh), "created_s": wall.now_s}))
    count = await database.read(
        lambda connection: connection.execute("SELECT count(*) FROM completions").fetchone()[0]
    )
    assert count == 1


def _fields(one: CompletionRecord) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}
