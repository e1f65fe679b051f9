"""What a batch and its lines are in the database: the tables, rows and queries, and the legal moves of a status."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

__all__ = [
    "CLAIM",
    "COLUMNS",
    "ENDED",
    "FIND",
    "MOVES",
    "NOTED",
    "OPEN",
    "PAGE",
    "PLACES",
    "SCHEMA",
    "BatchRecord",
    "Line",
    "LineState",
    "LineUsage",
    "SettledLine",
]

SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    batch_id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    dialect TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    status TEXT NOT NULL,
    outcome TEXT NOT NULL DEFAULT '',
    input_file_id TEXT NOT NULL,
    output_file_id TEXT,
    error_file_id TEXT,
    output_ttl_s INTEGER,
    metadata TEXT NOT NULL,
    errors TEXT NOT NULL DEFAULT '[]',
    times TEXT NOT NULL,
    created_s INTEGER NOT NULL,
    expires_s INTEGER NOT NULL,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    unrun INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    thought_tokens INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS batch_lines (
    batch_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    start INTEGER NOT NULL,
    size INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    lease TEXT NOT NULL DEFAULT '',
    until_s REAL NOT NULL DEFAULT 0,
    result BLOB,
    UNIQUE (batch_id, number),
    UNIQUE (batch_id, custom_id)
);
CREATE INDEX IF NOT EXISTS batch_open_lines ON batch_lines (batch_id, number) WHERE state = 0;
"""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
MOVES = {
    "validating": {"in_progress", "failed", "cancelling", "finalizing"},
    "in_progress": {"finalizing", "cancelling"},
    "cancelling": {"cancelled"},
    "finalizing": {"completed", "expired"},
}


class LineState(enum.IntEnum):
    """What became of a line."""

    OPEN = 0
    COMPLETED = 1
    FAILED = 2
    CANCELLED = 3  # not run: the batch was cancelled before
    EXPIRED = 4


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One batch, in the order of the columns that are read. Times are Unix seconds."""

    batch_id: str
    tenant: str
    key_id: str
    dialect: str
    endpoint: str
    status: str
    outcome: str = ""  # what the status will be once the files are written
    input_file_id: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_ttl_s: int | None = None
    metadata: str = "null"  # JSON
    errors: str = "[]"  # JSON: what is wrong with the input
    times: str = "{}"  # JSON: when each status began
    created_s: int
    expires_s: int
    total: int = 0
    completed: int = 0
    failed: int = 0
    unrun: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    thought_tokens: int = 0

    def time_of(self, status: str) -> int | None:
        """When it came to that status, if it did."""
        found: dict[str, int] = msgspec.json.decode(self.times)
        return found.get(status)


OPEN = """
SELECT count(*) FROM batches WHERE tenant = ? AND status IN ('validating', 'in_progress', 'cancelling', 'finalizing')
"""
CLAIM = """
SELECT number, custom_id, start, size FROM batch_lines
WHERE batch_id = ? AND state = 0 AND (lease != ? OR until_s < ?) ORDER BY number LIMIT ?
"""
NOTED = """
SELECT json_extract(times, '$.in_progress'), total,
    (SELECT count(*) FROM batch_lines WHERE batch_lines.batch_id = batches.batch_id)
FROM batches WHERE batch_id = ?
"""
COLUMNS = ", ".join(BatchRecord.__struct_fields__)
PLACES = ", ".join("?" * len(BatchRecord.__struct_fields__))
FIND = f"SELECT {COLUMNS} FROM batches WHERE batch_id = ? AND tenant = ? AND dialect = ?"
PAGE = {
    "after": f"""
        SELECT {COLUMNS} FROM batches WHERE tenant = ? AND dialect = ?
        AND seq < coalesce((SELECT seq FROM batches WHERE batch_id = ?), 9e18) ORDER BY seq DESC LIMIT ?
    """,
    "before": f"""
        SELECT {COLUMNS} FROM batches WHERE tenant = ? AND dialect = ?
        AND seq > (SELECT seq FROM batches WHERE batch_id = ?) ORDER BY seq LIMIT ?
    """,
}


@dataclass(frozen=True, slots=True)
class Line:
    """Where a line of the input is, and its name."""

    number: int
    custom_id: str
    start: int  # in bytes
    size: int


@dataclass(frozen=True, slots=True)
class LineUsage:
    """Tokens of a line's answer."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    thought_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SettledLine:
    """A line that has ended. `result` is None where it was not run."""

    number: int
    custom_id: str
    state: LineState
    result: bytes | None
