"""The client against a server of a few lines: open loop, token times, and every way an answer can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from nonet.bench.client import Target, send_all
from nonet.bench.http import get_json
from nonet.bench.metrics import RequestTimes
from nonet.bench.serving import ask_model
from nonet.bench.workload import WorkItem
from nonet.core.errors import ConfigError, UnavailableError

Respond = Callable[[dict[str, object], asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ITEM = WorkItem([1, 2, 3], 4)


def chunk(text: str) -> bytes:
    data = text.encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"text": text, "finish_reason": None}]}) + "\n\n"


COUNTS = {
    "prompt_tokens": 3,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 2},
}
USAGE = "data: " + json.dumps({"choices": [], "usage": COUNTS}) + "\n\n"


async def exchange(
    respond: Respond, items: list[WorkItem], due_s: list[float], timeout_s: float = 5.0
) -> list[RequestTimes]:
    handlers: list[asyncio.Task[None] | None] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
        )  # fmt: skip
        await respond(json.loads(await reader.readexactly(length)), writer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        target = Target(f"http://127.0.0.1:{port}", "m", timeout_s=timeout_s)
        seen = await send_all(target, items, due_s)
        await asyncio.gather(*filter(None, handlers))
        return seen


async def test_times_and_counts() -> None:
    bodies: list[dict[str, object]] = []

    async def respond(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        whole = OK + chunk(event("a"))
        writer.write(whole)
        await asyncio.sleep(0.05)
        # two events and half of a third in one chunk: borders of chunks are not borders of events
        late = event("bcd") + event("") + USAGE
        writer.write(chunk(late[:30]))
        writer.write(chunk(late[30:]) + chunk("data: [DONE]\n\n") + b"0\r\n\r\n")

    (seen,) = await exchange(respond, [ITEM], [0.0])
    assert seen.error is None
    assert (seen.prompt_tokens, seen.output_tokens, seen.cached_tokens) == (3, 4, 2)
    assert len(seen.delivery_s) == 2  # the empty event delivered nothing
    assert seen.itl_s[0] > 0
    assert bodies[0]["prompt"] == [1, 2, 3]
    assert (bodies[0]["max_tokens"], bodies[0]["ignore_eos"]) == (4, True)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"reasoning_content": "a"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    ],
)
async def test_all_that_a_model_says_is_output(delta: dict[str, object]) -> None:
    """A model that thinks until its tokens are spent, or that calls a tool, has answered."""
    pieces = [{"role": "assistant", "content": ""}, delta, delta]
    events = [f"data: {json.dumps({'choices': [{'delta': piece}]})}\n\n" for piece in pieces]

    async def respond(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        writer.write(OK + chunk("".join(events) + "data: [DONE]\n\n") + b"0\r\n\r\n")

    (seen,) = await exchange(respond, [ITEM], [0.0])
    assert seen.error is None
    assert len(seen.delivery_s) == 2


async def test_a_slow_answer_delays_nobody() -> None:
    release = asyncio.Event()
    arrived: list[float] = []
    clock = asyncio.get_running_loop().time

    async def respond(_: dict[str, object], writer: asyncio.StreamWriter) -> None:
        arrived.append(clock())
        if len(arrived) == 3:
            release.set()
        await release.wait()  # the first answers only once the third request is here
        writer.write(OK + chunk(event("x") + "data: [DONE]\n\n"))

    seen = await exchange(respond, [ITEM] * 3, [0.0, 0.05, 0.1])
    assert [one.error for one in seen] == [None] * 3
    assert [one.due_s for one in seen] == [0.0, 0.05, 0.1]
    assert all(one.sent_s >= one.due_s for one in seen)
    assert seen[0].sent_s + seen[0].ttft_s > seen[2].sent_s


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 400 Bad\r\ncontent-length: 31\r\n\r\n" + b'{"error": {"message": "too big"}', "breaks off"),
        (b'HTTP/1.1 429 Busy\r\n\r\n{"error": {"message": "queue is full"}}', "429: queue is full"),
        (OK + chunk(event("a")), "before [DONE]"),
        (OK + chunk('data: {"error": {"message": "engine died"}}\n\ndata: [DONE]\n\n'), "engine died"),
        (OK + chunk("data: [DONE]\n\n"), "without output"),
        (OK + chunk("data: {oops\n\n"), "not HTTP"),
        (b"", "without an HTTP answer"),
        (OK + b"zz\r\n", "not HTTP"),
    ],
)  # fmt: skip
async def test_failures_are_recorded(answer: bytes, error: str) -> None:
    if b"too big" in answer:
        answer = answer.replace(b"length: 31", b"length: 99")

    async def respond(_: dict[str, object], writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    (seen,) = await exchange(respond, [ITEM], [0.0])
    assert seen.error is not None
    assert error in seen.error


async def test_a_silent_server_times_out() -> None:
    async def respond(_: dict[str, object], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)

    (seen,) = await exchange(respond, [ITEM], [0.0], timeout_s=0.05)
    assert seen.error == "no end within 0.05 s"


async def test_nobody_there() -> None:
    (seen,) = await send_all(Target("http://127.0.0.1:9", "m"), [ITEM], [0.0])
    assert seen.error is not None
    with pytest.raises(UnavailableError, match="no server answers"):
        await ask_model("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="http://host:port"):
        await get_json("127.0.0.1:9", "/v1/models")
