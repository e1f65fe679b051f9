"""Stored chat completions through the official client: kept, listed, found, changed, deleted, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.data.openai.validation import validate
from tests.system.fake_engine import FakeConfig
from tests.system.harness import RunningServer, start_server

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "fake",
    "messages": [{"role": "user", "content": "Say something."}],
    "max_tokens": 8,
    "temperature": 0,
    "store": True,
}
KEYS = ("one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("stored")
    gateway = {"data_dir": str(folder / "data"), "gateway": ["exact_cache"]}
    running = start_server(folder, FakeConfig(), gateway=gateway, api_keys=KEYS)
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def clients(server: RunningServer) -> Iterator[dict[str, openai.OpenAI]]:
    """One for each key: tests that count what is listed have a key, and so a tenant, of their own."""
    made = {
        key: openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for key in KEYS
    }
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
def client(clients: dict[str, openai.OpenAI]) -> openai.OpenAI:
    return clients["one"]


def raw(server: RunningServer, method: str, path: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": "Bearer one"}
    return httpx.request(method, server.url + path, headers=headers, timeout=30, **fields)


def test_kept_found_changed_and_deleted(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(**ASK, metadata={"topic": "demo"})
    found = client.chat.completions.retrieve(made.id)
    assert found == made
    assert found.metadata == {"topic": "demo"}
    changed = client.chat.completions.update(made.id, metadata={"topic": "new", "more": "x"})
    assert changed.metadata == {"topic": "new", "more": "x"}
    assert changed.choices == made.choices
    assert client.chat.completions.retrieve(made.id) == changed
    assert client.chat.completions.update(made.id, metadata=None).metadata == {}
    gone = client.chat.completions.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "chat.completion.deleted")
    for call in (
        lambda: client.chat.completions.retrieve(made.id),
        lambda: client.chat.completions.delete(made.id),
        lambda: client.chat.completions.update(made.id, metadata={}),
        lambda: client.chat.completions.messages.list(made.id),
    ):
        with pytest.raises(openai.NotFoundError, match="no chat completion"):
            call()


SHAPES: dict[str, dict[str, Any]] = {
    "text": {},
    "two choices": {"n": 2, "seed": 1, "temperature": 1},
    "log probabilities": {"logprobs": True, "top_logprobs": 2},
    "a call": {
        "messages": [
            {
                "role": "user",
                "content": 'SAY-THIS:<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>',
            }
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "max_tokens": 100,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_is_kept_like_the_whole_answer(client: openai.OpenAI, shape: str) -> None:
    asked = {**ASK, **SHAPES[shape]}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    found = client.chat.completions.retrieve(chunks[0].id)
    assert found.created == chunks[0].created
    plain = [one.model_dump(exclude={"id", "created"}) for one in (whole, found)]
    for answer in plain:
        for choice in answer["choices"]:
            for call in choice["message"]["tool_calls"] or ():
                assert call.pop("id")
    assert plain[0] == plain[1]
    if shape == "a call":
        assert found.choices[0].message.tool_calls[0].function.name == "f"


def test_only_what_was_to_be_kept_is(client: openai.OpenAI) -> None:
    for asked in ({**ASK, "store": False}, {**ASK, "store": None}):
        made = client.chat.completions.create(**asked)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.retrieve(made.id)


def test_answers_of_the_cache_are_kept_too(client: openai.OpenAI, server: RunningServer) -> None:
    """The same bytes again and again: each answer has an id of its own, and each is kept."""
    body = {**ASK, "messages": [{"role": "user", "content": "cached"}]}
    answers = [raw(server, "POST", CHAT, json=body) for _ in range(5)]
    assert [one.headers["x-nonet-cache"] for one in answers] == ["miss"] + ["exact"] * 4
    ids = {one.json()["id"] for one in answers}
    assert len(ids) == 5
    for name in ids:
        assert client.chat.completions.retrieve(name).id == name


def test_messages(client: openai.OpenAI, server: RunningServer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    made = client.chat.completions.create(**{**ASK, "messages": messages})
    listed = client.chat.completions.messages
    found = [one.model_dump(exclude_none=True) for one in listed.list(made.id, limit=1)]
    assert [one["id"] for one in found] == [f"{made.id}-{number}" for number in range(4)]
    assert found[1]["content_parts"] == parts
    for one, given in zip(found, messages, strict=True):
        told = {**one, "content": one.get("content_parts", one.get("content"))}
        assert {name: told[name] for name in given} == given
    page = listed.list(made.id, order="desc", limit=2, after=f"{made.id}-3")
    assert [one.role for one in page.data] == ["assistant", "user"]
    assert page.has_more
    told = raw(server, "GET", f"{CHAT}/{made.id}/messages").json()
    # The description's schema knows the role "assistant" only; its own example lists a user's message.
    validate(
        "ChatCompletionMessageList",
        {**told, "data": [{**one, "role": "assistant"} for one in told["data"]]},
    )


def test_pages_and_filters(clients: dict[str, openai.OpenAI]) -> None:
    completions = clients["three"].chat.completions
    made = [
        completions.create(**ASK, metadata={"number": str(number), "half": str(number // 3)}).id
        for number in range(5)
    ]
    assert [one.id for one in completions.list()] == made
    assert [one.id for one in completions.list(limit=2)] == made, "page by page"
    page = completions.list(limit=2, order="desc")
    assert ([one.id for one in page.data], page.has_more) == (made[:2:-1], True)
    page = completions.list(limit=2, order="desc", after=made[2])
    assert ([one.id for one in page.data], page.has_more) == (made[1::-1], False)
    assert [one.id for one in completions.list(metadata={"half": "1"})] == made[3:]
    both = completions.list(metadata={"half": "0", "number": "1"})
    assert [one.id for one in both] == [made[1]]
    assert list(completions.list(metadata={"half": "2"})) == []
    assert [one.id for one in completions.list(model="fake", limit=100)] == made
    assert list(completions.list(model="other")) == []


def test_what_is_told_is_as_published(server: RunningServer) -> None:
    body = {**ASK, "metadata": {"a": "b"}, "logprobs": True}
    made = raw(server, "POST", CHAT, json=body).json()
    validate("CreateChatCompletionResponse", made)
    validate("ChatCompletionList", raw(server, "GET", CHAT).json())
    validate("ChatCompletionList", raw(server, "GET", f"{CHAT}?model=none").json())
    place = f"{CHAT}/{made['id']}"
    changed = {"metadata": {"c": "d"}}
    for answer in (
        raw(server, "GET", place),
        raw(server, "POST", place, json=changed),
    ):
        validate("CreateChatCompletionResponse", answer.json())
    validate("ChatCompletionDeleted", raw(server, "DELETE", place).json())


def test_tenants_see_their_own(clients: dict[str, openai.OpenAI]) -> None:
    mine, other = clients["four"].chat.completions, clients["five"].chat.completions
    made = mine.create(**ASK, metadata={"a": "1"})
    assert list(other.list()) == []
    assert list(other.list(metadata={"a": "1"})) == []
    for call in (
        lambda: other.retrieve(made.id),
        lambda: other.messages.list(made.id),
        lambda: other.update(made.id, metadata={"a": "2"}),
        lambda: other.delete(made.id),
        lambda: other.list(after=made.id),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert mine.retrieve(made.id) == made
    assert [one.id for one in mine.list()] == [made.id]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=x", "order=up", "metadata[a]=" + "x" * 600,
     "&".join(f"metadata[{number}]=x" for number in range(17))],
)  # fmt: skip
def test_bad_pages(server: RunningServer, query: str) -> None:
    assert raw(server, "GET", f"{CHAT}?{query}").status_code == 400
    assert raw(server, "GET", f"{CHAT}?after=chatcmpl-0").status_code == 404


BAD: dict[str, Any] = {
    "too many": {str(number): "x" for number in range(17)},
    "too long": {"a": "x" * 600},
    "a number": {"a": 1},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_metadata(client: openai.OpenAI, server: RunningServer, name: str) -> None:
    made = client.chat.completions.create(**ASK, metadata={"a": "b"})
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK, metadata=BAD[name])
    assert caught.value.param == "metadata"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.update(made.id, metadata=BAD[name])
    for body in (b"{}", b'{"metadata": {"a": "\\ud800"}}', b'{"metadata": []}', b"x"):
        assert raw(server, "POST", f"{CHAT}/{made.id}", content=body).status_code == 400
    assert client.chat.completions.retrieve(made.id).metadata == {"a": "b"}


def test_they_outlive_the_server(tmp_path: Path) -> None:
    gateway = {"data_dir": str(tmp_path / "data")}
    found = ""
    for turn in range(2):
        server = start_server(tmp_path, gateway=gateway)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            if turn == 0:
                found = client.chat.completions.create(**ASK).id
                client.chat.completions.update(found, metadata={"a": "b"})
                server.process.kill()
            else:
                assert client.chat.completions.retrieve(found).metadata == {"a": "b"}
        server.close()


def test_a_server_without_a_place_says_so(start_one: Callable[..., RunningServer]) -> None:
    server = start_one()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        with pytest.raises(openai.BadRequestError, match="--data-dir") as caught:
            client.chat.completions.create(**ASK)
        assert caught.value.param == "store"
        with pytest.raises(openai.NotFoundError, match="--data-dir"):
            client.chat.completions.list()
        for call in (
            lambda: client.chat.completions.retrieve("chatcmpl-1"),
            lambda: client.chat.completions.messages.list("chatcmpl-1"),
            lambda: client.chat.completions.update("chatcmpl-1", metadata={}),
            lambda: client.chat.completions.delete("chatcmpl-1"),
        ):
            with pytest.raises(openai.NotFoundError, match="--data-dir"):
                call()
        assert client.chat.completions.create(**{**ASK, "store": False}).choices
