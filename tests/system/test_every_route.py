"""Every route of both APIs through the official clients, synchronous and asynchronous, whole and streamed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from nonet.server.app import ROUTES
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, start_server

ASK: list[Any] = [{"role": "user", "content": "hello"}]
FEW: dict[str, Any] = {"max_tokens": 6, "extra_body": {"ignore_eos": True}}
# Routes that neither client has.
OURS = re.compile(r"/v1/(usage|load_lora_adapter|unload_lora_adapter)\b|/(?!v1/)")
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "fake", "messages": ASK, "max_tokens": 4}}  # fmt: skip


async def done(value: Any) -> Any:
    """What a call of either client brings."""
    return await value if inspect.isawaitable(value) else value


async def each(value: Any) -> list[Any]:
    """All that a stream or the pages of a list hold."""
    found = await done(value)
    return [one async for one in found] if hasattr(found, "__aiter__") else list(found)


async def ended(ask: Callable[[], Any], field: str) -> Any:
    """What `ask` brings once its field says that the batch has ended."""
    while True:
        found = await done(ask())
        if getattr(found, field) in ("completed", "cancelled", "failed", "ended"):
            return found
        await asyncio.sleep(0.02)


async def openai_calls(client: Any) -> None:
    model = (await each(client.models.list()))[0].id
    assert (await done(client.models.retrieve(model))).id == model
    asked = {"model": model, "messages": ASK, **FEW}
    chat = await done(client.chat.completions.create(**asked))
    chunks = await each(client.chat.completions.create(**asked, stream=True))
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(chat.choices[0].message.content or "") == len("".join(parts)) == 6
    asked = {"model": model, "prompt": "hello", "seed": 1, **FEW}
    text = await done(client.completions.create(**asked))
    streamed = await each(client.completions.create(**asked, stream=True))
    assert text.choices[0].text == "".join(chunk.choices[0].text for chunk in streamed)
    # The client asks for base64 by itself, and gives floats; both are the same vector.
    asked = {"model": model, "input": "hello"}
    usual = (await done(client.embeddings.create(**asked))).data[0].embedding
    floats = await done(client.embeddings.create(**asked, encoding_format="float"))
    assert floats.data[0].embedding == pytest.approx(usual, abs=1e-6)
    short = await done(client.embeddings.create(**asked, dimensions=8))
    assert len(short.data[0].embedding) == 8
    await responses_calls(client, model)
    await stored_calls(client.chat.completions, model)
    await batch_calls(client)


async def responses_calls(client: Any, model: str) -> None:
    responses, asked = client.responses, {"model": model, "max_output_tokens": 6}
    first = await done(responses.create(**asked, input="hello"))
    events = await each(
        responses.create(**asked, input="and?", previous_response_id=first.id, stream=True)
    )
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert (await done(responses.retrieve(first.id))).output_text == first.output_text
    items = await each(responses.input_items.list(first.id))
    assert [item.type for item in items] == ["message"]
    counted = await done(responses.input_tokens.count(model=model, input="hello"))
    assert first.usage is not None
    assert counted.input_tokens == first.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="background"):
        await done(responses.cancel(first.id))
    await done(responses.delete(first.id))
    with pytest.raises(openai.NotFoundError):
        await done(responses.retrieve(first.id))


async def stored_calls(stored: Any, model: str) -> None:
    asked = {"model": model, "messages": ASK, "store": True, **FEW}
    made = await done(stored.create(**asked, metadata={"a": "b"}))
    streamed = {chunk.id for chunk in await each(stored.create(**asked, stream=True))}
    assert await done(stored.retrieve(made.id)) == made
    assert [one.id for one in await each(stored.list(limit=1))] == [made.id, *streamed]
    assert [one.id for one in await each(stored.list(metadata={"a": "b"}))] == [made.id]
    assert [one.content for one in await each(stored.messages.list(made.id))] == ["hello"]
    assert (await done(stored.update(made.id, metadata={"c": "d"}))).metadata == {"c": "d"}
    await done(stored.delete(made.id))
    with pytest.raises(openai.NotFoundError):
        await done(stored.retrieve(made.id))


async def batch_calls(client: Any) -> None:
    files, batches = client.files, client.batches
    given = await done(files.create(file=("in.jsonl", json.dumps(LINE).encode()), purpose="batch"))
    assert (await done(files.retrieve(given.id))).bytes == given.bytes
    asked = {"input_file_id": given.id, "endpoint": LINE["url"], "completion_window": "24h"}
    made = await done(batches.create(**asked))
    assert made.id in [one.id for one in await each(batches.list(limit=1))]
    over = await ended(lambda: batches.retrieve(made.id), "status")
    assert over.request_counts.completed == 1
    row = json.loads((await done(files.content(over.output_file_id))).text)
    assert row["custom_id"] == "1"
    other = await done(batches.create(**asked))
    with contextlib.suppress(openai.BadRequestError):  # it may have ended already
        await done(batches.cancel(other.id))
    await ended(lambda: batches.retrieve(other.id), "status")
    assert given.id in [one.id for one in await each(files.list())]
    assert (await done(files.delete(given.id))).deleted


async def anthropic_calls(client: Any) -> None:
    model = (await each(client.models.list()))[0].id
    assert (await done(client.models.retrieve(model))).id == model
    asked: dict[str, Any] = {"model": model, "messages": ASK}
    whole = await done(client.messages.create(**asked, **FEW))
    events = await each(client.messages.create(**asked, **FEW, stream=True))
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    async with contextlib.AsyncExitStack() as stack:
        manager = client.messages.stream(**asked, **FEW)
        is_async = hasattr(manager, "__aenter__")
        stream = await stack.enter_async_context(manager) if is_async else stack.enter_context(manager)  # fmt: skip
        parts = await each(stream.text_stream)
        final = await done(stream.get_final_message())
    assert "".join(parts) == final.content[0].text
    assert len(final.content[0].text) == len(whole.content[0].text) == 6
    counted = await done(client.messages.count_tokens(**asked))
    read = whole.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == whole.usage.input_tokens + read
    await message_batch_calls(client.messages.batches, {**asked, "max_tokens": 4})


async def message_batch_calls(batches: Any, params: dict[str, Any]) -> None:
    asked = {"requests": [{"custom_id": "1", "params": params}]}
    made = await done(batches.create(**asked))
    await ended(lambda: batches.retrieve(made.id), "processing_status")
    (row,) = await each(batches.results(made.id))
    assert (row.custom_id, row.result.type) == ("1", "succeeded")
    other = await done(batches.create(**asked))
    with contextlib.suppress(anthropic.BadRequestError):  # it may have ended already
        await done(batches.cancel(other.id))
    await ended(lambda: batches.retrieve(other.id), "processing_status")
    assert made.id in [one.id for one in await each(batches.list())]
    assert (await done(batches.delete(made.id))).id == made.id


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_every_route_is_walked(tmp_path: Path, is_async: bool) -> None:
    gateway = {"data_dir": str(tmp_path / "data")}
    server = start_server(tmp_path, FakeConfig(step_s=0.001), gateway=gateway)
    try:
        seen = await walked(server, is_async)
    finally:
        assert server.stop() == 0
    missed = [
        (method, path)
        for method, path, _ in ROUTES
        if not OURS.match(path)
        and not any(
            method == asked and re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", path), place)
            for asked, place in seen
        )
    ]
    assert missed == []
    assert "Traceback" not in server.log.read_text()


async def walked(server: RunningServer, is_async: bool) -> set[tuple[str, str]]:
    """Methods and paths that both clients asked for."""
    seen: set[tuple[str, str]] = set()

    def note(request: Any) -> None:
        seen.add((request.method, request.url.path))

    async def note_later(request: Any) -> None:
        note(request)

    common: dict[str, Any] = {"api_key": "none", "max_retries": 0}
    if is_async:
        hooks: dict[str, Any] = {"request": [note_later]}
        async with openai.DefaultAsyncHttpxClient(event_hooks=hooks) as http:
            url = f"{server.url}/v1"
            await openai_calls(openai.AsyncOpenAI(base_url=url, http_client=http, **common))
        async with anthropic.DefaultAsyncHttpxClient(event_hooks=hooks) as http:
            made = anthropic.AsyncAnthropic(base_url=server.url, http_client=http, **common)
            await anthropic_calls(made)
        return seen
    hooks = {"request": [note]}
    with openai.DefaultHttpxClient(event_hooks=hooks) as http:
        await openai_calls(openai.OpenAI(base_url=f"{server.url}/v1", http_client=http, **common))
    with anthropic.DefaultHttpxClient(event_hooks=hooks) as http:
        made = anthropic.Anthropic(base_url=server.url, http_client=http, **common)
        await anthropic_calls(made)
    return seen
