"""What the server does when things break: engine death and hang, SIGTERM, slow readers, overload."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from tests.system.fake_engine import FakeConfig
from tests.system.harness import PATIENCE_S, RunningServer, wait_until
from tests.system.test_server_disconnects import post_bytes

StartOne = Callable[..., RunningServer]

LONG = {"prompt": "one", "max_tokens": 3000, "ignore_eos": True}


class Background:
    """A post in a thread; its answer when it ends."""

    def __init__(self, server: RunningServer, body: dict[str, object]) -> None:
        self.answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._run, args=(server, body))
        self._thread.start()

    def result(self) -> httpx.Response:
        self._thread.join(PATIENCE_S)
        assert self.answer is not None
        return self.answer

    def _run(self, server: RunningServer, body: dict[str, object]) -> None:
        self.answer = server.post("/v1/completions", body)


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_engine_loss_is_told_and_mended(start_any: StartOne, sent: signal.Signals) -> None:
    server = start_any(FakeConfig(step_s=0.01))
    streamed = Background(server, {**LONG, "stream": True})
    whole = Background(server, LONG)
    wait_until(lambda: server.metric("nonet_running_sequences") == 2)
    os.kill(server.engine_pid(), sent)
    wait_until(lambda: not server.is_ready())
    assert server.get("/livez").status_code == 200
    last = events(streamed.result().text)[-2:]
    assert json.loads(last[0])["error"]["code"] == "engine_restarting"
    assert last[1] == "[DONE]"
    answer = whole.result()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    wait_until(server.is_ready)
    assert server.post("/v1/completions", {**LONG, "max_tokens": 4}).status_code == 200
    assert server.metric("nonet_engine_deaths_total") == 1


def test_request_during_restart_gets_503(start_one: StartOne) -> None:
    server = start_one(FakeConfig(start_s=1.0))
    os.kill(server.engine_pid(), signal.SIGKILL)
    wait_until(lambda: not server.is_ready())
    answer = server.post("/v1/completions", LONG)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


def test_poisonous_request_is_refused_the_third_time(start_one: StartOne) -> None:
    server = start_one()
    statuses = []
    for _ in range(3):
        wait_until(server.is_ready)
        statuses.append(server.post("/v1/completions", {"prompt": "DIE-NOW"}).status_code)
    assert statuses == [503, 503, 400]
    assert server.is_ready()


def test_neighbours_of_a_poisonous_request_are_answered(start_one: StartOne) -> None:
    """Clients retry on 503; the one request that kills the engine is refused, all others get their answer."""
    server = start_one(FakeConfig(step_s=0.01))
    prompts = ["DIE-NOW", *(f"good {number}" for number in range(12))]
    statuses: dict[str, int] = {}

    def insist(prompt: str) -> None:
        body = {"prompt": prompt, "max_tokens": 20}
        for _ in range(int(PATIENCE_S / 0.05)):
            status = server.post("/v1/completions", body).status_code
            if status != 503:
                statuses[prompt] = status
                return
            time.sleep(0.05)

    threads = [threading.Thread(target=insist, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    assert statuses == {prompt: 400 if prompt == "DIE-NOW" else 200 for prompt in prompts}
    assert server.metric("nonet_engine_deaths_total") == 2


def test_sigterm_lets_running_answers_finish(start_any: StartOne) -> None:
    server = start_any(FakeConfig(step_s=0.03), drain_s=10 * PATIENCE_S)
    running = [
        Background(server, {**LONG, "max_tokens": 100, "stream": i % 2 == 0}) for i in range(8)
    ]
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}
    ) as held:
        pieces = held.iter_raw()  # dropped, it would close the stream
        next(pieces)
        wait_until(lambda: server.metric("nonet_running_sequences") == 9)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not server.is_ready())
        refused = server.post("/v1/completions", LONG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
    for number, one in enumerate(running):
        text = one.result().text
        if number % 2 == 0:
            assert events(text)[-1] == "[DONE]"
            assert '"finish_reason":"length"' in text
        else:
            assert json.loads(text)["usage"]["completion_tokens"] == 100
    assert server.process.wait(PATIENCE_S) == 0


def test_drain_ends_when_time_is_up(start_one: StartOne) -> None:
    server = start_one(FakeConfig(step_s=0.01), drain_s=0.5)
    streamed = Background(server, {**LONG, "stream": True})
    wait_until(lambda: server.metric("nonet_running_sequences") == 1)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    assert "error" in json.loads(events(streamed.result().text)[-2])


def test_second_signal_ends_at_once(start_one: StartOne) -> None:
    server = start_one(FakeConfig(step_s=0.01), drain_s=10 * PATIENCE_S)
    streamed = Background(server, {**LONG, "stream": True})
    wait_until(lambda: server.metric("nonet_running_sequences") == 1)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: server.process.poll() is not None)
    assert server.process.returncode == 0
    assert "error" in json.loads(events(streamed.result().text)[-2])


def test_slow_reader_is_cut_and_others_are_not(start_one: StartOne) -> None:
    server = start_one(FakeConfig(step_s=0.001, max_model_len=100_000), stream_buffer_bytes=200_000)
    body = {"prompt": "one", "max_tokens": 90_000, "stream": True, "logprobs": 64}
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(post_bytes("/v1/completions", body))
        wait_until(lambda: server.metric("nonet_running_sequences") == 1)
        others = [Background(server, {**LONG, "max_tokens": 400, "stream": True}) for _ in range(3)]
        cut = 'nonet_streams_cut_total{reason="slow_reader_bytes"} 1.0'
        wait_until(lambda: cut in server.get("/metrics").text)
        wait_until(server.is_empty)
    assert all(events(one.result().text)[-1] == "[DONE]" for one in others)


def test_full_queue_is_429_with_retry_after(start_one: StartOne) -> None:
    server = start_one(FakeConfig(step_s=0.01, max_num_seqs=1, max_waiting=2))
    for stream in (False, True):
        answer = server.post("/v1/completions", {**LONG, "n": 3, "stream": stream})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.json()["error"]["code"] == "overloaded"


def test_silent_stream_gets_keep_alives(start_one: StartOne) -> None:
    server = start_one(FakeConfig(step_s=0.7), keep_alive_s=0.2)
    text = server.post("/v1/completions", {"prompt": "x", "max_tokens": 2, "stream": True}).text
    assert text.startswith(": keep-alive\n\n")
    assert events(text)[-1] == "[DONE]"


async def test_reader_that_falls_behind_gets_fewer_larger_events(start_one: StartOne) -> None:
    server = start_one(FakeConfig(step_s=0.0, max_model_len=50_000), stream_buffer_bytes=1 << 24)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(
        post_bytes("/v1/completions", {"prompt": "x", "max_tokens": 30_000, "stream": True})
    )
    await asyncio.to_thread(wait_until, lambda: server.tokens_made == 30_000)
    parts = []
    while not (parts and b"0\r\n\r\n" in parts[-1]):
        parts.append(await reader.read(65536))
    writer.close()
    texts = [
        json.loads(line[6:])["choices"][0]["text"]
        for line in b"".join(parts).split(b"\n")
        if line.startswith(b'data: {"')
    ]
    assert sum(map(len, texts)) == 30_000
    assert max(map(len, texts)) > 50
