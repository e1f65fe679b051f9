"""Answers kept for later turns: what was said, what was answered, and which answer came before.

With a database they outlive the server; without one they are kept in memory, the oldest first to go. A tenant sees its
own only.
"""

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec

from nonet.core.errors import NotFoundError
from nonet.store.database import Database

__all__ = [
    "MemoryResponses",
    "ResponseRecord",
    "ResponseStore",
    "SqliteResponses",
    "response_store",
]

RETENTION_S = 30 * 86400.0
MAX_TURNS = 4096  # of one conversation
MAX_BYTES = 64 * 1024 * 1024  # in memory

TABLE = """
CREATE TABLE IF NOT EXISTS responses (
    response_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    previous_id TEXT,
    created_s REAL NOT NULL,
    input BLOB NOT NULL,
    answer BLOB NOT NULL
)
"""
INDEX = "CREATE INDEX IF NOT EXISTS responses_by_age ON responses (created_s)"


class ResponseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. `input` are the items that came with it, `answer` is the response object, both as JSON."""

    response_id: str
    tenant: str
    previous_id: str | None
    created_s: float  # Unix time
    input: bytes
    answer: bytes


class ResponseStore(Protocol):
    """Where turns are kept. An id that is unknown, or another tenant's, is NotFoundError."""

    async def start(self) -> None: ...

    async def put(self, record: ResponseRecord) -> None:
        """Returns when the record is as durable as it will be."""
        ...

    async def get(self, tenant: str, response_id: str) -> ResponseRecord: ...

    async def turns(self, tenant: str, response_id: str) -> list[ResponseRecord]:
        """The conversation up to this turn, the first turn first. NotFoundError when one of them is gone."""
        ...

    async def delete(self, tenant: str, response_id: str) -> None: ...


def response_store(database: Database | None) -> ResponseStore:
    return SqliteResponses(database) if database is not None else MemoryResponses()


class SqliteResponses:
    """Turns in a database; those older than thirty days go when others come."""

    def __init__(self, database: Database, wall: Callable[[], float] = time.time) -> None:
        self._database = database
        self._wall = wall

    async def start(self) -> None:
        def job(connection: sqlite3.Connection) -> None:
            connection.execute(TABLE)
            connection.execute(INDEX)

        await self._database.write(job)

    async def put(self, record: ResponseRecord) -> None:
        oldest_s = self._wall() - RETENTION_S

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM responses WHERE created_s < ?", (oldest_s,))
            connection.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)",
                (
                    record.response_id,
                    record.tenant,
                    record.previous_id,
                    record.created_s,
                    record.input,
                    record.answer,
                ),
            )

        await self._database.write(job)

    async def get(self, tenant: str, response_id: str) -> ResponseRecord:
        return await self._database.read(
            lambda connection: self._find(connection, tenant, response_id)
        )

    async def turns(self, tenant: str, response_id: str) -> list[ResponseRecord]:
        return await self._database.read(
            lambda connection: _walk(response_id, lambda one: self._find(connection, tenant, one))
        )

    async def delete(self, tenant: str, response_id: str) -> None:
        def job(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM responses WHERE response_id = ? AND tenant = ?", (response_id, tenant)
            ).rowcount

        if not await self._database.write(job):
            raise _not_found(response_id)

    def _find(
        self, connection: sqlite3.Connection, tenant: str, response_id: str
    ) -> ResponseRecord:
        row = connection.execute(
            "SELECT previous_id, created_s, input, answer FROM responses WHERE response_id = ? AND tenant = ?",
            (response_id, tenant),
        ).fetchone()
        if row is None or row[1] < self._wall() - RETENTION_S:
            raise _not_found(response_id)
        previous_id, created_s, given, answer = row
        return ResponseRecord(
            response_id=response_id,
            tenant=tenant,
            previous_id=previous_id,
            created_s=created_s,
            input=given,
            answer=answer,
        )


class MemoryResponses:
    """Turns of this run of the server, within `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._records: OrderedDict[str, ResponseRecord] = OrderedDict()

    async def start(self) -> None:
        """There is nothing to prepare."""

    async def put(self, record: ResponseRecord) -> None:
        self._records[record.response_id] = record
        self._num_bytes += _size(record)
        while self._num_bytes > self._max_bytes and self._records:
            _, oldest = self._records.popitem(last=False)
            self._num_bytes -= _size(oldest)

    async def get(self, tenant: str, response_id: str) -> ResponseRecord:
        record = self._records.get(response_id)
        if record is None or record.tenant != tenant:
            raise _not_found(response_id)
        return record

    async def turns(self, tenant: str, response_id: str) -> list[ResponseRecord]:
        def find(one: str) -> ResponseRecord:
            record = self._records.get(one)
            if record is None or record.tenant != tenant:
                raise _not_found(one)
            return record

        return _walk(response_id, find)

    async def delete(self, tenant: str, response_id: str) -> None:
        await self.get(tenant, response_id)
        self._num_bytes -= _size(self._records.pop(response_id))


def _walk(response_id: str, find: Callable[[str], ResponseRecord]) -> list[ResponseRecord]:
    turns: list[ResponseRecord] = []
    wanted: str | None = response_id
    while wanted is not None and len(turns) < MAX_TURNS:
        turns.append(find(wanted))
        wanted = turns[-1].previous_id
    return turns[::-1]


def _size(record: ResponseRecord) -> int:
    return len(record.input) + len(record.answer) + 512


def _not_found(response_id: str) -> NotFoundError:
    return NotFoundError(
        f"no response {response_id[:100]!r} is stored here; it was not stored, was deleted or is too old"
    )
