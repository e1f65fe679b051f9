"""Batches and their lines: a state machine in rows, so that what a crash interrupts goes on where it was.

A line is settled once: its result, the counts, and whatever the caller adds (its row in the ledger) are one transaction
that does nothing when the line was settled before. Leases keep a line from being run twice at a time. They belong to
one opening of the database, which has one server at a time, so those of a server that died are free at once; they end
by the monotonic clock, which no change of the time of day moves.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence

import msgspec

from nonet.core.errors import InvalidRequestError, NotFoundError, OverloadedError
from nonet.store.batch_records import (
    CLAIM,
    COLUMNS,
    ENDED,
    FIND,
    MOVES,
    NOTED,
    OPEN,
    PAGE,
    PLACES,
    SCHEMA,
    BatchRecord,
    Line,
    LineState,
    LineUsage,
    SettledLine,
)
from nonet.store.database import Database
from nonet.store.files import FileRecord, hold_file, insert_file

__all__ = ["LEASE_S", "BatchStore"]

LEASE_S = 60.0
MAX_OPEN = 200  # batches of one tenant that have not ended
RETRY_S = 60.0
AT_ONCE = 2000  # lines dropped in one transaction


class BatchStore:
    """All batches of a database. Who runs them is told of new ones, and of cancelled ones, by `on_change`."""

    def __init__(self, database: Database, wall: Callable[[], float] = time.time) -> None:
        self._database = database
        self._wall = wall
        self._opening = secrets.token_hex(8)
        self.on_change: Callable[[str], None] = lambda batch_id: None

    async def start(self) -> None:
        """Make the tables, and drop lines that a crash left behind in a batch that has ended."""

        def job(connection: sqlite3.Connection) -> None:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(
                "DELETE FROM batch_lines WHERE batch_id NOT IN (SELECT batch_id FROM batches WHERE status IN "
                "('validating', 'in_progress', 'cancelling', 'finalizing'))"
            )

        await self._database.write(job)

    async def create(self, record: BatchRecord, given: FileRecord | None = None) -> None:
        """Add a batch, and its input file with it where that is new. The input is held until the batch has ended.
        OverloadedError when the tenant has too many that have not."""

        def job(connection: sqlite3.Connection) -> None:
            (num_open,) = connection.execute(OPEN, (record.tenant,)).fetchone()
            if num_open >= MAX_OPEN:
                raise OverloadedError(
                    f"{num_open} batches have not ended, the most there may be; wait for one, or cancel one",
                    RETRY_S,
                )
            if given is not None:
                insert_file(connection, given)
            connection.execute(
                f"INSERT INTO batches ({COLUMNS}) VALUES ({PLACES})",
                msgspec.structs.astuple(record),
            )
            hold_file(connection, record.input_file_id, 1)

        await self._database.write(job)
        self.on_change(record.batch_id)

    async def get(self, tenant: str, dialect: str, batch_id: str) -> BatchRecord:
        return await self._database.read(
            lambda connection: _find(connection, tenant, dialect, batch_id)
        )

    async def page(
        self, tenant: str, dialect: str, *, limit: int, after: str | None, before: str | None = None
    ) -> list[BatchRecord]:
        """Up to `limit` batches, the newest first: those made before `after`, or those made just after `before`."""

        def job(connection: sqlite3.Connection) -> list[BatchRecord]:
            named = before if before is not None else after
            if named is not None:
                _find(connection, tenant, dialect, named)
            query = PAGE["after" if before is None else "before"]
            rows = connection.execute(query, (tenant, dialect, named, limit)).fetchall()
            return [_record(row) for row in (rows if before is None else rows[::-1])]

        return await self._database.read(job)

    async def cancel(self, tenant: str, dialect: str, batch_id: str) -> BatchRecord:
        """Begin to cancel; again changes nothing. InvalidRequestError when it is too late."""

        def job(connection: sqlite3.Connection) -> BatchRecord:
            record = _find(connection, tenant, dialect, batch_id)
            if record.status in ENDED or record.status == "finalizing":
                raise InvalidRequestError(
                    f"batch {batch_id!r} is {record.status} and cannot be cancelled any more"
                )
            if record.status != "cancelling":
                self._move(connection, batch_id, "cancelling")
            return _find(connection, tenant, dialect, batch_id)

        record = await self._database.write(job)
        self.on_change(batch_id)
        return record

    async def delete(self, tenant: str, dialect: str, batch_id: str) -> BatchRecord:
        """Forget a batch that has ended; what it was. Its files are the caller's to delete."""

        def job(connection: sqlite3.Connection) -> BatchRecord:
            record = _find(connection, tenant, dialect, batch_id)
            if record.status not in ENDED:
                raise InvalidRequestError(f"batch {batch_id!r} has not ended; cancel it first")
            connection.execute("DELETE FROM batches WHERE batch_id = ?", (batch_id,))
            return record

        return await self._database.write(job)

    async def find(self, batch_id: str) -> BatchRecord | None:
        """Whatever tenant's, for who runs it; None when it was deleted."""

        def job(connection: sqlite3.Connection) -> BatchRecord | None:
            query = f"SELECT {COLUMNS} FROM batches WHERE batch_id = ?"
            row = connection.execute(query, (batch_id,)).fetchone()
            return None if row is None else _record(row)

        return await self._database.read(job)

    async def unfinished(self) -> list[str]:
        """Batches that have not ended, the oldest first."""

        def job(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT batch_id, status FROM batches ORDER BY seq")
            return [batch_id for batch_id, status in rows if status not in ENDED]

        return await self._database.read(job)

    async def index(self, batch_id: str, lines: Sequence[Line]) -> None:
        """Note where lines are. An input file never changes, so those that were noted before stay as they are."""

        def job(connection: sqlite3.Connection) -> None:
            if _status(connection, batch_id) not in ("validating", "cancelling"):
                return
            connection.executemany(
                "INSERT OR IGNORE INTO batch_lines (batch_id, number, custom_id, start, size) VALUES (?, ?, ?, ?, ?)",
                [(batch_id, one.number, one.custom_id, one.start, one.size) for one in lines],
            )

        await self._database.write(job)

    async def begin(self, batch_id: str, total: int) -> bool:
        """All lines are noted: run them. False when the batch was cancelled meanwhile."""

        def job(connection: sqlite3.Connection) -> bool:
            status = _status(connection, batch_id)
            if status == "validating":
                self._move(connection, batch_id, "in_progress")
                connection.execute(
                    "UPDATE batches SET total = ? WHERE batch_id = ?", (total, batch_id)
                )
            return status in ("validating", "in_progress")

        return await self._database.write(job)

    async def refuse(self, batch_id: str, errors: Sequence[dict[str, object]]) -> None:
        """The input is no use; unless it was cancelled meanwhile, the batch has failed."""

        def job(connection: sqlite3.Connection) -> None:
            if _status(connection, batch_id) != "validating":
                return
            self._move(connection, batch_id, "failed")
            connection.execute(
                "UPDATE batches SET errors = ? WHERE batch_id = ?",
                (msgspec.json.encode(errors).decode(), batch_id),
            )
            self._release_input(connection, batch_id)

        await self._database.write(job)

    async def claim(self, batch_id: str, most: int) -> list[Line]:
        """Lease up to `most` open lines that nobody has, in order."""

        def job(connection: sqlite3.Connection) -> list[Line]:
            now = time.monotonic()
            rows = connection.execute(CLAIM, (batch_id, self._opening, now, most)).fetchall()
            connection.executemany(
                "UPDATE batch_lines SET lease = ?, until_s = ? WHERE batch_id = ? AND number = ?",
                [(self._opening, now + LEASE_S, batch_id, row[0]) for row in rows],
            )
            return [Line(*row) for row in rows]

        return await self._database.write(job)

    async def has_open_lines(self, batch_id: str) -> bool:
        """Whether a line is still to be settled, by whomever."""

        def job(connection: sqlite3.Connection) -> bool:
            query = "SELECT 1 FROM batch_lines WHERE batch_id = ? AND state = 0 LIMIT 1"
            return connection.execute(query, (batch_id,)).fetchone() is not None

        return await self._database.read(job)

    async def renew(self, batch_id: str, numbers: Sequence[int]) -> None:
        """Keep the leases of lines that are still at work."""

        def job(connection: sqlite3.Connection) -> None:
            until_s = time.monotonic() + LEASE_S
            connection.executemany(
                "UPDATE batch_lines SET until_s = ? WHERE batch_id = ? AND number = ? AND lease = ?",
                [(until_s, batch_id, number, self._opening) for number in numbers],
            )

        await self._database.write(job)

    async def release(self, batch_id: str, numbers: Sequence[int]) -> None:
        """Give leases back."""

        def job(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "UPDATE batch_lines SET lease = '' WHERE batch_id = ? AND number = ? AND lease = ?",
                [(batch_id, number, self._opening) for number in numbers],
            )

        await self._database.write(job)

    async def settle(
        self,
        batch_id: str,
        line: SettledLine,
        usage: LineUsage,
        also: Callable[[sqlite3.Connection], None],
    ) -> bool:
        """Keep a line's result and count it, and run `also` in the same transaction. False, and nothing happens, when
        the line was settled before or the batch no longer takes results."""

        def job(connection: sqlite3.Connection) -> bool:
            settled = connection.execute(
                "UPDATE batch_lines SET state = ?, result = ? WHERE batch_id = ? AND number = ? AND state = 0",
                (line.state, line.result, batch_id, line.number),
            ).rowcount
            if not settled:
                return False
            is_completed = line.state is LineState.COMPLETED
            connection.execute(
                "UPDATE batches SET completed = completed + ?, failed = failed + ?, prompt_tokens = prompt_tokens + ?, "
                "cached_tokens = cached_tokens + ?, output_tokens = output_tokens + ?, "
                "thought_tokens = thought_tokens + ? WHERE batch_id = ?",
                (
                    is_completed,
                    not is_completed,
                    usage.prompt_tokens,
                    usage.cached_tokens,
                    usage.output_tokens,
                    usage.thought_tokens,
                    batch_id,
                ),
            )
            also(connection)
            return True

        return await self._database.write(job)

    async def close_lines(self, batch_id: str, outcome: str) -> None:
        """No line runs any more: open ones get the state of `outcome`, and the files may be written."""

        def job(connection: sqlite3.Connection) -> None:
            status = _status(connection, batch_id)
            final = "cancelled" if status == "cancelling" else outcome
            if status in ("validating", "in_progress"):
                self._move(connection, batch_id, "finalizing")
            begun, total, noted = connection.execute(NOTED, (batch_id,)).fetchone()
            if begun is None and noted != total:  # not all of its lines are noted
                connection.execute("DELETE FROM batch_lines WHERE batch_id = ?", (batch_id,))
            state = LineState.CANCELLED if final == "cancelled" else LineState.EXPIRED
            unrun = connection.execute(
                "UPDATE batch_lines SET state = ? WHERE batch_id = ? AND state = 0",
                (state, batch_id),
            ).rowcount
            connection.execute(
                "UPDATE batches SET outcome = ?, unrun = unrun + ? WHERE batch_id = ? AND outcome = ''",
                (final, unrun, batch_id),
            )

        await self._database.write(job)

    async def settled(self, batch_id: str, after: int, most: int) -> list[SettledLine]:
        """The next lines after a number, in order."""

        def job(connection: sqlite3.Connection) -> list[SettledLine]:
            rows = connection.execute(
                "SELECT number, custom_id, state, result FROM batch_lines "
                "WHERE batch_id = ? AND number > ? ORDER BY number LIMIT ?",
                (batch_id, after, most),
            )
            return [SettledLine(row[0], row[1], LineState(row[2]), row[3]) for row in rows]

        return await self._database.read(job)

    async def finish(
        self, batch_id: str, output: FileRecord | None, errors: FileRecord | None
    ) -> bool:
        """The files are written: they get their rows, and the batch its last status. `drop_lines` may follow. False
        when it had ended before."""

        def job(connection: sqlite3.Connection) -> bool:
            if _status(connection, batch_id) in ENDED:
                return False
            for record in (output, errors):
                if record is not None:
                    insert_file(connection, record)
            connection.execute(
                "UPDATE batches SET output_file_id = ?, error_file_id = ? WHERE batch_id = ?",
                (
                    output.file_id if output is not None else None,
                    errors.file_id if errors is not None else None,
                    batch_id,
                ),
            )
            (outcome,) = connection.execute(
                "SELECT outcome FROM batches WHERE batch_id = ?", (batch_id,)
            ).fetchone()
            self._move(connection, batch_id, outcome)
            self._release_input(connection, batch_id)
            return True

        return await self._database.write(job)

    async def drop_lines(self, batch_id: str) -> None:
        """Lines of a batch that has ended, a few at a time, so that other writes get their turn."""

        def job(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM batch_lines WHERE rowid IN "
                "(SELECT rowid FROM batch_lines WHERE batch_id = ? LIMIT ?)",
                (batch_id, AT_ONCE),
            ).rowcount

        while await self._database.write(job) == AT_ONCE:
            pass

    def _release_input(self, connection: sqlite3.Connection, batch_id: str) -> None:
        (file_id,) = connection.execute(
            "SELECT input_file_id FROM batches WHERE batch_id = ?", (batch_id,)
        ).fetchone()
        hold_file(connection, file_id, -1)

    def _move(self, connection: sqlite3.Connection, batch_id: str, status: str) -> None:
        """The one place where a status changes."""
        old = _status(connection, batch_id)
        assert status in MOVES.get(old, ()), f"{batch_id}: {old} to {status}"
        connection.execute(
            "UPDATE batches SET status = ?, times = json_set(times, '$.' || ?, ?) WHERE batch_id = ?",
            (status, status, int(self._wall()), batch_id),
        )


def _status(connection: sqlite3.Connection, batch_id: str) -> str:
    (status,) = connection.execute(
        "SELECT status FROM batches WHERE batch_id = ?", (batch_id,)
    ).fetchone()
    return str(status)


def _find(connection: sqlite3.Connection, tenant: str, dialect: str, batch_id: str) -> BatchRecord:
    row = connection.execute(FIND, (batch_id, tenant, dialect)).fetchone()
    if row is None:
        raise NotFoundError(f"no batch {batch_id[:100]!r} is known here")
    return _record(row)


def _record(row: tuple[object, ...]) -> BatchRecord:
    return msgspec.convert(dict(zip(BatchRecord.__struct_fields__, row, strict=True)), BatchRecord)
