"""The official Anthropic client over message batches, on the store and the runner of OpenAI's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.system.batch_cases import start_keeping, waited
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_keeping(
        tmp_path_factory.mktemp("messages"),
        FakeConfig(step_s=0.001, max_num_seqs=8),
        api_keys=("one", "two"),
    )
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="one", max_retries=0) as made:
        yield made


def params(text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return {"model": "fake", "max_tokens": 4, "messages": messages, **fields}


def requests(count: int, **fields: Any) -> list[Any]:
    return [{"custom_id": f"r{n}", "params": params(f"q{n}", **fields)} for n in range(count)]


def ended(client: anthropic.Anthropic, batch_id: str) -> Any:
    return waited(
        lambda: client.messages.batches.retrieve(batch_id),
        lambda batch: batch.processing_status == "ended",
    )


def test_a_batch_of_messages(client: anthropic.Anthropic, server: RunningServer) -> None:
    wrong = {"custom_id": "wrong", "params": params("x", model="other")}
    made = client.messages.batches.create(requests=[*requests(12, temperature=0), wrong])
    assert made.processing_status == "in_progress"
    assert made.request_counts.processing == 13
    assert made.results_url is None
    assert (made.expires_at - made.created_at).total_seconds() == 86_400
    done = ended(client, made.id)
    assert done.ended_at is not None
    assert (done.request_counts.succeeded, done.request_counts.errored) == (12, 1)
    results = {one.custom_id: one.result for one in client.messages.batches.results(made.id)}
    assert list(results) == [f"r{n}" for n in range(12)] + ["wrong"]
    alone = client.messages.create(**params("q3"), extra_body={"temperature": 0})
    assert results["r3"].type == "succeeded"
    assert results["r3"].message.content == alone.content
    assert results["r3"].message.usage.service_tier == "batch"
    assert results["wrong"].type == "errored"
    assert results["wrong"].error.error.type == "not_found_error"
    usage = httpx.get(
        f"{server.url}/v1/usage", params={"by": "tier,route"}, headers={"x-api-key": "one"}
    ).json()
    booked = [line for line in usage["data"] if line["tier"] == "batch"]
    assert [(line["route"], line["requests"]) for line in booked] == [("/v1/messages", 12)]


def test_cancel_and_delete(client: anthropic.Anthropic, server: RunningServer) -> None:
    given = requests(20, max_tokens=3000)
    made = client.messages.batches.create(requests=given)
    with pytest.raises(anthropic.BadRequestError, match="has not ended"):
        client.messages.batches.delete(made.id)
    stopping = client.messages.batches.cancel(made.id)
    assert stopping.processing_status in ("canceling", "ended")
    assert stopping.cancel_initiated_at is not None
    done = ended(client, made.id)
    assert done.request_counts.canceled == 20
    results = [(one.custom_id, one.result.type) for one in client.messages.batches.results(made.id)]
    assert results == [(one["custom_id"], "canceled") for one in given]
    gone = client.messages.batches.delete(made.id)
    assert (gone.id, gone.type) == (made.id, "message_batch_deleted")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(made.id)


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        ([], "requests is empty"),
        ([{"custom_id": "a b", "params": {}}], "letters, digits"),
        ([{"custom_id": "a", "params": {}}] * 2, "more than once"),
        ([{"custom_id": "a", "params": []}], "no object"),
        ([{"custom_id": "a"}], "params"),
    ],
)
def test_wrong_requests(client: anthropic.Anthropic, given: Any, fragment: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=fragment):
        client.messages.batches.create(requests=given)


def test_lists_in_pages(client: anthropic.Anthropic) -> None:
    ids = [client.messages.batches.create(requests=requests(1)).id for _ in range(4)]
    newest = client.messages.batches.list(limit=2)
    assert [batch.id for batch in newest.data] == ids[:1:-1]
    assert newest.has_more
    assert [batch.id for batch in newest][:4] == ids[::-1]  # follows after_id
    before = client.messages.batches.list(limit=2, before_id=ids[1])
    assert [batch.id for batch in before.data] == ids[:1:-1]
    for batch_id in ids:
        ended(client, batch_id)


def test_others_see_nothing(client: anthropic.Anthropic, server: RunningServer) -> None:
    made = client.messages.batches.create(requests=requests(1))
    ended(client, made.id)
    other = anthropic.Anthropic(base_url=server.url, api_key="two", max_retries=0)
    with pytest.raises(anthropic.NotFoundError):
        other.messages.batches.retrieve(made.id)
    assert other.messages.batches.list().data == []
    openai_client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="one", max_retries=0)
    assert list(openai_client.files.list()) == []  # requests and results are no files of the user's
    assert list(openai_client.batches.list()) == []
    with pytest.raises(openai.NotFoundError):
        openai_client.batches.retrieve(made.id)


async def test_the_async_client(server: RunningServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="one") as client:
        made = await client.messages.batches.create(requests=requests(3))
        batches = client.messages.batches
        while (await batches.retrieve(made.id)).processing_status != "ended":
            await asyncio.sleep(0.02)
        results = [one async for one in await batches.results(made.id)]
        assert [one.custom_id for one in results] == ["r0", "r1", "r2"]


def test_files_of_a_deleted_batch_go(tmp_path: Path) -> None:
    server = start_keeping(tmp_path)
    try:
        with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            made = client.messages.batches.create(requests=requests(2))
            ended(client, made.id)
            assert len(list((tmp_path / "data" / "files").iterdir())) == 2
            client.messages.batches.delete(made.id)
            assert not list((tmp_path / "data" / "files").iterdir())
    finally:
        server.close()
