"""Whole answers in one write, and where they must go message by message instead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from nonet.server.protocol import WHOLE_EXTENSION, BoundedProtocol

HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"3"), (b"x-note", b"a b")]
BODY = b"yes"


class Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 9)})
        self.writes: list[bytes] = []
        self.is_over = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_over

    def close(self) -> None:
        self.is_over = True

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def whole_or_not(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers whole where it may, as a call does."""
    await receive()
    if not scope["extensions"][WHOLE_EXTENSION]["answer"](scope, 200, HEADERS, BODY):
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        await send({"type": "http.response.body", "body": BODY, "more_body": False})


async def talk(data: bytes, num_answers: int = 1, app: Any = whole_or_not) -> Wire:
    """What an app answers to bytes that arrive together."""
    config = Config(app, http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"Sat, 28 Nov 2026 12:00:00 GMT")]
    protocol = BoundedProtocol(config, state, {}, asyncio.get_running_loop())
    wire = Wire()
    protocol.connection_made(wire)
    protocol.data_received(data)
    while state.total_requests < num_answers and not wire.is_over:
        await asyncio.sleep(0)
    protocol._unset_keepalive_if_required()
    protocol.connection_lost(ConnectionResetError())
    return wire


def asked(method: bytes = b"GET", version: bytes = b"1.1", more: bytes = b"") -> bytes:
    return b"%s / HTTP/%s\r\nHost: localhost\r\n%s\r\n" % (method, version, more)


async def test_one_write_for_head_and_body() -> None:
    wire = await talk(asked())
    assert wire.writes == [
        b"HTTP/1.1 200 OK\r\ndate: Sat, 28 Nov 2026 12:00:00 GMT\r\ncontent-type: text/plain\r\n"
        b"content-length: 3\r\nx-note: a b\r\n\r\nyes"
    ]


async def test_requests_that_arrive_together_are_each_answered() -> None:
    wire = await talk(asked() + asked(b"POST", more=b"Content-Length: 2\r\n") + b"hi" + asked(), 3)
    assert b"".join(wire.writes).count(b"HTTP/1.1 200 OK") == 3
    assert b"".join(wire.writes).count(b"\r\n\r\nyes") == 3


@pytest.mark.parametrize(
    "data",
    [asked(b"HEAD"), asked(more=b"Connection: close\r\n"), asked(version=b"1.0")],
    ids=["head", "close", "1.0"],
)
async def test_answers_that_are_told_in_messages_are_the_same_otherwise(data: bytes) -> None:
    wire = await talk(data)
    head, _, body = b"".join(wire.writes).partition(b"\r\n\r\n")
    assert body == (b"" if data.startswith(b"HEAD") else BODY)
    assert wire.is_over == (not data.startswith(b"HEAD"))
    assert (b"connection: close" in head) == wire.is_over


async def test_a_header_cannot_smuggle_in_another(caplog: pytest.LogCaptureFixture) -> None:
    async def smuggles(scope: Scope, receive: Receive, send: Send) -> None:
        answer: Callable[..., bool] = scope["extensions"][WHOLE_EXTENSION]["answer"]
        answer(scope, 200, [(b"x", b"a\r\nset-cookie: b"), (b"content-length", b"0")], b"")

    wire = await talk(asked(), app=smuggles)
    assert b"set-cookie" not in b"".join(wire.writes)
    assert b"500 Internal Server Error" in wire.writes[0]
    assert "control character" in caplog.text
