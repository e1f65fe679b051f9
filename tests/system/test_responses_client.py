"""The official OpenAI client over the Responses API: answers, streams, conversations, what is stored, mistakes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.data.openai.validation import EVENT_SCHEMAS, validate
from tests.data.sse import parse_events
from tests.system.fake_engine import FakeConfig
from tests.system.harness import PATIENCE_S, RunningServer, start_server, wait_until

NO_EOS = {"ignore_eos": True}
ASK = {"input": "Say something.", "max_output_tokens": 16, "temperature": 0}


@pytest.fixture
def client(any_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{any_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_response(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(
        model=model, **ASK, instructions="Be brief.", metadata={"a": "b"}, extra_body=NO_EOS
    )
    assert answer.output_text
    assert answer.id.startswith("resp_")
    assert (answer.status, answer.model, answer.metadata) == ("incomplete", model, {"a": "b"})
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    usage = answer.usage
    assert usage is not None
    assert usage.output_tokens == 16
    assert usage.total_tokens == usage.input_tokens + 16
    assert usage.input_tokens_details.cached_tokens is not None


def test_stream_equals_whole_answer(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, **ASK, "extra_body": NO_EOS}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == text
    assert last.response.usage.output_tokens == whole.usage.output_tokens


def test_an_answer_that_ends_by_itself(start_one: Callable[..., RunningServer]) -> None:
    server = start_one(FakeConfig(eos_every=9))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        with client.responses.stream(model="fake", input="Hello") as stream:
            final = stream.until_done().get_final_response()
        whole = client.responses.create(model="fake", input="Hello", temperature=0)
    assert (final.status, whole.status) == ("completed", "completed")
    assert final.incomplete_details is None
    assert whole.usage is not None
    assert whole.usage.output_tokens == 9


def test_what_is_sent_is_as_published(any_server: RunningServer, model: str) -> None:
    body = {
        "model": model,
        **ASK,
        **NO_EOS,
        "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
    }
    whole = any_server.post("/v1/responses", body).json()
    validate("Response", whole)
    assert len(whole["output"][0]["content"][0]["logprobs"]) == 16
    text = any_server.post("/v1/responses", {**body, "stream": True}).text
    events = parse_events(text)
    assert [name for name, _ in events][:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert [name for name, _ in events][-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    for name, event in events:
        assert event["type"] == name
        validate(EVENT_SCHEMAS[name], event)


@pytest.mark.parametrize("stream", [False, True])
def test_other_endpoints_are_as_published(
    any_server: RunningServer, model: str, stream: bool
) -> None:
    validate("ListModelsResponse", any_server.get("/v1/models").json())
    chat = {
        "model": model,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 4,
        "logprobs": True,
    }
    text = {"model": model, "prompt": "x", "max_tokens": 4}
    for path, body, schema in (
        ("/v1/chat/completions", chat, "CreateChatCompletionResponse"),
        ("/v1/completions", text, "CreateCompletionResponse"),
    ):
        if not stream:
            validate(schema, any_server.post(path, body).json())
            continue
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        chunks = [data for _, data in parse_events(any_server.post(path, body).text)]
        assert chunks.pop() == "[DONE]"
        for chunk in chunks:
            if "chat" in path:
                validate("CreateChatCompletionStreamResponse", chunk)


def test_conversation(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(model=model, **ASK, extra_body=NO_EOS)
    second = client.responses.create(
        model=model,
        input="And now?",
        previous_response_id=first.id,
        max_output_tokens=8,
        temperature=0,
    )
    by_hand = client.responses.create(
        model=model,
        input=[
            {"role": "user", "content": "Say something."},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "And now?"},
        ],
        max_output_tokens=8,
        temperature=0,
        store=False,
    )
    assert second.output_text == by_hand.output_text
    assert second.usage is not None
    assert by_hand.usage is not None
    assert second.usage.input_tokens == by_hand.usage.input_tokens
    assert second.previous_response_id == first.id
    third = client.responses.create(
        model=model, **{**ASK, "input": "More"}, previous_response_id=second.id
    )
    assert third.usage is not None
    assert third.usage.input_tokens > second.usage.input_tokens
    told = client.responses.input_tokens.count(
        model=model, input="More", previous_response_id=second.id
    )
    assert told.input_tokens == third.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_stored(client: openai.OpenAI, any_server: RunningServer, model: str, stream: bool) -> None:
    asked = {"model": model, **ASK, "input": [{"role": "user", "content": text} for text in "abc"]}
    if stream:
        answer = list(client.responses.create(**asked, stream=True))[-1].response
    else:
        answer = client.responses.create(**asked)
    assert client.responses.retrieve(answer.id) == answer
    page = client.responses.input_items.list(answer.id, limit=2)
    assert [item.content[0].text for item in page.data] == ["c", "b"]
    assert [item.content[0].text for item in page] == ["c", "b", "a"]
    raw = any_server.get(f"/v1/responses/{answer.id}/input_items?order=asc").json()
    validate("ResponseItemList", raw)
    assert [item["content"][0]["text"] for item in raw["data"]] == ["a", "b", "c"]
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(answer.id)
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**asked, previous_response_id=answer.id)
    assert caught.value.param == "previous_response_id"


def test_not_stored_unless_wanted(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(model=model, **ASK, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_stored_turns_outlive_the_server_and_stay_with_their_tenant(tmp_path: Path) -> None:
    gateway = {"data_dir": str(tmp_path / "data")}
    found = ""
    for turn in range(2):
        server = start_server(tmp_path, gateway=gateway, api_keys=("a", "b"))
        try:
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="a") as client:
                if turn == 0:
                    found = client.responses.create(model="fake", **ASK).id
                assert client.responses.retrieve(found).id == found
                client.responses.create(model="fake", **ASK, previous_response_id=found)
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key="b") as other:
                with pytest.raises(openai.NotFoundError):
                    other.responses.retrieve(found)
                with pytest.raises(openai.BadRequestError):
                    other.responses.create(model="fake", **ASK, previous_response_id=found)
        finally:
            assert server.stop() == 0


BAD: dict[str, tuple[dict[str, Any], str | None]] = {
    "no input": ({"input": []}, "input"),
    "image": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input",
    ),
    "max_output_tokens": ({"max_output_tokens": 0}, "max_output_tokens"),
    "context": ({"max_output_tokens": 9_000_000}, "max_tokens"),
    "temperature": ({"temperature": 101}, "temperature"),
    "background": ({"background": True}, "background"),
    "conversation": ({"conversation": "conv_1"}, "conversation"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "web search": ({"tools": [{"type": "web_search"}]}, "tools"),
    "metadata": ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    "previous": ({"previous_response_id": "resp_none"}, "previous_response_id"),
    "format": ({"text": {"format": {"type": "poem"}}}, "response_format"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_mistakes_are_explained(client: openai.OpenAI, model: str, name: str) -> None:
    change, param = BAD[name]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": model, **ASK, **change})
    assert caught.value.param == param
    assert len(caught.value.message) > 20


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "order=up", "limit=1" + "0" * 20]
)
def test_bad_pages(
    client: openai.OpenAI, any_server: RunningServer, model: str, query: str
) -> None:
    answer = client.responses.create(model=model, **ASK)
    assert any_server.get(f"/v1/responses/{answer.id}/input_items?{query}").status_code == 400
    assert any_server.get(f"/v1/responses/{answer.id}/input_items?after=msg_0").status_code == 404


def test_ids_are_names_only(server: RunningServer) -> None:
    for odd in ("..", "%00", "resp_%2e%2e%2fx", "é", "x" * 600, "resp_'; DROP TABLE responses"):
        for method in ("GET", "DELETE"):
            status = httpx.request(method, f"{server.url}/v1/responses/{odd}").status_code
            assert status in (400, 404, 405), (method, odd)


def test_an_engine_that_dies_ends_the_stream_with_a_failure(
    start_one: Callable[..., RunningServer],
) -> None:
    server = start_one(FakeConfig(step_s=0.02))
    body = {"model": "fake", "input": "x", "stream": True}
    with httpx.stream(
        "POST", f"{server.url}/v1/responses", json=body, timeout=PATIENCE_S
    ) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if "output_text.delta" in line)
        httpx.post(
            f"{server.url}/v1/completions",
            json={"prompt": "DIE-NOW", "max_tokens": 1},
            timeout=PATIENCE_S,
        )
        rest = "\n".join(lines)
    name, event = parse_events("event" + rest.rpartition("\nevent")[2])[0]
    assert name == "response.failed"
    validate("ResponseFailedEvent", event)


def test_breaking_a_stream_aborts(
    client: openai.OpenAI, any_server: RunningServer, model: str
) -> None:
    before = any_server.tokens_made
    stream = client.responses.create(
        model=model, input="x", stream=True, max_output_tokens=3000, extra_body=NO_EOS
    )
    next(event for event in stream if event.type == "response.output_text.delta")
    stream.close()
    wait_until(any_server.is_empty)
    assert any_server.tokens_made - before < 3000


async def test_async_client_runs_many_at_once(any_server: RunningServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{any_server.url}/v1", api_key="none") as client:
        model = (await client.models.list()).data[0].id

        async def ask(number: int) -> str:
            asked = {**ASK, "input": f"Count {number}"}
            stream = await client.responses.create(model=model, **asked, stream=True)
            return "".join(
                [e.delta async for e in stream if e.type == "response.output_text.delta"]
            )

        together = await asyncio.gather(*(ask(number) for number in range(16)))
        alone = [await ask(number) for number in (0, 15)]
    assert alone == [together[0], together[15]]
