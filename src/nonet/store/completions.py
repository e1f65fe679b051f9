"""Chat completions that clients asked to be kept: what was said, what was answered, and what the client notes of them.

They are rows of the database for as long as turns of Responses are. A tenant sees its own only.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import msgspec

from nonet.core.errors import NotFoundError
from nonet.store.database import Database
from nonet.store.responses import RETENTION_S

__all__ = ["CompletionRecord", "CompletionStore"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    completion_id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    created_s REAL NOT NULL,
    metadata TEXT NOT NULL,
    messages BLOB NOT NULL,
    answer BLOB NOT NULL
)
"""
INDEXES = (
    "CREATE INDEX IF NOT EXISTS completions_by_tenant ON completions (tenant, seq)",
    "CREATE INDEX IF NOT EXISTS completions_by_age ON completions (created_s)",
)
COLUMNS = "completion_id, tenant, model, created_s, metadata, messages, answer"
ADD = f"INSERT INTO completions ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
FIND = (
    f"SELECT {COLUMNS} FROM completions WHERE completion_id = ? AND tenant = ? AND created_s >= ?"
)
# Those that note all that is wanted, and those after one of them in either direction; seq tells apart what was made at
# the same time.
MATCH = """
    tenant = ? AND created_s >= ? AND (? IS NULL OR model = ?) AND NOT EXISTS (
        SELECT 1 FROM json_each(?) AS wanted WHERE NOT EXISTS (
            SELECT 1 FROM json_each(completions.metadata) AS noted
            WHERE noted.key = wanted.key AND noted.value = wanted.value
        )
    )
"""
PAGE = {
    "desc": f"""
        SELECT {COLUMNS} FROM completions WHERE {MATCH}
        AND seq < coalesce((SELECT seq FROM completions WHERE completion_id = ?), 9e18) ORDER BY seq DESC LIMIT ?
    """,
    "asc": f"""
        SELECT {COLUMNS} FROM completions WHERE {MATCH}
        AND seq > coalesce((SELECT seq FROM completions WHERE completion_id = ?), 0) ORDER BY seq LIMIT ?
    """,
}


class CompletionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One completion, in the order of the table's columns; what came with it and the completion object are JSON."""

    completion_id: str
    tenant: str
    model: str
    created_s: float  # Unix time
    metadata: dict[str, str]
    messages: bytes
    answer: bytes


class CompletionStore:
    """The table. An id that is unknown, too old, or another tenant's, is NotFoundError; writes are durable when they
    return."""

    def __init__(self, database: Database, wall: Callable[[], float] = time.time) -> None:
        self._database = database
        self._wall = wall

    async def start(self) -> None:
        def job(connection: sqlite3.Connection) -> None:
            for statement in (SCHEMA, *INDEXES):
                connection.execute(statement)

        await self._database.write(job)

    async def put(self, record: CompletionRecord) -> None:
        """Those that are too old go when others come."""
        *values, metadata, messages, answer = msgspec.structs.astuple(record)
        row = (*values, _json(metadata), messages, answer)
        oldest_s = self._oldest_s()

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM completions WHERE created_s < ?", (oldest_s,))
            connection.execute(ADD, row)

        await self._database.write(job)

    async def get(self, tenant: str, completion_id: str) -> CompletionRecord:
        return await self._database.read(
            lambda connection: self._find(connection, tenant, completion_id)
        )

    async def page(
        self,
        tenant: str,
        *,
        model: str | None = None,
        metadata: dict[str, str] | None = None,
        after: str | None = None,
        limit: int,
        order: str,
    ) -> list[CompletionRecord]:
        """Up to `limit` of that model that note all of `metadata`, after the one named, the oldest first unless `order`
        is "desc"."""

        def job(connection: sqlite3.Connection) -> list[CompletionRecord]:
            if after is not None:
                self._find(connection, tenant, after)
            wanted = _json(metadata or {})
            values = (tenant, self._oldest_s(), model, model, wanted, after, limit)
            return [_record(row) for row in connection.execute(PAGE[order], values)]

        return await self._database.read(job)

    async def note(
        self, tenant: str, completion_id: str, metadata: dict[str, str]
    ) -> CompletionRecord:
        """Replace the metadata; the record as it is then."""

        def job(connection: sqlite3.Connection) -> CompletionRecord:
            self._find(connection, tenant, completion_id)
            connection.execute(
                "UPDATE completions SET metadata = ? WHERE completion_id = ?",
                (_json(metadata), completion_id),
            )
            return self._find(connection, tenant, completion_id)

        return await self._database.write(job)

    async def delete(self, tenant: str, completion_id: str) -> None:
        def job(connection: sqlite3.Connection) -> None:
            self._find(connection, tenant, completion_id)
            connection.execute("DELETE FROM completions WHERE completion_id = ?", (completion_id,))

        await self._database.write(job)

    def _find(
        self, connection: sqlite3.Connection, tenant: str, completion_id: str
    ) -> CompletionRecord:
        row = connection.execute(FIND, (completion_id, tenant, self._oldest_s())).fetchone()
        if row is None:
            raise NotFoundError(
                f"no chat completion {completion_id[:100]!r} is stored here; it was not stored, was deleted or is too "
                "old"
            )
        return _record(row)

    def _oldest_s(self) -> float:
        return self._wall() - RETENTION_S


def _json(metadata: dict[str, str]) -> str:
    """As text: SQLite reads bytes as a format of its own."""
    return msgspec.json.encode(metadata).decode()


def _record(row: tuple[str, str, str, float, str, bytes, bytes]) -> CompletionRecord:
    completion_id, tenant, model, created_s, metadata, messages, answer = row
    return CompletionRecord(
        completion_id=completion_id,
        tenant=tenant,
        model=model,
        created_s=created_s,
        metadata=msgspec.json.decode(metadata, type=dict[str, str]),
        messages=messages,
        answer=answer,
    )
