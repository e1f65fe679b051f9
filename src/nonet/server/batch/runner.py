"""Runs the batches of a server: those that are made, and those that an earlier run of the server left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from nonet.core.errors import NonetError
from nonet.server.batch.job import BatchJob, Place

__all__ = ["BatchRunner"]

SWEEP_S = 60.0
RETRY_S, MAX_RETRY_S = 1.0, 60.0

logger = logging.getLogger("nonet.server")


class BatchRunner:
    """One job per batch that has not ended; they share the engine's idle seats."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._jobs: dict[str, BatchJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Take up what was left."""
        store = self._place.store
        await self._place.files.start()
        await store.start()
        store.on_change = self._changed
        for batch_id in await store.unfinished():
            self._open(batch_id)
        self._spawn(self._sweep())

    async def close(self) -> None:
        """Drop what runs; the next start goes on with it."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _changed(self, batch_id: str) -> None:
        """A batch was made, or is to be cancelled."""
        job = self._jobs.get(batch_id)
        if job is not None:
            job.stop()
        elif not self._is_closed:
            self._open(batch_id)

    def _open(self, batch_id: str) -> None:
        job = self._jobs[batch_id] = BatchJob(self._place, batch_id)
        self._spawn(self._supervised(batch_id, job))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervised(self, batch_id: str, job: BatchJob) -> None:
        """A job that fails is begun again, later each time."""
        delay_s = RETRY_S
        try:
            while True:
                try:
                    await job.run()
                    return
                except Exception as error:
                    logger.error("event=batch_failed id=%s", batch_id, exc_info=error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, MAX_RETRY_S)
        finally:
            del self._jobs[batch_id]

    async def _sweep(self) -> None:
        while True:
            try:
                await self._place.files.remove_expired()
            except NonetError as error:
                logger.error("event=sweep_failed error=%s", error)
            await asyncio.sleep(SWEEP_S)
