"""The engine process and its client: streaming, aborts, rejections, death, hang, restart, quarantine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from nonet.core.errors import (
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
)
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.client import EngineClient, Supervision
from tests.system.fake_engine import FakeConfig, next_token
from tests.system.harness import PATIENCE_S, ROOT, StartClient, fake_launch, until

QUICK = Supervision(tick_s=0.05, hang_s=0.4, backoff_s=0.02)


def request(name: str, prompt: str = "hello", *, n: int = 1, max_tokens: int = 8) -> Request:
    return Request(
        request_id=name,
        prompt_ids=list(prompt.encode()),
        params=SamplingParams(n=n, max_tokens=max_tokens),
    )


async def collect(client: EngineClient, asked: Request) -> list[SequenceDelta]:
    return [delta async for deltas in client.generate(asked) for delta in deltas]


def expected(asked: Request, index: int) -> list[int]:
    assert asked.params.max_tokens is not None
    return [next_token(asked, index, i) for i in range(asked.params.max_tokens)]


async def test_streams_every_choice_of_many_requests(start_client: StartClient) -> None:
    client = await start_client()
    asked = [request(f"r{i}", f"prompt {i}", n=2) for i in range(20)]
    answers = await asyncio.gather(*(collect(client, one) for one in asked))
    for one, deltas in zip(asked, answers, strict=True):
        for index in range(2):
            mine = [delta for delta in deltas if delta.index == index]
            assert [t for delta in mine for t in delta.token_ids] == expected(one, index)
            assert mine[-1].finish_reason == "length"
    assert client.num_in_flight == 0
    await until(lambda: client.stats.blocks_free == client.stats.blocks_total > 0)


async def test_stream_of_several_requests_keeps_them_apart(start_client: StartClient) -> None:
    client = await start_client()
    asked = [request("a", "one"), request("b", "two", max_tokens=3)]
    tokens: dict[str, list[int]] = {"a": [], "b": []}
    async for deltas in client.stream(asked):
        for delta in deltas:
            tokens[delta.request_id] += delta.token_ids
    assert tokens == {one.request_id: expected(one, 0) for one in asked}


async def test_leaving_the_iterator_aborts_in_the_engine(start_client: StartClient) -> None:
    client = await start_client(FakeConfig(step_s=0.005))
    stream = client.generate(request("r", max_tokens=4000, n=3))
    await anext(stream)
    await until(lambda: client.stats.num_running == 3)
    await stream.aclose()
    await until(lambda: client.stats.num_running == 0)
    assert client.stats.generation_tokens < 3 * 4000
    assert client.stats.integrity_error is None


async def test_aborting_one_choice_leaves_the_others(start_client: StartClient) -> None:
    client = await start_client(FakeConfig(step_s=0.002))
    counts = {0: 0, 1: 0}
    async with aclosing(client.generate(request("r", n=2, max_tokens=4000))) as stream:
        async for deltas in stream:
            for delta in deltas:
                counts[delta.index] += len(delta.token_ids)
            if counts[1] >= 2:
                client.abort("r", 1)
            if counts[0] >= counts[1] + 20:
                break
    assert 2 <= counts[1] <= counts[0] - 20


async def test_bad_requests_are_rejected_with_their_kind(start_client: StartClient) -> None:
    client = await start_client(FakeConfig(max_waiting=4))
    with pytest.raises(InvalidRequestError, match="empty") as caught:
        await collect(client, request("r0", ""))
    assert caught.value.param == "prompt"
    with pytest.raises(OverloadedError) as full:
        await collect(client, request("r1", n=5))
    assert full.value.retry_after_s == 2.0
    assert len(await collect(client, request("r2"))) == 8


@pytest.mark.parametrize("word", ["DIE-NOW", "RAISE-NOW"])
async def test_death_fails_requests_and_restarts(start_client: StartClient, word: str) -> None:
    client = await start_client(FakeConfig(step_s=0.005), QUICK)
    running = asyncio.create_task(collect(client, request("good", max_tokens=4000)))
    await until(lambda: client.stats.num_running == 1)
    with pytest.raises(EngineDeadError):
        await collect(client, request("bad", word))
    with pytest.raises(EngineDeadError):
        await running
    await until(lambda: client.is_ready)
    assert client.num_deaths == 1
    assert len(await collect(client, request("again"))) == 8


async def test_kill_is_noticed(start_client: StartClient) -> None:
    client = await start_client()
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: not client.is_ready)
    with pytest.raises(UnavailableError, match="the engine is being restarted"):
        await collect(client, request("r"))
    await until(lambda: client.is_ready)


async def test_before_the_first_start_and_after_the_end_it_says_so() -> None:
    client = EngineClient(fake_launch(FakeConfig()))
    with pytest.raises(UnavailableError, match="the engine is starting; try again shortly"):
        await collect(client, request("early"))
    await client.start()
    assert len(await collect(client, request("r"))) == 8
    await client.close()
    with pytest.raises(UnavailableError, match="the server is stopping"):
        await collect(client, request("late"))


async def test_stopped_engine_is_noticed(start_client: StartClient) -> None:
    client = await start_client()
    old = client.pid
    os.kill(old, signal.SIGSTOP)
    await until(lambda: not client.is_ready)
    await until(lambda: client.is_ready)
    assert client.pid != old
    assert not psutil.pid_exists(old)


async def test_long_computing_step_is_no_hang(start_client: StartClient) -> None:
    client = await start_client(FakeConfig(spin_s=1.5), QUICK)
    assert len(await collect(client, request("r", "SPIN-NOW"))) == 8
    assert client.num_deaths == 0


async def test_sleeping_step_is_a_hang(start_client: StartClient) -> None:
    client = await start_client(supervision=QUICK)
    with pytest.raises(EngineDeadError):
        await collect(client, request("r", "HANG-NOW"))
    await until(lambda: client.is_ready)


async def test_request_seen_in_two_deaths_is_refused(start_client: StartClient) -> None:
    client = await start_client(supervision=QUICK)
    for attempt in range(2):
        with pytest.raises(EngineDeadError):
            await collect(client, request(f"bad{attempt}", "DIE-NOW"))
        await until(lambda: client.is_ready)
    with pytest.raises(InvalidRequestError, match="engine failures"):
        await collect(client, request("bad2", "DIE-NOW"))
    assert len(await collect(client, request("good"))) == 8
    assert client.num_deaths == 2


async def test_lost_block_is_reported_when_idle(start_client: StartClient) -> None:
    client = await start_client()
    await collect(client, request("r", "LEAK-NOW"))
    await until(lambda: client.stats.integrity_error is not None)
    assert "1 blocks held by 0 sequences" in str(client.stats.integrity_error)


async def test_start_failures_tell_who_must_act(start_client: StartClient) -> None:
    with pytest.raises(ConfigError, match="no such model"):
        await start_client(FakeConfig(start_user_error="no such model"))
    with pytest.raises(EngineDeadError, match="could not start: RuntimeError: broken"):
        await start_client(FakeConfig(start_error="broken"))


async def test_closing_ends_a_start_that_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    """As when a server is told to end while its model loads."""
    client = EngineClient(fake_launch(FakeConfig(start_s=10 * PATIENCE_S)), QUICK)
    start = asyncio.create_task(client.start())
    await until(lambda: client.pid > 0)
    pid = client.pid
    await client.close()
    with pytest.raises(EngineDeadError, match="closed while it started"):
        await start
    assert not client.is_ready
    assert not psutil.pid_exists(pid)
    assert "supervisor_failed" not in caplog.text


async def test_idle_reader_gets_empty_lists(start_client: StartClient) -> None:
    client = await start_client(FakeConfig(step_s=0.3), QUICK)
    lists = [deltas async for deltas in client.generate(request("r", max_tokens=2), idle_s=0.1)]
    assert [] in lists
    assert sum(len(deltas) for deltas in lists) == 2


PARENT = """
import asyncio
from tests.system.harness import fake_launch
from tests.system.fake_engine import FakeConfig
from nonet.engine.client import EngineClient

async def main():
    client = EngineClient(fake_launch(FakeConfig()))
    await client.start()
    print(client.pid, client.folder, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_engine_leaves_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        engine_pid, folder = parent.stdout.readline().split()
        assert Path(folder).is_dir()
        parent.kill()
    await until(lambda: not psutil.pid_exists(int(engine_pid)))
    assert not Path(folder).exists()
