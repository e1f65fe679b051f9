"""Lines are settled once, leased by one at a time, and a status moves as it may."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from nonet.core.errors import InvalidRequestError, OverloadedError, StoreError
from nonet.store import batches
from nonet.store.batch_records import BatchRecord, Line, LineState, LineUsage, SettledLine
from nonet.store.batches import LEASE_S, MAX_OPEN, BatchStore
from nonet.store.database import Database
from nonet.store.files import FileRecord, FileStore

ID = "batch_1"
USAGE = LineUsage(prompt_tokens=10, output_tokens=2)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "nonet.db", full_sync=False)
    made.open()
    await made.write(lambda c: c.execute("CREATE TABLE bills (name TEXT)").close())
    yield made
    await made.close()


@pytest.fixture
async def store(database: Database, tmp_path: Path) -> BatchStore:
    await FileStore(database, tmp_path / "files", max_bytes=1).start()
    made = BatchStore(database)
    await made.start()
    return made


def record(batch_id: str = ID) -> BatchRecord:
    return BatchRecord(
        batch_id=batch_id,
        tenant="t",
        key_id="k",
        dialect="openai",
        endpoint="/v1/completions",
        status="validating",
        input_file_id=f"file-{batch_id}",
        created_s=0,
        expires_s=10**10,
    )


def given(batch_id: str = ID) -> FileRecord:
    return FileRecord(
        file_id=f"file-{batch_id}", tenant="t", purpose="batch", filename="f", num_bytes=0, created_s=0,
    )  # fmt: skip


async def begun(store: BatchStore, num_lines: int) -> None:
    await store.create(record(), given())
    lines = [Line(number, f"n{number}", 10 * number, 10) for number in range(num_lines)]
    await store.index(ID, lines)
    assert await store.begin(ID, num_lines)


def done(number: int, state: LineState = LineState.COMPLETED) -> SettledLine:
    return SettledLine(number, f"n{number}", state, b"{}")


def bill(name: str) -> Callable[[sqlite3.Connection], None]:
    return lambda c: c.execute("INSERT INTO bills VALUES (?)", (name,)).close()


async def bills(database: Database) -> list[str]:
    rows = await database.read(lambda c: c.execute("SELECT name FROM bills").fetchall())
    return [name for (name,) in rows]


async def test_a_line_is_settled_and_billed_once(store: BatchStore, database: Database) -> None:
    await begun(store, 3)
    assert await store.settle(ID, done(0), USAGE, bill("first"))
    assert not await store.settle(ID, done(0), USAGE, bill("again"))
    assert await store.settle(ID, done(1, LineState.FAILED), LineUsage(), lambda c: None)
    found = await store.get("t", "openai", ID)
    assert (found.total, found.completed, found.failed) == (3, 1, 1)
    assert (found.prompt_tokens, found.output_tokens) == (10, 2)
    assert await bills(database) == ["first"]


async def test_result_and_bill_are_one_transaction(store: BatchStore, database: Database) -> None:
    """What fails after the result was written takes it back."""
    await begun(store, 1)

    def broken(connection: sqlite3.Connection) -> None:
        bill("lost")(connection)
        connection.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(StoreError):
        await store.settle(ID, done(0), USAGE, broken)
    assert await bills(database) == []
    assert (await store.get("t", "openai", ID)).completed == 0
    assert await store.settle(ID, done(0), USAGE, bill("kept"))
    assert await bills(database) == ["kept"]


async def test_no_line_is_leased_twice(store: BatchStore) -> None:
    await begun(store, 10)
    first = await store.claim(ID, 4)
    second = await store.claim(ID, 100)
    assert [line.number for line in (*first, *second)] == list(range(10))
    assert first[3] == Line(3, "n3", 30, 10)
    assert await store.claim(ID, 100) == []
    await store.release(ID, [2, 5])
    assert [line.number for line in await store.claim(ID, 100)] == [2, 5]


async def test_the_next_server_gets_all_leases_at_once(
    store: BatchStore, database: Database
) -> None:
    await begun(store, 4)
    await store.claim(ID, 3)
    await store.settle(ID, done(1), USAGE, lambda c: None)
    later = BatchStore(database)
    await later.start()
    assert await later.unfinished() == [ID]
    assert [line.number for line in await later.claim(ID, 100)] == [0, 2, 3]


async def test_leases_end_and_are_renewed(
    store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(store, 2)
    now = time.monotonic()
    await store.claim(ID, 2)
    monkeypatch.setattr(batches.time, "monotonic", lambda: now + LEASE_S / 2)
    await store.renew(ID, [0])
    monkeypatch.setattr(batches.time, "monotonic", lambda: now + LEASE_S + 1)
    assert [line.number for line in await store.claim(ID, 2)] == [1]


async def test_the_time_of_day_moves_no_lease(
    store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(store, 2)
    await store.claim(ID, 2)
    monkeypatch.setattr(batches.time, "time", lambda: 10.0**12)
    assert await store.claim(ID, 2) == []


async def test_cancelled_between_its_lines(store: BatchStore, database: Database) -> None:
    await begun(store, 3)
    told: list[str] = []
    store.on_change = told.append
    await store.settle(ID, done(1), USAGE, lambda c: None)
    assert (await store.cancel("t", "openai", ID)).status == "cancelling"
    assert (await store.cancel("t", "openai", ID)).status == "cancelling"
    assert told == [ID, ID]
    for _ in range(2):  # the second as after a crash
        await store.close_lines(ID, "completed")
    late = await store.settle(ID, done(2), USAGE, bill("late"))
    assert not late
    assert await bills(database) == []
    states = [line.state for line in await store.settled(ID, -1, 9)]
    assert states == [LineState.CANCELLED, LineState.COMPLETED, LineState.CANCELLED]
    await store.finish(ID, None, None)
    found = await store.get("t", "openai", ID)
    assert (found.status, found.unrun, found.completed) == ("cancelled", 2, 1)
    with pytest.raises(InvalidRequestError, match="is cancelled"):
        await store.cancel("t", "openai", ID)
    await store.drop_lines(ID)
    assert await store.settled(ID, -1, 9) == []


async def test_cancelled_while_its_input_is_looked_at(store: BatchStore) -> None:
    await store.create(record(), given())
    await store.index(ID, [Line(0, "a", 0, 1)])
    await store.cancel("t", "openai", ID)
    assert not await store.begin(ID, 1)
    await store.refuse(ID, [{"code": "x"}])
    await store.close_lines(ID, "completed")
    assert await store.settled(ID, -1, 9) == []
    await store.finish(ID, None, None)
    assert (await store.get("t", "openai", ID)).status == "cancelled"


async def test_expired(store: BatchStore) -> None:
    await begun(store, 2)
    await store.close_lines(ID, "expired")
    assert (await store.get("t", "openai", ID)).status == "finalizing"
    with pytest.raises(InvalidRequestError, match="finalizing"):
        await store.cancel("t", "openai", ID)
    await store.finish(ID, None, None)
    found = await store.get("t", "openai", ID)
    assert (found.status, found.unrun) == ("expired", 2)
    assert found.time_of("expired") is not None
    assert found.time_of("completed") is None


async def test_an_ended_batch_moves_no_more(store: BatchStore) -> None:
    await begun(store, 0)
    await store.close_lines(ID, "completed")
    await store.finish(ID, None, None)
    assert not await store.finish(ID, None, None)
    await store.close_lines(ID, "expired")
    assert (await store.get("t", "openai", ID)).status == "completed"


async def test_a_second_look_at_the_input_changes_nothing(store: BatchStore) -> None:
    await store.create(record(), given())
    lines = [Line(number, f"n{number}", 0, 1) for number in range(5)]
    await store.index(ID, lines[:3])
    await store.index(ID, lines)
    assert await store.begin(ID, 5)
    assert await store.has_open_lines(ID)
    await store.settle(ID, done(0), USAGE, lambda c: None)
    await store.index(ID, lines)  # too late to change anything
    assert await store.begin(ID, 5)
    assert [line.number for line in await store.claim(ID, 100)] == [1, 2, 3, 4]


async def test_too_many_at_a_time(store: BatchStore) -> None:
    for number in range(MAX_OPEN):
        await store.create(record(f"b{number}"), given(f"b{number}"))
    with pytest.raises(OverloadedError, match="cancel one"):
        await store.create(record(), given())
    await store.refuse("b7", [])
    await store.create(record(), given())
