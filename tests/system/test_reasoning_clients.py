"""Thoughts and calls in every chat dialect, by the official clients; the engine says what the prompt dictates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.data.openai.validation import validate
from tests.data.sse import order, parse_events
from tests.system.harness import RunningServer, start_server

THOUGHT, SAID = "two and two\nare < five", "It is 4."
ANSWER = f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"
NUM_THOUGHT = len(f"<think>\n{THOUGHT}\n</think>")  # a byte is a token
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"zone": "UTC"}}\n</tool_call>'
TOOL = {"name": "get_time", "description": "the time", "input_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(tmp_path_factory.mktemp("thinker"), reasoning_parser="think")
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(thinker: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(thinker: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=thinker.url, api_key="none", max_retries=0) as made:
        yield made


def asked(answer: str = ANSWER) -> list[Any]:
    return [{"role": "user", "content": f"SAY-THIS:{answer}"}]


@pytest.mark.parametrize("n", [1, 2])
def test_chat(client: openai.OpenAI, n: int) -> None:
    answer = client.chat.completions.create(model="fake", messages=asked(), n=n)
    validate("CreateChatCompletionResponse", answer.model_dump(mode="json", exclude_unset=True))
    for choice in answer.choices:
        assert choice.message.content == SAID
        assert choice.message.model_extra == {"reasoning_content": THOUGHT}
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == n * NUM_THOUGHT


async def test_chat_stream(thinker: RunningServer) -> None:
    thought, said, reasoning_tokens = "", "", 0
    async with openai.AsyncOpenAI(base_url=f"{thinker.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="fake", messages=asked(), stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            if chunk.usage is not None and chunk.usage.completion_tokens_details is not None:
                reasoning_tokens = chunk.usage.completion_tokens_details.reasoning_tokens or 0
            for choice in chunk.choices:
                new = (choice.delta.model_extra or {}).get("reasoning_content", "")
                assert not (new and said), "thoughts come first"
                thought, said = thought + new, said + (choice.delta.content or "")
    assert (thought, said, reasoning_tokens) == (THOUGHT, SAID, NUM_THOUGHT)


def test_effort_reaches_the_template(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    def prompt_tokens(**more: Any) -> int:
        answer = client.chat.completions.create(
            model="fake", messages=asked(), max_tokens=1, prompt_cache_key="group", **more
        )
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    def input_tokens(**more: Any) -> int:
        return client.responses.input_tokens.count(
            model="fake", input=asked()[0]["content"], **more
        ).input_tokens

    off = len("thinks: False\neffort: none\n")  # a byte is a token
    on = len("thinks: True\neffort: none\n")
    plain = prompt_tokens()
    assert prompt_tokens(reasoning_effort="none") == plain + off
    assert prompt_tokens(reasoning_effort="high") == plain + on
    own_words = {"chat_template_kwargs": {"enable_thinking": True}}
    assert prompt_tokens(reasoning_effort="none", extra_body=own_words) == plain + on
    assert input_tokens(reasoning={"effort": "none"}) == input_tokens() + off
    counted = [
        claude.messages.count_tokens(model="fake", messages=asked(), **more).input_tokens
        for more in ({}, {"output_config": {"effort": "low"}})
    ]
    assert counted[1] == counted[0] + len("effort: low\n")
    with pytest.raises(anthropic.BadRequestError, match="effort is no text"):
        claude.messages.count_tokens(
            model="fake", messages=asked(), extra_body={"output_config": {"effort": 3}}
        )
    with pytest.raises(openai.BadRequestError, match="prompt_cache_key"):
        client.chat.completions.create(
            model="fake", messages=asked(), prompt_cache_key="k" * 513, max_tokens=1
        )


def test_an_answer_without_thoughts_and_one_cut_short(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="fake", messages=asked("Just so."))
    assert plain.choices[0].message.content == "Just so."
    assert not plain.choices[0].message.model_extra
    cut = client.chat.completions.create(model="fake", messages=asked(), max_tokens=12)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("", "length")
    assert cut.choices[0].message.model_extra == {"reasoning_content": THOUGHT[:4].rstrip()}
    assert cut.usage is not None
    assert cut.usage.completion_tokens_details is not None
    assert cut.usage.completion_tokens_details.reasoning_tokens == 12


def test_a_grammar_leaves_no_room_for_thoughts(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=asked(), response_format={"type": "json_object"}
    )
    assert answer.choices[0].message.content == ANSWER  # this engine knows no grammars


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {"model": "fake", "input": asked(), "store": False}
    if stream:
        events = list(client.responses.create(**fields, stream=True))
        deltas = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
        assert "".join(deltas) == THOUGHT
        answer = events[-1].response
    else:
        answer = client.responses.create(**fields)
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].content[0].text == THOUGHT
    assert answer.output_text == SAID
    assert answer.usage.output_tokens_details.reasoning_tokens == NUM_THOUGHT


def test_messages(claude: anthropic.Anthropic) -> None:
    fields: dict[str, Any] = {"model": "fake", "messages": asked(), "max_tokens": 500}
    whole = claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        thought, said = answer.content
        assert (thought.type, said.type) == ("thinking", "text")
        assert (thought.thinking, said.text, answer.stop_reason) == (THOUGHT, SAID, "end_turn")
        assert answer.usage.output_tokens_details is not None
        assert answer.usage.output_tokens_details.thinking_tokens == NUM_THOUGHT
    again = claude.messages.create(
        **{
            **fields,
            "messages": [*asked(), {"role": "assistant", "content": whole.content}, *asked()],
        }
    )
    assert again.content == whole.content


def test_messages_with_tools(claude: anthropic.Anthropic, thinker: RunningServer) -> None:
    said = f"<think>\n{THOUGHT}\n</think>\n\nLet me see.\n{CALL}\n{CALL}"
    fields: dict[str, Any] = {
        "model": "fake", "messages": asked(said), "max_tokens": 800, "tools": [TOOL],
    }  # fmt: skip
    whole = claude.messages.create(**fields)
    with claude.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert [block.type for block in answer.content] == [
            "thinking",
            "text",
            "tool_use",
            "tool_use",
        ]
        assert answer.stop_reason == "tool_use"
        calls = [block for block in answer.content if block.type == "tool_use"]
        assert [(call.name, call.input) for call in calls] == [("get_time", {"zone": "UTC"})] * 2
        assert len({call.id for call in calls}) == 2
    raw = thinker.post("/v1/messages", {**fields, "stream": True}).text
    names = order(parse_events(raw))
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert names == ["message_start", *block * 4, "message_delta", "message_stop"]
    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": "12:00"}
        for call in whole.content
        if call.type == "tool_use"
    ]
    turns = [
        *asked(said), {"role": "assistant", "content": whole.content},
        {"role": "user", "content": results}, *asked("Noon."),
    ]  # fmt: skip
    assert claude.messages.create(**{**fields, "messages": turns}).content[0].text == "Noon."


def test_thoughts_and_calls_in_chat(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
    said = f"<think>\n{THOUGHT}\n</think>\n{CALL}"
    answer = client.chat.completions.create(model="fake", messages=asked(said), tools=[tool])
    message = answer.choices[0].message
    assert message.model_extra == {"reasoning_content": THOUGHT}
    assert message.tool_calls is not None
    assert json.loads(message.tool_calls[0].function.arguments) == {"zone": "UTC"}
    assert answer.choices[0].finish_reason == "tool_calls"
