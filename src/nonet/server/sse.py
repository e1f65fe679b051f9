"""Server-sent events with bounds: what a slow reader may hold, and for how long.

uvicorn's `send` waits while a connection's write buffer is full. Deltas then collect in the engine client's mailbox
and leave together, as one event, when the reader catches up: that is the coalescing. The guard looks at all streams
twice a second, so no stream needs a timer of its own, and cuts those whose unsent bytes or waiting time are over the
limit. Cutting drops the connection, which aborts the request as any disconnect does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from starlette.types import Send

__all__ = ["EventStream", "StreamGuard"]

GUARD_INTERVAL_S = 0.5
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class EventStream:
    """One response of events. The head goes out with the first event, so that an early error can still be a status.

    `pending_bytes` says how much waits unsent in the engine client; `cut` drops the connection.
    """

    def __init__(
        self,
        send: Send,
        extra_headers: tuple[tuple[bytes, bytes], ...],
        pending_bytes: Callable[[], int],
        cut: Callable[[], None],
    ) -> None:
        self._send = send
        self._headers = [*HEADERS, *extra_headers]
        self.pending_bytes = pending_bytes
        self.cut = cut
        self.is_started = False
        self.blocked_since_s: float | None = None

    async def write(self, events: bytes) -> None:
        """Send whole events; waits while the reader is behind."""
        if not self.is_started:
            await self._start()
        self.blocked_since_s = time.monotonic()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})
        self.blocked_since_s = None

    async def keep_alive(self) -> None:
        """A comment that clients ignore and proxies count as life."""
        await self.write(KEEP_ALIVE)

    async def finish(self, events: bytes = b"") -> None:
        """The last events; the dialect's own mark of the end is among them."""
        if not self.is_started:
            await self._start()
        self.blocked_since_s = time.monotonic()
        await self._send({"type": "http.response.body", "body": events, "more_body": False})
        self.blocked_since_s = None

    async def _start(self) -> None:
        self.is_started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})


class StreamGuard:
    """Watches the streams of one server and cuts those that hold too much for too long."""

    def __init__(
        self, max_pending_bytes: int, max_blocked_s: float, on_cut: Callable[[str], None]
    ) -> None:
        self._max_pending_bytes = max_pending_bytes
        self._max_blocked_s = max_blocked_s
        self._on_cut = on_cut
        self._streams: set[EventStream] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @contextlib.contextmanager
    def watch(self, stream: EventStream) -> Iterator[None]:
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

    def look(self, now: float) -> None:
        """Cut every stream over its limits."""
        for stream in list(self._streams):
            if stream.blocked_since_s is None:
                continue
            if stream.pending_bytes() > self._max_pending_bytes:
                self._cut(stream, "slow_reader_bytes")
            elif now - stream.blocked_since_s > self._max_blocked_s:
                self._cut(stream, "slow_reader_time")

    def _cut(self, stream: EventStream, reason: str) -> None:
        self._streams.discard(stream)
        self._on_cut(reason)
        stream.cut()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(GUARD_INTERVAL_S)
            self.look(time.monotonic())
