"""Where the answers of a cache outlive the process: the tier below its memory.

A tier may be slow and may lose what it holds: an answer that is not there is made again. So nobody waits for a change,
and one that cannot be made costs a hit only.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple, Protocol

from nonet.gateway.cache.stored import Entry
from nonet.store.database import Database

__all__ = ["Held", "SqliteTier", "Tier"]

TABLES = ("answer", "semantic_answer")


class Held(NamedTuple):
    """What is known of an entry without reading it."""

    key: bytes
    tenant: str
    made_s: float  # Unix time
    size: int  # in bytes, as Entry.num_bytes


class Tier(Protocol):
    """Entries by key. Used from one event loop; changes of a key take effect in the order in which they were asked for.

    A file of this process has one implementation here. A store that servers share (Redis, PostgreSQL) is another class
    with these four methods; tests/contract/test_cache_tier.py says what is expected of it.
    """

    async def start(self, oldest_s: float) -> list[Held]:
        """Prepare, drop what was made before `oldest_s`, and list the rest from the oldest to the newest."""
        ...

    async def load(self, key: bytes) -> Entry | None:
        """The entry, or None. StoreError where the tier cannot be read, DecodeError where it holds no answer."""
        ...

    def put(self, entry: Entry) -> None:
        """Keep an entry soon, in place of another with its key."""
        ...

    def drop(self, key: bytes) -> None:
        """Forget an entry soon."""
        ...


class SqliteTier:
    """A table of a database."""

    def __init__(self, database: Database, table: str = "answer") -> None:
        assert table in TABLES
        self._database = database
        self._schema = (
            f"CREATE TABLE IF NOT EXISTS {table} (key BLOB PRIMARY KEY, tenant TEXT NOT NULL, "
            "made_s REAL NOT NULL, size INTEGER NOT NULL, body BLOB NOT NULL)"
        )
        self._delete_old = f"DELETE FROM {table} WHERE made_s < ?"
        self._select_all = f"SELECT key, tenant, made_s, size FROM {table} ORDER BY made_s"
        self._select = f"SELECT tenant, made_s, body FROM {table} WHERE key = ?"
        self._insert = (
            f"INSERT OR REPLACE INTO {table} (key, tenant, made_s, size, body) "
            "VALUES (?, ?, ?, ?, ?)"
        )
        self._delete = f"DELETE FROM {table} WHERE key = ?"

    async def start(self, oldest_s: float) -> list[Held]:
        def prepare(connection: sqlite3.Connection) -> list[Held]:
            connection.execute(self._schema)
            connection.execute(self._delete_old, (oldest_s,))
            return [Held(*row) for row in connection.execute(self._select_all)]

        return await self._database.write(prepare)

    async def load(self, key: bytes) -> Entry | None:
        row = await self._database.read(
            lambda connection: connection.execute(self._select, (key,)).fetchone()
        )
        return None if row is None else Entry.from_body(key, *row)

    def put(self, entry: Entry) -> None:
        row = (entry.key, entry.tenant, entry.made_s, entry.num_bytes, entry.body)
        self._post(self._insert, row)

    def drop(self, key: bytes) -> None:
        self._post(self._delete, (key,))

    def _post(self, statement: str, values: tuple[object, ...]) -> None:
        self._database.submit(lambda connection: connection.execute(statement, values).close())
