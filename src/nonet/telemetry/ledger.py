"""The ledger: one row for each request that was answered, written before the answer's last byte goes out.

A row says who used how many tokens of each kind, what became of the request, what it costs, and what each technique
saved of that. Rows that wait together are committed together. Money is kept in whole picos (`telemetry.prices`).
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from nonet.store.database import Database

__all__ = ["Ledger", "LedgerRow", "create_ledger", "insert_rows"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
    id INTEGER PRIMARY KEY,
    at_s REAL NOT NULL,
    request_id TEXT NOT NULL,
    once TEXT,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    route TEXT NOT NULL,
    tier TEXT NOT NULL,
    cache TEXT NOT NULL,
    finish TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    written_5m_tokens INTEGER NOT NULL,
    written_1h_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    cost_picos INTEGER NOT NULL,
    savings TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS ledger_once ON ledger (once) WHERE once IS NOT NULL;
CREATE INDEX IF NOT EXISTS ledger_at ON ledger (at_s);
"""


class LedgerRow(NamedTuple):
    """One answered request, in the order of the table's columns."""

    at_s: float  # Unix time of the end
    request_id: str
    once: str | None  # what this row may be written for only once, such as a line of a batch
    tenant: str
    key_id: str
    model: str
    route: str
    tier: str
    cache: str  # "exact", "semantic", "miss", "bypass", or "" without a cache
    finish: str  # "stop", "length", "abort" or "error"
    prompt_tokens: int
    cached_tokens: int
    written_5m_tokens: int
    written_1h_tokens: int
    output_tokens: int
    seconds: float
    cost_picos: int
    savings: str  # JSON: [technique, prompt tokens, output tokens, seconds, picos] each, or ""


COLUMNS = ", ".join(LedgerRow._fields)
PLACES = "(" + ", ".join("?" * len(LedgerRow._fields)) + ")"
# As many rows in a statement as there are: each statement is a trip out of Python and back.
MOST_ROWS = 64
INSERTS = tuple(
    f"INSERT OR IGNORE INTO ledger ({COLUMNS}) VALUES {', '.join([PLACES] * size)}"
    for size in range(MOST_ROWS + 1)
)


class Ledger:
    """Appends rows to the table of a database; the event loop's side of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()  # the writer thread closes what the event loop fills
        self._open: _Group | None = None

    async def start(self) -> None:
        await self._database.write(create_ledger)

    async def record(self, row: LedgerRow) -> None:
        """Returns once the row is on disk; StoreError when it could not be written."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._put(row, future)
        await future

    def post(self, row: LedgerRow) -> None:
        """As `record`, without waiting: for a caller who has left."""
        self._put(row, None)

    def close(self) -> None:
        """What was recorded until now is the database's, which writes it before it closes."""
        group = self._open
        if group is not None:
            self._hand_over(group)

    def _put(self, row: LedgerRow, future: asyncio.Future[None] | None) -> None:
        with self._lock:
            group = self._open
            is_new = group is None
            if group is None:
                group = self._open = _Group()
            group.rows.append(row)
            if future is not None:
                group.waiters.append(future)
        if is_new:
            # After all that is ready now: whoever ends in this turn of the event loop shares one commit.
            asyncio.get_running_loop().call_soon(self._hand_over, group)

    def _hand_over(self, group: _Group) -> None:
        if not group.is_handed_over:
            group.is_handed_over = True
            self._database.submit(partial(self._flush, group), group.tell)

    def _flush(self, group: _Group, connection: sqlite3.Connection) -> None:
        with self._lock:
            if self._open is group:
                self._open = None
        insert_rows(connection, group.rows)


@dataclass(slots=True)
class _Group:
    """Rows of one commit, and who waits for it."""

    rows: list[LedgerRow] = field(default_factory=list)
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    is_handed_over: bool = False  # to the database

    def tell(self, _: None, error: BaseException | None) -> None:
        for waiter in self.waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)


def create_ledger(connection: sqlite3.Connection) -> None:
    """Make the table where it is not there yet."""
    for statement in SCHEMA.split(";"):
        connection.execute(statement)


def insert_rows(connection: sqlite3.Connection, rows: Sequence[LedgerRow]) -> None:
    """Append rows inside the caller's transaction; one whose `once` is there already is left out."""
    for start in range(0, len(rows), MOST_ROWS):
        some = rows[start : start + MOST_ROWS]
        connection.execute(INSERTS[len(some)], [value for row in some for value in row])
