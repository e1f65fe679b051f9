"""One SQLite file with one writer: whatever waits to be written together is committed together.

All writes run in one thread. It takes everything that has queued up meanwhile, runs it in one transaction, and tells
the event loop once. So a write is durable when it is acknowledged, an acknowledgement waits for at most the commit
before its own, and the cost of a commit is shared by all who waited for it. What nobody waits for goes with the next
job that somebody does, so it delays no acknowledgement. A failing job is undone alone.

A lock file held by the process keeps a second server away from the same file, and is gone when the process is.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from nonet.core.errors import ConfigError, StoreError

__all__ = ["Database", "open_for_reading"]

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]
Done = Callable[[Any, BaseException | None], None]

MAX_GROUP = 512  # jobs in one transaction
BUSY_S = 5.0
POSTPONED_S = 0.05  # how long a job that nobody waits for may wait for company

logger = logging.getLogger("nonet.store")


@dataclass(frozen=True, slots=True)
class _Entry:
    job: Job[Any]
    done: Done | None
    loop: asyncio.AbstractEventLoop


class Database:
    """A database file and its threads. Opened and closed by its owner; jobs get the connection and must not keep it.

    Example::

        database = Database(folder / "nonet.db")
        database.open()
        await database.write(lambda connection: connection.execute("CREATE TABLE ..."))
        rows = await database.read(lambda connection: connection.execute("SELECT ...").fetchall())
        await database.close()
    """

    def __init__(self, path: Path, *, full_sync: bool = True) -> None:
        """Without `full_sync` a commit survives the end of the process, but not that of the machine."""
        self._path = path
        self._full_sync = full_sync
        self._queue: SimpleQueue[list[_Entry] | None] = SimpleQueue()
        self._postponed: list[_Entry] = []
        self._thread: threading.Thread | None = None
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="store-read")
        self._reading: sqlite3.Connection | None = None
        self._lock_file: int | None = None

    def open(self) -> None:
        """ConfigError when the file cannot be used, or another process does."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take_lock()
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
            writing = self._connect()
            self._reading = self._connect()
        except (OSError, sqlite3.Error) as error:
            self._drop_lock()
            raise ConfigError(f"{self._path} cannot be used as a database: {error}") from None
        self._thread = threading.Thread(
            target=self._write_all, args=(writing,), name="store-write", daemon=True
        )
        self._thread.start()

    async def write(self, job: Job[T]) -> T:
        """Run `job` in the next transaction; its result once that is committed."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(result: T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.submit(job, done)
        return await future

    def submit(self, job: Job[Any], done: Done | None = None) -> None:
        """Queue `job`; `done(result, error)` is called on this event loop after the commit.

        Jobs run in the order in which they were queued. One without `done` may wait a moment for company.
        """
        loop = asyncio.get_running_loop()
        self._postponed.append(_Entry(job, done, loop))
        if done is not None:
            self._hurry()
        elif len(self._postponed) == 1:
            loop.call_later(POSTPONED_S, self._hurry)

    async def read(self, job: Job[T]) -> T:
        """Run `job` on a snapshot, beside the writer."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, job)

    def read_now(self, job: Job[T]) -> T:
        """As `read`, in the calling thread; for start-up, before others read."""
        assert self._reading is not None
        try:
            return job(self._reading)
        except sqlite3.Error as error:
            raise StoreError(f"the database could not be read: {error}") from None

    async def close(self) -> None:
        """Write what is queued, then end."""
        if self._thread is None:
            return
        self._hurry()
        self._queue.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        self._thread = None
        self._readers.shutdown()
        assert self._reading is not None
        self._reading.close()
        self._drop_lock()

    def _hurry(self) -> None:
        """To the writer with all that was postponed."""
        if self._postponed:
            self._queue.put(self._postponed)
            self._postponed = []

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "PRAGMA synchronous=FULL" if self._full_sync else "PRAGMA synchronous=NORMAL"
        )
        connection.execute("PRAGMA cache_size=-16384")  # KiB
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def _take_lock(self) -> None:
        self._lock_file = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._drop_lock()
            raise ConfigError(
                f"{self._path} is in use by another server; stop it, or choose another data_dir"
            ) from None

    def _drop_lock(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def _write_all(self, connection: sqlite3.Connection) -> None:
        is_open = True
        while is_open:
            group, is_open = self._next_group()
            if group:
                _acknowledge(group, _commit(connection, group))
        connection.close()

    def _next_group(self) -> tuple[list[_Entry], bool]:
        """What waits now, at least one job; and whether there is more to come."""
        group: list[_Entry] = []
        some = self._queue.get()
        while some is not None:
            group += some
            if len(group) >= MAX_GROUP:
                break
            try:
                some = self._queue.get_nowait()
            except Empty:
                break
        return group, some is not None


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection for another process than the server's; ConfigError when there is no such file."""
    if not path.is_file():
        raise ConfigError(f"no database at {path}; give the data_dir of a server that has run")
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)


Outcome = tuple[Any, BaseException | None]


def _commit(connection: sqlite3.Connection, group: list[_Entry]) -> list[Outcome]:
    """What became of each job, all in one transaction."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        run = _run if len(group) > 1 else _run_alone
        outcomes = [run(connection, entry.job) for entry in group]
        connection.execute("COMMIT")
    except sqlite3.Error as error:  # the disk is full, or worse: nothing of the group is kept
        logger.error("event=store_failed jobs=%d error=%r", len(group), str(error))
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        failure = StoreError("the server could not write to its database; see its log")
        return [(None, failure)] * len(group)
    return outcomes


def _run(connection: sqlite3.Connection, job: Job[Any]) -> Outcome:
    connection.execute("SAVEPOINT job")
    try:
        result = job(connection)
    except Exception as error:
        if not connection.in_transaction:  # SQLite itself gave the transaction up
            raise sqlite3.OperationalError(f"the transaction was lost: {error}") from error
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        return None, _told(error)
    connection.execute("RELEASE job")
    return result, None


def _run_alone(connection: sqlite3.Connection, job: Job[Any]) -> Outcome:
    """The only job of its transaction needs no savepoint; what fails leaves an empty transaction."""
    try:
        return job(connection), None
    except Exception as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        return None, _told(error)


def _told(error: Exception) -> Exception:
    """SQLite's own words are for the log."""
    if not isinstance(error, sqlite3.Error):
        return error
    logger.error("event=store_job_failed", exc_info=error)
    return StoreError("the server could not write to its database; see its log")


def _acknowledge(group: list[_Entry], outcomes: list[Outcome]) -> None:
    """One call into each event loop for the whole group."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Done, Outcome]]] = {}
    for entry, outcome in zip(group, outcomes, strict=True):
        if entry.done is not None:
            by_loop.setdefault(entry.loop, []).append((entry.done, outcome))
        elif outcome[1] is not None:
            logger.error("event=store_post_failed error=%r", str(outcome[1]))
    for loop, calls in by_loop.items():
        try:
            loop.call_soon_threadsafe(_call_all, calls)
        except RuntimeError:  # the loop has ended; the write stands all the same
            logger.warning("event=store_loop_gone jobs=%d", len(calls))


def _call_all(calls: list[tuple[Done, Outcome]]) -> None:
    for done, (result, error) in calls:
        done(result, error)
