"""Every route of both APIs through the official clients, asynchronously, whole and streamed.

The synchronous clients are in test_openai_client, test_responses_client, test_embeddings and test_anthropic_client.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from nonet.server.app import ROUTES
from tests.system.harness import RunningServer

ASK: list[Any] = [{"role": "user", "content": "hello"}]
FEW: dict[str, Any] = {"max_tokens": 6, "extra_body": {"ignore_eos": True}}
# Routes that neither client has, and those of batches, which test_batches_openai and test_batches_anthropic walk.
OURS = re.compile(
    r"/v1/(usage|load_lora_adapter|unload_lora_adapter|files|batches|messages/batches)\b|/(?!v1/)"
)


async def openai_calls(server: RunningServer, http: Any) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0
    ) as client:
        model = (await client.models.list()).data[0].id
        assert (await client.models.retrieve(model)).id == model
        chat = await client.chat.completions.create(model=model, messages=ASK, **FEW)
        parts = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(
                model=model, messages=ASK, stream=True, **FEW
            )
        ]
        assert len(chat.choices[0].message.content or "") == len("".join(parts)) == 6
        text = await client.completions.create(model=model, prompt="hello", seed=1, **FEW)
        streamed = [
            chunk.choices[0].text
            async for chunk in await client.completions.create(
                model=model, prompt="hello", seed=1, stream=True, **FEW
            )
        ]
        assert text.choices[0].text == "".join(streamed)
        # The client asks for base64 by itself, and gives floats; both are the same vector.
        usual = (await client.embeddings.create(model=model, input="hello")).data[0].embedding
        floats = await client.embeddings.create(model=model, input="hello", encoding_format="float")
        assert floats.data[0].embedding == pytest.approx(usual, abs=1e-6)
        short = await client.embeddings.create(model=model, input=["hello"], dimensions=8)
        assert len(short.data[0].embedding) == 8
        await responses_calls(client, model)
        await stored_calls(client, model)


async def responses_calls(client: openai.AsyncOpenAI, model: str) -> None:
    first = await client.responses.create(model=model, input="hello", max_output_tokens=6)
    kinds = [
        event.type
        async for event in await client.responses.create(
            model=model,
            input="and?",
            previous_response_id=first.id,
            max_output_tokens=6,
            stream=True,
        )
    ]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert (await client.responses.retrieve(first.id)).output_text == first.output_text
    items = [item async for item in client.responses.input_items.list(first.id)]
    assert [item.type for item in items] == ["message"]
    counted = await client.responses.input_tokens.count(model=model, input="hello")
    assert first.usage is not None
    assert counted.input_tokens == first.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.cancel(first.id)
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)


async def stored_calls(client: openai.AsyncOpenAI, model: str) -> None:
    stored = client.chat.completions
    made = await stored.create(model=model, messages=ASK, store=True, metadata={"a": "b"}, **FEW)
    stream = await stored.create(model=model, messages=ASK, store=True, stream=True, **FEW)
    streamed = {chunk.id async for chunk in stream}
    assert await stored.retrieve(made.id) == made
    assert [one.id async for one in stored.list(limit=1)] == [made.id, *streamed]
    assert [one.id async for one in stored.list(metadata={"a": "b"})] == [made.id]
    assert [one.content async for one in stored.messages.list(made.id)] == ["hello"]
    assert (await stored.update(made.id, metadata={"c": "d"})).metadata == {"c": "d"}
    await stored.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await stored.retrieve(made.id)


async def anthropic_calls(server: RunningServer, http: Any) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=server.url, api_key="none", http_client=http, max_retries=0
    ) as client:
        model = (await client.models.list()).data[0].id
        assert (await client.models.retrieve(model)).id == model
        asked: dict[str, Any] = {"model": model, "messages": ASK}
        whole = await client.messages.create(**asked, **FEW)
        async with client.messages.stream(**asked, **FEW) as stream:
            parts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        assert "".join(parts) == final.content[0].text
        assert len(final.content[0].text) == len(whole.content[0].text) == 6
        counted = await client.messages.count_tokens(**asked)
        read = whole.usage.cache_read_input_tokens or 0
        assert counted.input_tokens == whole.usage.input_tokens + read


async def test_every_route_is_walked(
    start_one: Callable[..., RunningServer], tmp_path: Path
) -> None:
    server = start_one(gateway={"data_dir": str(tmp_path / "data")})
    seen: set[tuple[str, str]] = set()

    async def note(request: Any) -> None:
        seen.add((request.method, request.url.path))

    hooks = {"request": [note]}
    async with openai.DefaultAsyncHttpxClient(event_hooks=hooks) as http:
        await openai_calls(server, http)
    async with anthropic.DefaultAsyncHttpxClient(event_hooks=hooks) as http:
        await anthropic_calls(server, http)
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
