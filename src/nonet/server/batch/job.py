"""One batch from its input file to its output files, as far as it has not come yet.

Everything that must outlive the process is in the store, so a job may be dropped at any point and begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from nonet.core.errors import StoreError
from nonet.server.batch.call import LineAnswer, answer_line
from nonet.server.batch.forms import FORMS
from nonet.server.batch.lines import InputFile, read_line
from nonet.server.batch.output import write_files
from nonet.server.batch.seats import IdleSeats
from nonet.server.state import ServerState
from nonet.store.batch_records import ENDED, BatchRecord, Line, LineState, SettledLine
from nonet.store.batches import LEASE_S, BatchStore
from nonet.store.files import FileStore
from nonet.telemetry.ledger import insert_rows

__all__ = ["BatchJob", "Place"]

LEAST_CLAIM = 16
STORE_RETRY_S = 1.0
OTHERS_S = 0.2

logger = logging.getLogger("nonet.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What all jobs of a server share."""

    state: ServerState
    store: BatchStore
    files: FileStore
    seats: IdleSeats
    wall: Callable[[], float] = time.time


class BatchJob:
    """Works on one batch until it has ended, or the job is cancelled."""

    def __init__(self, place: Place, batch_id: str) -> None:
        self._place = place
        self._batch_id = batch_id
        self._stop = asyncio.Event()
        self._queue: deque[Line] = deque()  # leased, not begun
        self._leased: set[int] = set()  # lines of the queue, and those that run
        self._at_work: set[asyncio.Task[None]] = set()
        self._not_before_s = 0.0

    def stop(self) -> None:
        """The batch is being cancelled."""
        self._stop.set()

    async def run(self) -> None:
        store = self._place.store
        record = await store.find(self._batch_id)
        if record is None or record.status in ENDED:
            return
        is_done = True
        if record.status in ("validating", "in_progress"):
            is_done = await self._in_time(record, self._work(record))
        record = await store.find(self._batch_id)
        if record is None or record.status in ENDED:
            return
        if record.total and record.time_of("in_progress") is None:
            # Its requests were checked when it was made: each has its result, also when it ends before it began.
            await self._note(record)
        await store.close_lines(self._batch_id, "completed" if is_done else "expired")
        await write_files(self._place.store, self._place.files, record, self._place.wall)
        await store.drop_lines(self._batch_id)
        logger.info("event=batch_ended id=%s", self._batch_id)

    async def _in_time(self, record: BatchRecord, work: Coroutine[Any, Any, None]) -> bool:
        """Whether the work came to its end before the batch expired or was cancelled; then nothing of it runs on."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            left_s = max(0.0, record.expires_s - self._place.wall())
            await asyncio.wait(
                [working, stopping], timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if working.done():
                working.result()
            return working.done()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _work(self, record: BatchRecord) -> None:
        if record.status == "validating" and not await self._index(record):
            return
        try:
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(self._renew())
                while (line := await self._next()) is not None:
                    await self._pause()
                    await self._place.seats.take()
                    task = group.create_task(self._line(record, line))
                    self._at_work.add(task)
                    task.add_done_callback(self._left)
                renewing.cancel()
        finally:
            await self._release()

    async def _index(self, record: BatchRecord) -> bool:
        """Note where the lines are; False when the input is no use or the batch was cancelled."""
        store = self._place.store
        given = await self._note(record)
        if given.errors:
            await store.refuse(self._batch_id, given.errors)
            await store.drop_lines(self._batch_id)
            return False
        return await store.begin(self._batch_id, given.num_lines)

    async def _note(self, record: BatchRecord) -> InputFile:
        path = self._place.files.path(record.input_file_id)
        given = InputFile(path, record.endpoint, self._place.state.config.max_body_bytes)
        with contextlib.closing(given):
            while lines := await asyncio.to_thread(given.next_lines):
                await self._place.store.index(self._batch_id, lines)
        return given

    async def _next(self) -> Line | None:
        """The next line to run; None when all have ended."""
        most = max(LEAST_CLAIM, self._place.seats.most)
        while not self._queue:
            claimed = await self._place.store.claim(self._batch_id, most)
            self._leased.update(line.number for line in claimed)
            self._queue += claimed
            if self._queue:
                break
            if not self._at_work:
                if not await self._place.store.has_open_lines(self._batch_id):
                    return None
                await asyncio.sleep(OTHERS_S)  # another worker has them
                continue
            await asyncio.wait(self._at_work, return_when=asyncio.FIRST_COMPLETED)
        return self._queue.popleft()

    async def _pause(self) -> None:
        """Wait for as long as the last refusal asked."""
        left_s = self._not_before_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._place.seats.give()
        self._at_work.discard(task)

    async def _line(self, record: BatchRecord, line: Line) -> None:
        """Answer one line and keep the answer; put it back when it was refused for now."""
        path = self._place.files.path(record.input_file_id)
        body = await asyncio.to_thread(read_line, path, line)
        now = self._place.wall()
        answer = await answer_line(self._place.state, record.endpoint, record.key_id, body, now)
        if answer.retry_after_s is not None:
            self._not_before_s = time.monotonic() + answer.retry_after_s
            self._queue.appendleft(line)
            return
        await self._settle(record, line, answer)
        self._leased.discard(line.number)

    async def _settle(self, record: BatchRecord, line: Line, answer: LineAnswer) -> None:
        """The result and its row in the ledger are kept together, or neither is."""
        is_good = answer.status == 200
        form = FORMS[record.dialect]
        text = form.answered(line.custom_id, answer.request_id, answer.status, answer.body)
        state = LineState.COMPLETED if is_good else LineState.FAILED
        once = f"{self._batch_id}/{line.custom_id}"
        rows = [row._replace(once=once) for row in answer.rows]
        settled = SettledLine(line.number, line.custom_id, state, text)
        also = partial(insert_rows, rows=rows)
        while True:
            try:
                await self._place.store.settle(self._batch_id, settled, answer.usage, also)
                return
            except StoreError:  # the disk is full, say: the answer is not thrown away for that
                await asyncio.sleep(STORE_RETRY_S)

    async def _renew(self) -> None:
        """Keep the leases of what waits here or runs."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with contextlib.suppress(StoreError):
                await self._place.store.renew(self._batch_id, list(self._leased))

    async def _release(self) -> None:
        """Give back the leases of lines that were dropped."""
        dropped, self._leased = list(self._leased), set()
        self._queue.clear()
        with contextlib.suppress(StoreError):
            await self._place.store.release(self._batch_id, dropped)
