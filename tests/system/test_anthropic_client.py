"""The official Anthropic client against a live server: messages, streams, stops, counting, errors, keys, aborts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import anthropic
import httpx
import pytest

from tests.data.sse import order, parse_events
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, wait_until

ASK = [{"role": "user", "content": "Say something."}]
GREEDY = {"temperature": 0.0}
LONG = {"ignore_eos": True, **GREEDY}


@pytest.fixture
def client(any_server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=any_server.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def model(client: anthropic.Anthropic) -> str:
    return client.models.list().data[0].id


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_models(client: anthropic.Anthropic, model: str) -> None:
    card = client.models.retrieve(model)
    assert (card.id, card.type, card.display_name) == (model, "model", model)
    assert card.created_at.year >= 2026
    with pytest.raises(anthropic.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_message(client: anthropic.Anthropic, model: str) -> None:
    answer = client.messages.create(
        model=model, messages=ASK, max_tokens=12, system="Be brief.", extra_body=LONG
    )
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", model)
    assert answer.id.startswith("msg_")
    assert text_of(answer)
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert answer._request_id
    usage = answer.usage
    assert usage.output_tokens == 12
    counted = client.messages.count_tokens(model=model, messages=ASK, system="Be brief.")
    assert usage.cache_read_input_tokens is not None
    assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens


@pytest.mark.parametrize(
    "system", ["Be brief.", [{"type": "text", "text": "Be brief."}], anthropic.NOT_GIVEN]
)
def test_stream_equals_whole_answer(
    client: anthropic.Anthropic, model: str, system: object
) -> None:
    asked = {
        "model": model, "messages": ASK, "max_tokens": 40, "system": system, "extra_body": LONG,
    }  # fmt: skip
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(whole) == text_of(final)
    assert final.stop_reason == whole.stop_reason == "max_tokens"
    assert final.usage.output_tokens == whole.usage.output_tokens == 40
    names = [event.type for event in client.messages.create(**asked, stream=True)]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]


def test_raw_stream_has_nothing_after_its_end(any_server: RunningServer, model: str) -> None:
    body = {"model": model, "messages": ASK, "max_tokens": 5, "stream": True, **LONG}
    text = any_server.post("/v1/messages", body).text
    assert order(parse_events(text)) == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_stop_sequence(client: anthropic.Anthropic, model: str, stream: bool) -> None:
    asked = {"model": model, "messages": ASK, "max_tokens": 60, "extra_body": GREEDY}
    full = text_of(client.messages.create(**asked))
    stop = full[20:22]
    if stream:
        with client.messages.stream(**asked, stop_sequences=["\x00", stop]) as events:
            answer = events.get_final_message()
    else:
        answer = client.messages.create(**asked, stop_sequences=["\x00", stop])
    assert text_of(answer) == full[: full.index(stop)]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


def test_end_of_turn(start_one: Callable[..., RunningServer]) -> None:
    server = start_one(FakeConfig(eos_every=9))
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        answer = client.messages.create(model="fake", messages=ASK, max_tokens=99)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", 9)


def test_a_begun_answer_is_continued(client: anthropic.Anthropic, model: str) -> None:
    asked = {"model": model, "max_tokens": 24, "extra_body": LONG}
    begun = "The answer is"
    answer = text_of(
        client.messages.create(**asked, messages=[*ASK, {"role": "assistant", "content": begun}])
    )
    other = text_of(client.messages.create(**asked, messages=ASK))
    assert answer != other
    open_end = client.messages.count_tokens(
        model=model, messages=[*ASK, {"role": "assistant", "content": begun}]
    )
    closed = client.messages.count_tokens(
        model=model, messages=[*ASK, {"role": "assistant", "content": begun}, *ASK]
    )
    assert open_end.input_tokens < closed.input_tokens


def test_max_tokens_beyond_the_context_is_bounded(client: anthropic.Anthropic, model: str) -> None:
    asked = {"model": model, "messages": ASK, "extra_body": LONG}
    room = 4096 - client.messages.count_tokens(model=model, messages=ASK).input_tokens
    with client.messages.stream(**asked, max_tokens=30_000) as stream:
        next(iter(stream.text_stream))
    assert room > 0
    with pytest.raises(anthropic.BadRequestError, match="context holds"):
        client.messages.create(
            model=model, max_tokens=1, messages=[{"role": "user", "content": "word " * 20_000}]
        )


def test_a_full_context_is_the_reason(start_one: Callable[..., RunningServer]) -> None:
    server = start_one(FakeConfig(max_model_len=96))
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        answer = client.messages.create(model="fake", messages=ASK, max_tokens=1000)
    assert answer.stop_reason == "model_context_window_exceeded"


BAD = {
    "unknown model": ({"model": "claude-9"}, anthropic.NotFoundError, "not_found_error"),
    "temperature": ({"extra_body": {"temperature": 101}}, anthropic.BadRequestError, "invalid_request_error"),
    "max_tokens": ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
    "role": ({"messages": [{"role": "boss", "content": "x"}]}, anthropic.BadRequestError, "invalid_request_error"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": ""}}]}]},
        anthropic.BadRequestError, "invalid_request_error",
    ),
    "no messages": ({"messages": []}, anthropic.BadRequestError, "invalid_request_error"),
    "empty stop": ({"stop_sequences": [""]}, anthropic.BadRequestError, "invalid_request_error"),
    "trailing space": (
        {"messages": [*ASK, {"role": "assistant", "content": "So "}]},
        anthropic.BadRequestError, "invalid_request_error",
    ),
    "thinking": ({"thinking": {"type": "hard"}}, anthropic.BadRequestError, "invalid_request_error"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BAD))
def test_mistakes_are_explained(client: anthropic.Anthropic, model: str, name: str) -> None:
    change, kind, error_type = BAD[name]
    with pytest.raises(kind) as caught:
        client.messages.create(**{"model": model, "messages": ASK, "max_tokens": 4, **change})
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert body["error"]["type"] == error_type
    assert len(body["error"]["message"]) > 20
    assert body["request_id"] == caught.value.request_id


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("auto", "standard"),
        ("standard_only", "standard"),
        ("interactive", "priority"),
        ("batch", "batch"),
    ],
)
def test_service_tiers(server: RunningServer, asked: str, told: str) -> None:
    body = {"model": "fake", "messages": ASK, "max_tokens": 2, "service_tier": asked}
    assert server.post("/v1/messages", body).json()["usage"]["service_tier"] == told
    assert server.post("/v1/messages", {**body, "service_tier": "best"}).status_code == 400


def test_keys_come_in_either_header(start_one: Callable[..., RunningServer]) -> None:
    server = start_one(api_keys=("secret",))
    for key in ({"api_key": "secret"}, {"auth_token": "secret"}):
        with anthropic.Anthropic(base_url=server.url, **key) as client:
            assert text_of(client.messages.create(model="fake", messages=ASK, max_tokens=4))
    with (
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        client.messages.create(model="fake", messages=ASK, max_tokens=4)
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["error"]["type"] == "authentication_error"


def test_errors_off_the_routes_are_anthropics(any_server: RunningServer) -> None:
    for method, path, status in (("GET", "/v1/messages", 405), ("POST", "/v1/messages/nope", 404)):
        answer = httpx.request(method, any_server.url + path)
        assert answer.status_code == status
        assert answer.json()["type"] == "error"
    assert "type" not in httpx.get(any_server.url + "/v1/nope").json()


def test_breaking_a_stream_aborts(
    client: anthropic.Anthropic, any_server: RunningServer, model: str
) -> None:
    before = any_server.tokens_made
    with client.messages.stream(
        model=model, messages=ASK, max_tokens=3000, extra_body=LONG
    ) as stream:
        next(iter(stream.text_stream))
    wait_until(any_server.is_empty)
    assert any_server.tokens_made - before < 3000


async def test_async_client_runs_many_at_once(any_server: RunningServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=any_server.url, api_key="none") as client:
        model = (await client.models.list()).data[0].id

        async def ask(number: int) -> str:
            asked = [{"role": "user", "content": f"Count {number}"}]
            async with client.messages.stream(
                model=model, max_tokens=24, extra_body=GREEDY, messages=asked
            ) as stream:
                return "".join([text async for text in stream.text_stream])

        together = await asyncio.gather(*(ask(number) for number in range(16)))
        alone = [await ask(number) for number in (0, 15)]
    assert alone == [together[0], together[15]]
