"""The official OpenAI client against a live server: chat, streams, logprobs, n, stop, seed, errors, aborts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.system.harness import PATIENCE_S, RunningServer, wait_until

NO_EOS = {"ignore_eos": True}
ASK = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def client(any_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{any_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_models(client: openai.OpenAI, model: str) -> None:
    card = client.models.retrieve(model)
    assert card.id == model
    assert card.object == "model"
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=ASK)
    assert caught.value.code == "model_not_found"


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=ASK, max_tokens=12, extra_body=NO_EOS
    )
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens == 12
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None


def test_chat_stream_equals_whole_answer(client: openai.OpenAI, model: str) -> None:
    asked = {
        "model": model,
        "messages": ASK,
        "max_completion_tokens": 40,
        "seed": 5,
        "temperature": 0,
        "extra_body": NO_EOS,
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_stream_without_usage_has_none(client: openai.OpenAI, model: str) -> None:
    chunks = list(
        client.chat.completions.create(model=model, messages=ASK, max_tokens=4, stream=True)
    )
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_n_choices(client: openai.OpenAI, model: str, stream: bool) -> None:
    asked = {
        "model": model,
        "messages": ASK,
        "max_tokens": 16,
        "n": 3,
        "seed": 1,
        "temperature": 1.0,
    }
    texts = {0: "", 1: "", 2: ""}
    if stream:
        for chunk in client.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        for whole in client.chat.completions.create(**asked).choices:
            texts[whole.index] = whole.message.content or ""
    assert len(set(texts.values())) == 3


def test_seed_repeats_the_answer(client: openai.OpenAI, model: str) -> None:
    texts = [
        client.chat.completions.create(
            model=model, messages=ASK, max_tokens=32, seed=seed, temperature=1.0
        )
        .choices[0]
        .message.content
        for seed in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(client: openai.OpenAI, model: str, stream: bool) -> None:
    asked = {"model": model, "messages": ASK, "max_tokens": 60, "seed": 3, "temperature": 0}
    full = client.chat.completions.create(**asked).choices[0].message.content
    assert full
    stop = full[20:22]
    before = full[: full.index(stop)]
    if stream:
        chunks = list(client.chat.completions.create(**asked, stop=stop, stream=True))
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        choice = client.chat.completions.create(**asked, stop=[stop]).choices[0]
        text, reason = choice.message.content or "", choice.finish_reason
    assert text == before
    assert reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs(client: openai.OpenAI, model: str, stream: bool) -> None:
    asked = {
        "model": model, "messages": ASK, "max_tokens": 6, "logprobs": True, "top_logprobs": 3, "seed": 1,
    }  # fmt: skip
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        rows = [
            row
            for chunk in chunks
            if chunk.choices[0].logprobs
            for row in chunk.choices[0].logprobs.content or []
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        assert choice.logprobs is not None
        rows = choice.logprobs.content or []
        text = choice.message.content or ""
    assert len(rows) == 6
    assert all(row.logprob <= 0 and len(row.top_logprobs) == 3 for row in rows)
    assert b"".join(bytes(row.bytes or []) for row in rows).decode() == text


def test_completion_logprobs_and_echo(client: openai.OpenAI, model: str) -> None:
    choice = client.completions.create(
        model=model, prompt="One two", max_tokens=5, logprobs=2, echo=True, seed=1
    ).choices[0]
    assert choice.text.startswith("One two")
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.token_logprobs[0] is None
    assert all(value is not None for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == choice.text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts(client: openai.OpenAI, model: str, stream: bool) -> None:
    asked = {"model": model, "prompt": ["One", "Two"], "max_tokens": 8, "n": 2, "seed": 1}
    texts = dict.fromkeys(range(4), "")
    if stream:
        for chunk in client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        for whole in client.completions.create(**asked).choices:
            texts[whole.index] = whole.text
    alone = client.completions.create(**{**asked, "prompt": "Two"})
    assert [texts[2], texts[3]] == [choice.text for choice in alone.choices]


def test_token_ids_in_and_out(client: openai.OpenAI, any_server: RunningServer, model: str) -> None:
    ids = any_server.post("/tokenize", {"prompt": "One two"}).json()["tokens"]
    asked = {"model": model, "max_tokens": 8, "seed": 1}
    by_text = client.completions.create(**asked, prompt="One two")
    by_ids = client.completions.create(**asked, prompt=ids, extra_body={"return_token_ids": True})
    assert by_ids.choices[0].text == by_text.choices[0].text
    extra = by_ids.choices[0].model_extra or {}
    assert extra["prompt_token_ids"] == ids
    text = any_server.post("/detokenize", {"tokens": extra["token_ids"]}).json()["prompt"]
    assert text == by_ids.choices[0].text
    both = client.completions.create(**asked, prompt=[ids, ids])
    assert len(both.choices) == 2


def test_prompt_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="One two", max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    rows = (answer.choices[0].model_extra or {})["prompt_logprobs"]
    assert rows[0] is None
    assert all(len(row) in (2, 3) for row in rows[1:])


def test_content_parts_are_joined(client: openai.OpenAI, model: str) -> None:
    parts = [{"type": "text", "text": "Say"}, {"type": "text", "text": "something."}]
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": parts}], max_tokens=4
    )
    assert answer.choices[0].message.content is not None


BAD = {
    "unknown model": ({"model": "gpt-9"}, openai.NotFoundError, None),
    "temperature": ({"temperature": 101}, openai.BadRequestError, "temperature"),
    "n": ({"n": 129}, openai.BadRequestError, "n"),
    "max_tokens": ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
    "context": ({"max_tokens": 9_000_000}, openai.BadRequestError, "max_tokens"),
    "logit bias id": ({"logit_bias": {"99999999": 1}}, openai.BadRequestError, "logit_bias"),
    "stop id": (
        {"extra_body": {"stop_token_ids": [99999999]}}, openai.BadRequestError, "stop_token_ids",
    ),
    "role": ({"messages": [{"role": "boss", "content": "x"}]}, openai.BadRequestError, "messages"),
    "image": (
        {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        openai.BadRequestError, "messages",
    ),
    "no messages": ({"messages": []}, openai.BadRequestError, "messages"),
    "format": ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format"),
    "schema": (
        {"response_format": {"type": "json_schema", "json_schema": {
            "name": "s", "schema": {"type": "string", "minLength": 2, "maxLength": 1}}}},
        openai.BadRequestError, "response_format",
    ),
    "no schema": (
        {"response_format": {"type": "json_schema"}}, openai.BadRequestError, "response_format",
    ),
    "regex": ({"extra_body": {"guided_regex": "("}}, openai.BadRequestError, "guided_regex"),
    "two shapes": (
        {"response_format": {"type": "json_object"}, "extra_body": {"guided_choice": ["a"]}},
        openai.BadRequestError, "guided_choice",
    ),
    "shape without an end": (
        {"response_format": {"type": "json_object"}, "extra_body": NO_EOS},
        openai.BadRequestError, "ignore_eos",
    ),
    "tool schema": (
        {"tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "f", "parameters": {"properties": {"a": {"type": "mystery"}}}}}]},
        openai.BadRequestError, "tools",
    ),
    "unknown tool": (
        {"tool_choice": {"type": "function", "function": {"name": "g"}},
         "tools": [{"type": "function", "function": {"name": "f"}}]},
        openai.BadRequestError, "tool_choice",
    ),
    "top_logprobs alone": ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs"),
    "tool_choice": ({"tool_choice": "required", "tools": []}, openai.BadRequestError, "tool_choice"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_mistakes_are_explained(client: openai.OpenAI, model: str, name: str) -> None:
    change, error, param = BAD[name]
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": model, "messages": ASK, **change})
    assert caught.value.body is not None
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert len(caught.value.message) > 20


def test_too_long_prompt(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt="word " * 20_000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"


def test_request_id_comes_back(any_server: RunningServer) -> None:
    assert (
        any_server.get("/version", **{"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    )
    assert len(any_server.get("/version").headers["x-request-id"]) == 32


def test_breaking_a_stream_aborts(
    client: openai.OpenAI, any_server: RunningServer, model: str
) -> None:
    before = any_server.tokens_made
    stream = client.completions.create(
        model=model, prompt="One", max_tokens=3000, stream=True, extra_body=NO_EOS
    )
    next(iter(stream))
    stream.close()
    wait_until(any_server.is_empty)
    assert any_server.tokens_made - before < 3000


def test_timeout_of_a_whole_answer_aborts(any_server: RunningServer) -> None:
    before = any_server.tokens_made
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{any_server.url}/v1/completions",
            json={"prompt": "One", "max_tokens": 4000, **NO_EOS},
            timeout=httpx.Timeout(PATIENCE_S, read=0.3),
        )
    wait_until(any_server.is_empty)
    assert any_server.tokens_made - before < 4000


async def test_async_client_runs_many_at_once(any_server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{any_server.url}/v1", api_key="none") as client:
        model = (await client.models.list()).data[0].id

        async def ask(number: int) -> str:
            stream = await client.completions.create(
                model=model, prompt=f"Count {number}", max_tokens=24, seed=1, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        together = await asyncio.gather(*(ask(number) for number in range(32)))
        alone = [await ask(number) for number in (0, 31)]
    assert alone == [together[0], together[31]]


@pytest.mark.parametrize("tier", ["priority", "default", "flex", "interactive"])
def test_service_tier(client: openai.OpenAI, model: str, tier: str) -> None:
    asked = {"model": model, "messages": ASK, "max_tokens": 2, "extra_body": {"service_tier": tier}}
    answer = client.chat.completions.create(**asked)
    assert answer.model_dump()["service_tier"] == tier
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert {chunk.model_dump()["service_tier"] for chunk in chunks} == {tier}


def test_unknown_service_tier(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="service_tier is 'gold'; give one of auto"):
        client.completions.create(
            model=model, prompt="a", max_tokens=1, extra_body={"service_tier": "gold"}
        )
