"""uvicorn's HTTP protocol with what it lacks: bounds on headers, a way to drop a connection at once, and one to send a
whole answer at once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from http import HTTPStatus
from itertools import chain

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nonet.server.limits import maximum

__all__ = ["ABORT_EXTENSION", "BODY_EXTENSION", "WHOLE_EXTENSION", "BoundedProtocol"]

ABORT_EXTENSION = "nonet.abort"
BODY_EXTENSION = "nonet.body"  # there once the whole body is: reading it waits for nothing
WHOLE_EXTENSION = "nonet.whole"  # `answer` is BoundedProtocol.answer
STATUS_LINES = {
    int(status): f"HTTP/1.1 {status:d} {status.phrase}".encode() for status in HTTPStatus
}
NOT_IN_A_HEADER = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
MAX_HEADER_BYTES = maximum("header_bytes")
MAX_HEADER_S = maximum("header_s")


class BoundedProtocol(HttpToolsProtocol):
    """Refuses a head that is too large or too slow; the parser itself would collect it for ever.

    The head's clock starts with the connection, and again with each response on a kept-alive connection's next byte.
    """

    _head_bytes: int = 0
    _in_head: bool = True
    _is_refused: bool = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(MAX_HEADER_S, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or not self._head_bytes:
            return
        if self._head_bytes > MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._head_timer is None:  # seldom: most heads are complete in one read
            self._head_timer = self.loop.call_later(MAX_HEADER_S, self._head_too_slow)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {
            ABORT_EXTENSION: {"transport": self.transport},
            WHOLE_EXTENSION: {"answer": self.answer},
        }

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if sum(map(len, chain.from_iterable(self.headers))) > MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused:
            return
        super().on_message_complete()
        self.scope["extensions"][BODY_EXTENSION] = {}
        self._in_head = True
        self._head_bytes = 0

    def answer(
        self, scope: Scope, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> bool:
        """Send an answer, head and body in one write; False where that must go message by message.

        `headers` are in lower case, and the length of the body is among them.
        """
        cycle = self.cycle
        if (
            cycle.scope is not scope  # another request came behind this one on the same connection
            or cycle.response_started
            or cycle.disconnected
            or not cycle.keep_alive
            or self.flow.write_paused
            or scope["method"] == "HEAD"
            or status not in STATUS_LINES
        ):
            return False
        lines = [name + b": " + value for name, value in headers]
        if NOT_IN_A_HEADER.search(b"\t".join(lines)):
            raise RuntimeError("a header holds a control character")
        dated = [name + b": " + value for name, value in self.server_state.default_headers]
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self.transport.write(b"\r\n".join([STATUS_LINES[status], *dated, *lines, b"", body]))
        cycle.message_event.set()
        self.on_response_complete()
        return True

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        self._refuse(b"408 Request Timeout")

    def _refuse(self, status: bytes) -> None:
        self._is_refused = True
        transport = self.transport
        if not transport.is_closing():
            transport.write(
                b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            transport.close()
