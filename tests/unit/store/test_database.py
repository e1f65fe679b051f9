"""One writer: durable when acknowledged, grouped, a failing job undone alone, one process at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nonet.core.errors import ConfigError, InvalidRequestError, StoreError
from nonet.store import database as store
from nonet.store.database import Database, open_for_reading


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "deep" / "nonet.db")
    made.open()
    await made.write(lambda c: c.execute("CREATE TABLE t (x INTEGER UNIQUE)").close())
    yield made
    await made.close()


def insert(value: int) -> object:
    return lambda c: c.execute("INSERT INTO t VALUES (?)", (value,)).close()


async def values(database: Database) -> list[int]:
    rows = await database.read(lambda c: c.execute("SELECT x FROM t ORDER BY x").fetchall())
    return [value for (value,) in rows]


async def test_writes_are_there_when_acknowledged(database: Database) -> None:
    for value in range(5):
        await database.write(insert(value))
        assert value in await values(database)


async def test_a_failing_job_is_undone_alone(database: Database) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (100)")
        raise InvalidRequestError("changed my mind")

    jobs = [insert(1), half, insert(2), insert(1), insert(3)]
    outcomes = await asyncio.gather(*[database.write(j) for j in jobs], return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        type(None), InvalidRequestError, type(None), StoreError, type(None),
    ]  # fmt: skip
    assert await values(database) == [1, 2, 3]


async def test_waiting_writes_share_a_commit(database: Database) -> None:
    """Each transaction counts one commit up; the pragma below is SQLite's own count of them."""

    are_all_there = threading.Event()

    async def commits() -> int:
        (number,) = await database.read(lambda c: c.execute("PRAGMA data_version").fetchone())
        return int(number)

    await commits()
    versions = set()

    async def one(value: int) -> None:
        await database.write(insert(value))
        versions.add(await commits())

    database.submit(lambda _: are_all_there.wait(60))
    tasks = [asyncio.create_task(one(value)) for value in range(50)]
    await asyncio.sleep(0)  # each runs up to its wait
    are_all_there.set()
    await asyncio.gather(*tasks)
    assert len(await values(database)) == 50
    assert len(versions) <= 3


async def test_what_nobody_waits_for_goes_with_the_next_in_order(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    commit = store._commit
    monkeypatch.setattr(
        store, "_commit", lambda c, group: (groups.append(len(group)), commit(c, group))[1]
    )
    database.submit(insert(1))
    database.submit(lambda c: c.execute("UPDATE t SET x = 10 * x").close())
    await database.write(insert(2))
    assert groups == [3]
    assert await values(database) == [2, 10]


async def test_what_nobody_waits_for_is_written_soon_and_before_the_end(tmp_path: Path) -> None:
    database = Database(tmp_path / "nonet.db")
    database.open()
    await database.write(lambda c: c.execute("CREATE TABLE t (x INTEGER UNIQUE)").close())
    database.submit(insert(1))
    while not await values(database):
        await asyncio.sleep(0.01)
    database.submit(insert(2))
    await database.close()
    with contextlib.closing(open_for_reading(tmp_path / "nonet.db")) as reading:
        assert reading.execute("SELECT count(*) FROM t").fetchone() == (2,)


async def test_a_full_disk_fails_everybody_and_heals(database: Database) -> None:
    await database.write(lambda c: c.execute("PRAGMA max_page_count=6").close())
    blob = b"x" * 100_000

    def big(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE big (b BLOB)")
        connection.execute("INSERT INTO big VALUES (?)", (blob,))

    with pytest.raises(StoreError, match="see its log"):
        await database.write(big)
    await database.write(lambda c: c.execute("PRAGMA max_page_count=100000").close())
    await database.write(insert(7))
    assert await values(database) == [7]


async def test_one_process_at_a_time(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "nonet.db"
    other = Database(path)
    with pytest.raises(ConfigError, match="in use by another server"):
        other.open()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with open_for_reading(path) as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("INSERT INTO t VALUES (1)")
    reader.close()


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "nonet.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigError, match="cannot be used"):
        Database(path).open()
    with pytest.raises(ConfigError, match="no database at"):
        open_for_reading(tmp_path / "none.db")


KILLED = """
import asyncio, sys
from pathlib import Path
from nonet.store.database import Database
async def main():
    database = Database(Path(sys.argv[1]))
    database.open()
    await database.write(lambda c: c.execute("CREATE TABLE IF NOT EXISTS t (x INTEGER UNIQUE)").close())
    async def many(start):
        for value in range(start, start + 10_000, 10):
            await database.write(lambda c: c.execute("INSERT INTO t VALUES (?)", (value,)).close())
            print(value, flush=True)
    await asyncio.gather(*[many(start) for start in range(10)])
asyncio.run(main())
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "nonet.db"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = {int(process.stdout.readline()) for _ in range(300)}
    os.kill(process.pid, signal.SIGKILL)
    acknowledged |= {int(line) for line in process.stdout.read().splitlines()[:-1]}
    process.wait(10)
    process.stdout.close()
    with open_for_reading(path) as reader:
        kept = {value for (value,) in reader.execute("SELECT x FROM t")}
    reader.close()
    assert acknowledged <= kept
    database = Database(path)
    database.open()  # the lock went with the process
    asyncio.run(database.close())
