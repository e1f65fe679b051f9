"""Files that clients keep here: bytes in a folder beside the database, names and ownership in its table.

A file is there once its row is: it is written under a name of its own, synced, renamed, and only then told of. What a
crash leaves without a row is removed at the next start. A file that others hold, such as the input of a batch, is not
deleted. A tenant sees its own only; files for our own use are seen by nobody.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from nonet.core.errors import InvalidRequestError, NotFoundError, StoreError
from nonet.store.database import Database

__all__ = ["INTERNAL", "FileRecord", "FileStore", "hold_file", "insert_file", "new_file_id"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    file_id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    purpose TEXT NOT NULL,
    filename TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    created_s INTEGER NOT NULL,
    expires_s INTEGER,
    holds INTEGER NOT NULL DEFAULT 0
)
"""
COLUMNS = "file_id, tenant, purpose, filename, num_bytes, created_s, expires_s"
ADD = f"INSERT INTO files ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
FIND = f"SELECT {COLUMNS} FROM files WHERE file_id = ? AND tenant = ?"
# The page after a file, in either direction; seq tells apart what was made in the same second.
PAGE = {
    "desc": f"""
        SELECT {COLUMNS} FROM files WHERE tenant = ? AND purpose != 'internal' AND (? IS NULL OR purpose = ?)
        AND (expires_s IS NULL OR expires_s > ?)
        AND seq < coalesce((SELECT seq FROM files WHERE file_id = ?), 9e18) ORDER BY seq DESC LIMIT ?
    """,
    "asc": f"""
        SELECT {COLUMNS} FROM files WHERE tenant = ? AND purpose != 'internal' AND (? IS NULL OR purpose = ?)
        AND (expires_s IS NULL OR expires_s > ?)
        AND seq > coalesce((SELECT seq FROM files WHERE file_id = ?), 0) ORDER BY seq LIMIT ?
    """,
}
INTERNAL = "internal"  # a purpose that no client can name


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file, in the order of the table's columns. Times are Unix seconds."""

    file_id: str
    tenant: str
    purpose: str
    filename: str
    num_bytes: int
    created_s: int
    expires_s: int | None = None


class FileStore:
    """The folder and its table. `add` and `delete` are durable when they return."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        max_bytes: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`max_bytes` is for those who take files to keep to."""
        self.max_bytes = max_bytes
        self._database = database
        self._folder = folder
        self._wall = wall

    async def start(self) -> None:
        """Make what is missing, and remove what has no row."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._database.write(lambda connection: connection.execute(SCHEMA).close())
        known = await self._database.read(
            lambda connection: {name for (name,) in connection.execute("SELECT file_id FROM files")}
        )
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink()

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are. Only for ids that a row has given: they are never a client's text."""
        return self._folder / file_id

    def part(self) -> Path:
        """Where to write a file that is still to be added."""
        return self._folder / f"{secrets.token_hex(16)}.part"

    async def num_bytes(self) -> int:
        """Of all files together."""

        def job(connection: sqlite3.Connection) -> int:
            return int(
                connection.execute("SELECT coalesce(sum(num_bytes), 0) FROM files").fetchone()[0]
            )

        return await self._database.read(job)

    async def add(self, record: FileRecord, part: Path) -> None:
        """Keep what was written to `part`."""
        await self.place(record.file_id, part)
        await self._database.write(lambda connection: insert_file(connection, record))

    async def place(self, file_id: str, part: Path) -> None:
        """Give the bytes their name; the row comes in a transaction of the caller's."""
        try:
            await asyncio.to_thread(_settle, part, self.path(file_id))
        except OSError as error:
            raise StoreError(f"the file could not be kept: {error.strerror}") from None

    async def get(self, tenant: str, file_id: str) -> FileRecord:
        return await self._database.read(lambda connection: self._find(connection, tenant, file_id))

    async def page(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, order: str
    ) -> list[FileRecord]:
        """Up to `limit` files after the one named, the newest first unless `order` is "asc"."""

        def job(connection: sqlite3.Connection) -> list[FileRecord]:
            if after is not None:
                self._find(connection, tenant, after)
            values = (tenant, purpose, purpose, self._wall(), after, limit)
            return [_record(row) for row in connection.execute(PAGE[order], values)]

        return await self._database.read(job)

    async def delete(self, tenant: str, file_id: str) -> None:
        """InvalidRequestError while a batch still reads it."""

        def job(connection: sqlite3.Connection) -> None:
            self._find(connection, tenant, file_id)
            gone = connection.execute(
                "DELETE FROM files WHERE file_id = ? AND holds = 0", (file_id,)
            ).rowcount
            if not gone:
                raise InvalidRequestError(
                    f"file {file_id!r} is the input of a batch that has not ended; cancel the batch first"
                )

        await self._database.write(job)
        self.path(file_id).unlink(missing_ok=True)

    async def discard(self, *file_ids: str | None) -> None:
        """Remove files of our own use."""

        def job(connection: sqlite3.Connection) -> list[str]:
            rows = [
                connection.execute(
                    "DELETE FROM files WHERE file_id = ? AND purpose = 'internal' RETURNING file_id",
                    (file_id,),
                ).fetchone()
                for file_id in file_ids
            ]
            return [row[0] for row in rows if row is not None]

        for file_id in await self._database.write(job):
            self.path(file_id).unlink(missing_ok=True)

    async def remove_expired(self) -> None:
        """Files past their time go, but for those that are held."""

        def job(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(
                "DELETE FROM files WHERE expires_s <= ? AND holds = 0 RETURNING file_id",
                (self._wall(),),
            ).fetchall()
            return [file_id for (file_id,) in rows]

        for file_id in await self._database.write(job):
            self.path(file_id).unlink(missing_ok=True)

    def _find(self, connection: sqlite3.Connection, tenant: str, file_id: str) -> FileRecord:
        row = connection.execute(FIND, (file_id, tenant)).fetchone()
        if row is None:
            raise _not_found(file_id)
        record = _record(row)
        has_expired = record.expires_s is not None and record.expires_s <= self._wall()
        if record.purpose == INTERNAL or has_expired:
            raise _not_found(file_id)
        return record


def new_file_id() -> str:
    return f"file-{secrets.token_hex(16)}"


def insert_file(connection: sqlite3.Connection, record: FileRecord) -> None:
    """Add a row inside the caller's transaction."""
    connection.execute(ADD, msgspec.structs.astuple(record))


def hold_file(connection: sqlite3.Connection, file_id: str, by: int) -> None:
    """One more (1) or one less (-1) who needs the file, inside the caller's transaction. NotFoundError when it went."""
    held = connection.execute(
        "UPDATE files SET holds = holds + ? WHERE file_id = ?", (by, file_id)
    ).rowcount
    if not held:
        raise _not_found(file_id)


def _not_found(file_id: str) -> NotFoundError:
    return NotFoundError(
        f"no file {file_id[:100]!r} is kept here; it was deleted, has expired or never was"
    )


def _record(row: tuple[str, str, str, str, int, int, int | None]) -> FileRecord:
    file_id, tenant, purpose, filename, num_bytes, created_s, expires_s = row
    return FileRecord(
        file_id=file_id,
        tenant=tenant,
        purpose=purpose,
        filename=filename,
        num_bytes=num_bytes,
        created_s=created_s,
        expires_s=expires_s,
    )


def _settle(part: Path, path: Path) -> None:
    """Durable bytes under their final name."""
    descriptor = os.open(part, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
