"""The door before the routes: what a call leaves behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nonet.server import app as app_module
from nonet.server.app import create_app
from nonet.server.call import Call
from nonet.server.keys import NOBODY


class Inside(set[object]):
    """Who is inside, and who was, without holding them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[object]] = []

    def add(self, call: object) -> None:
        self.seen.append(weakref.ref(call))
        super().add(call)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def left_behind(path: str) -> tuple[int, list[object]]:
    """The status of one call, and what of it is still there when it is over."""
    inside = Inside()
    state: Any = SimpleNamespace(
        hosts=SimpleNamespace(check=lambda host: None),
        keys=SimpleNamespace(find=lambda *given: NOBODY),
        pipeline=SimpleNamespace(layers=()),
        metrics=SimpleNamespace(responded=lambda status: None),
        config=SimpleNamespace(max_body_bytes=1000),
        model=None,
        active=inside,
        is_draining=False,
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await create_app(state)(scope, receive, send)
    return sent[0]["status"], [call for ref in inside.seen if (call := ref()) is not None]


@pytest.mark.parametrize(("path", "status"), [("/version", 200), ("/nowhere", 404)])
async def test_a_call_goes_without_the_garbage_collector(
    no_collector: None, path: str, status: int
) -> None:
    assert await left_behind(path) == (status, [])


async def test_a_call_that_its_scope_holds_would_stay(
    no_collector: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: the scope keeps what it was given."""

    async def route(door: Any, call: Call, receive: Any, send: Any) -> None:
        call.scope["nonet.call"] = call
        await door._inner(call.scope, receive, send)

    monkeypatch.setattr(app_module._Door, "_route", route)
    _, kept = await left_behind("/version")
    assert len(kept) == 1
