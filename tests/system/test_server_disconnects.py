"""Clients that leave at random moments: everything they asked for ends, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable

from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, wait_until

NUM_CLIENTS = 200


def post_bytes(path: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def leave(port: int, rng: random.Random) -> None:
    """Ask, read for a while, and go: politely, by reset, or in the middle of the request itself."""
    prompt = "a client that leaves " * rng.randrange(1, 8)
    body: dict[str, object] = {
        "max_tokens": 3000,
        "n": rng.randrange(1, 4),
        "stream": rng.random() < 0.5,
    }
    if rng.random() < 0.5:
        body["messages"] = [{"role": "user", "content": prompt}]
        path = "/v1/chat/completions"
    else:
        body["prompt"] = [prompt] * rng.randrange(1, 3)
        path = "/v1/completions"
    request = post_bytes(path, body)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if rng.random() < 0.1:
            writer.write(request[: rng.randrange(len(request))])
        else:
            writer.write(request)
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.random() * 0.3):
                while await reader.read(4096):
                    pass
    finally:
        if rng.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_random_disconnects_leak_nothing(start_any: Callable[..., RunningServer]) -> None:
    server = start_any(FakeConfig(step_s=0.002, max_num_seqs=32))
    rng = random.Random(3)
    for _ in range(0, NUM_CLIENTS, 25):
        await asyncio.gather(*(leave(server.port, rng) for _ in range(25)))
    await asyncio.to_thread(wait_until, server.is_empty)
    answer = await asyncio.to_thread(
        server.post, "/v1/completions", {"prompt": "still here?", "max_tokens": 4}
    )
    assert answer.status_code == 200
    assert server.metric("nonet_engine_deaths_total") == 0
    assert server.stop() == 0
    log = server.log.read_text()
    assert "integrity_error" not in log
    assert "Traceback" not in log


async def test_leaving_ends_the_work(start_any: Callable[..., RunningServer]) -> None:
    server = start_any(FakeConfig(step_s=0.02))
    for stream in (True, False):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 3000, "stream": stream})
        )
        running = lambda: server.metric("nonet_running_sequences") == 1  # noqa: E731
        await asyncio.to_thread(wait_until, running)
        writer.transport.abort()
        before = server.tokens_made
        await asyncio.to_thread(wait_until, server.is_empty)
        assert server.tokens_made - before < 1500  # of 3000: how few depends on the machine
        with contextlib.suppress(OSError):
            await reader.read()
