"""What one reader of the engine's output has not yet taken.

A mailbox belongs to one or more requests that are read together. The engine client puts deltas in and wakes the reader
once per step; a reader that is behind finds several steps' deltas at its next turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from nonet.core.errors import NonetError
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request

__all__ = ["Mailbox"]


class Mailbox:
    """The unread deltas of some requests, which of their choices are open, and how it ended."""

    __slots__ = (
        "_each_step",
        "_idle_s",
        "_mail",
        "_open",
        "_waiter",
        "_was_read",
        "_woken_s",
        "error",
        "pending_bytes",
        "requests",
    )

    def __init__(
        self, requests: Iterable[Request], idle_s: float | None, *, each_step: bool = True
    ) -> None:
        self.requests = tuple(requests)
        self.error: NonetError | None = None
        self.pending_bytes = 0
        self._idle_s = idle_s
        self._each_step = each_step
        self._was_read = False
        self._mail: list[SequenceDelta] = []
        self._open = {
            (request.request_id, index)
            for request in self.requests
            for index in range(request.params.n)
        }
        self._waiter: asyncio.Future[None] | None = None
        self._woken_s = time.monotonic()

    @property
    def is_finished(self) -> bool:
        return not self._open

    @property
    def has_mail(self) -> bool:
        return bool(self._mail) or self.error is not None

    def put(self, delta: SequenceDelta) -> bool:
        """Keep a delta of a choice that is still open; True when the reader should look.

        A reader that does not want each step is woken for the first delta and for the end.
        """
        key = (delta.request_id, delta.index)
        if key not in self._open:
            return False
        if delta.finish_reason is not None:
            self._open.discard(key)
        self._mail.append(delta)
        self.pending_bytes += _size(delta)
        return self._each_step or not self._was_read or not self._open

    def drop(self, request_id: str, index: int | None) -> None:
        self._open = {
            key for key in self._open if key[0] != request_id or index not in (None, key[1])
        }
        if not self._open:
            self.wake()

    def fail(self, error: NonetError) -> None:
        if self.error is None and (self._open or not self._mail):
            self.error = error
        self.wake()

    def tick(self, now: float) -> None:
        """Wake a reader that has waited `idle_s` for nothing."""
        if self._idle_s is not None and now - self._woken_s >= self._idle_s:
            self.wake()

    def wake(self) -> None:
        self._woken_s = time.monotonic()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[SequenceDelta]:
        """All deltas since the last call; waits when there are none. What came before an error comes first."""
        if self._must_wait:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._mail:
            self._was_read = True
            mail, self._mail = self._mail, []
            self.pending_bytes = 0
            return mail
        if self.error is not None:
            raise self.error
        return []

    @property
    def _must_wait(self) -> bool:
        """Nothing to hand out now: no mail, or mail that a patient reader wants only with the rest."""
        if not self._open or self.error is not None:
            return False
        return not self._mail or (not self._each_step and self._was_read)

    def unfinished_ids(self) -> list[str]:
        return sorted({request_id for request_id, _ in self._open})

    def unfinished_requests(self) -> list[Request]:
        unfinished = {request_id for request_id, _ in self._open}
        return [request for request in self.requests if request.request_id in unfinished]


def _size(delta: SequenceDelta) -> int:
    """Bytes that the delta will take once it is text in events, roughly."""
    size = 128 + 8 * len(delta.token_ids)
    for rows in (delta.logprobs, delta.prompt_logprobs):
        for row in rows or ():
            size += 80 * (1 + len(row.top)) if row is not None else 4
    return size
