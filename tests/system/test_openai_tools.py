"""The official OpenAI client against a live server with real weights: answers in a given shape, and tool calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.system.harness import RunningServer, real_options, start_server

pytestmark = pytest.mark.models

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "person", "strict": True, "schema": PERSON},
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 3},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time", "parameters": {"additionalProperties": False}}},
]  # fmt: skip
STRICT: list[Any] = [{**one, "function": {**one["function"], "strict": True}} for one in TOOLS]
ASK: list[Any] = [{"role": "user", "content": "What is the weather in Paris tomorrow?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = start_server(
        tmp_path_factory.mktemp("tools"), options=real_options("smollm2", max_model_len=2048)
    )
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "smollm2", "messages": ASK, "max_tokens": 300, "temperature": 0, **fields}
    return client.chat.completions.create(**asked)


def stream(client: openai.OpenAI, **fields: Any) -> tuple[str, list[dict[str, str]], str | None]:
    """Text, calls and finish reason of a stream, put together as a client does."""
    text, reason = "", None
    calls: list[dict[str, str]] = []
    for chunk in ask(client, stream=True, **fields):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for delta in choice.delta.tool_calls or ():
            if delta.index == len(calls):
                assert delta.id
                assert delta.type == "function"
                assert delta.function.name
                calls.append({"id": delta.id, "name": delta.function.name, "arguments": ""})
            else:
                assert delta.id is None
                assert delta.function.name is None
                assert delta.index == len(calls) - 1
            calls[delta.index]["arguments"] += delta.function.arguments or ""
    return text, calls, reason


def check_calls(calls: list[Any]) -> None:
    assert calls
    for call in calls:
        name, arguments = call.function.name, json.loads(call.function.arguments)
        (tool,) = [one["function"] for one in TOOLS if one["function"]["name"] == name]
        jsonschema.validate(arguments, tool["parameters"])
    assert len({call.id for call in calls}) == len(calls)


def test_json_schema(client: openai.OpenAI) -> None:
    for seed in (1, 2):
        choice = ask(client, response_format=FORMAT, temperature=1.0, seed=seed).choices[0]
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), PERSON)


def test_json_object_and_many_choices(client: openai.OpenAI) -> None:
    answer = ask(
        client,
        response_format={"type": "json_object"},
        n=3,
        temperature=1.0,
        seed=4,
        max_tokens=120,
    )
    for choice in answer.choices:
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


def test_a_stream_in_shape_equals_the_whole_answer(client: openai.OpenAI) -> None:
    whole = ask(client, response_format=FORMAT).choices[0]
    text, calls, reason = stream(client, response_format=FORMAT)
    assert (text, calls, reason) == (whole.message.content, [], "stop")


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"guided_regex": "[A-Z][a-z]{2,5}!"}, "[A-Z][a-z]{2,5}!"),
    ({"guided_choice": ["sun", "rain"]}, "sun|rain"),
    ({"guided_grammar": 'root ::= "it is " ("hot" | "cold")'}, "it is (hot|cold)"),
    ({"guided_json": {"const": [1]}}, r"\[\s?1\s?\]"),
    ({"structured_outputs": {"choice": ["sun", "rain"]}}, "sun|rain"),
    ({"structured_outputs": {"regex": "[0-9]{4}"}}, "[0-9]{4}"),
    ({"structured_outputs": {"json": '{"const": true}'}}, "true"),
    ({"structured_outputs": {"grammar": 'start: "a"~3'}}, "aaa"),
]


@pytest.mark.parametrize(("fields", "expected"), SHAPES, ids=lambda value: str(value)[:40])
def test_other_shapes(client: openai.OpenAI, fields: dict[str, Any], expected: str) -> None:
    choice = ask(client, extra_body=fields).choices[0]
    assert re.fullmatch(expected, choice.message.content)
    plain = client.completions.create(
        model="smollm2", prompt="The sky:", max_tokens=40, temperature=0, extra_body=fields
    )
    assert re.fullmatch(expected, plain.choices[0].text)


@pytest.mark.parametrize("many", [True, False])
def test_required_calls(client: openai.OpenAI, many: bool) -> None:
    for seed in (1, 2, 3):
        asked = {
            "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": many, "temperature": 1.0, "seed": seed,
            "max_tokens": 600,
        }  # fmt: skip
        choice = ask(client, **asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        check_calls(choice.message.tool_calls)
        if not many:
            assert len(choice.message.tool_calls) == 1
        text, calls, reason = stream(client, **asked)
        assert (text, reason) == ("", "tool_calls")
        assert [(one["name"], one["arguments"]) for one in calls] == [
            (one.function.name, one.function.arguments) for one in choice.message.tool_calls
        ]


def test_a_named_call(client: openai.OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    choice = ask(client, tools=TOOLS, tool_choice=named).choices[0]
    (call,) = choice.message.tool_calls  # one, though parallel calls were not forbidden
    assert call.function.name == "get_weather"
    check_calls([call])


@pytest.mark.parametrize("tools", [TOOLS, STRICT], ids=["free", "strict"])
def test_auto_leaves_it_to_the_model(client: openai.OpenAI, tools: list[Any]) -> None:
    choice = ask(client, tools=tools, max_tokens=60).choices[0]
    assert choice.message.content or choice.message.tool_calls
    if choice.message.tool_calls and tools is STRICT:
        check_calls(choice.message.tool_calls)
    text, calls, reason = stream(client, tools=tools, max_tokens=60)
    assert text == (choice.message.content or "")
    assert len(calls) == len(choice.message.tool_calls or ())
    assert reason == choice.finish_reason


def test_no_choice_no_calls(client: openai.OpenAI) -> None:
    choice = ask(client, tools=TOOLS, tool_choice="none", max_tokens=20).choices[0]
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_calls_and_results_go_back_into_the_conversation(client: openai.OpenAI) -> None:
    first = ask(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False).choices[0]
    call = first.message.tool_calls[0]
    messages = [
        *ASK,
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 30 degrees."},
    ]
    second = ask(client, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=40)
    assert second.choices[0].message.content
    counted = client.post(
        "/../tokenize", body={"messages": messages, "tools": TOOLS}, cast_to=dict[str, Any]
    )
    assert counted["count"] > 100


def test_length_cuts_a_call(client: openai.OpenAI) -> None:
    choice = ask(client, tools=TOOLS, tool_choice="required", max_tokens=14).choices[0]
    assert choice.finish_reason == "length"


def test_a_call_or_an_answer_in_shape(client: openai.OpenAI) -> None:
    for seed in (1, 2, 3):
        message = (
            ask(
                client,
                tools=TOOLS,
                response_format=FORMAT,
                temperature=1.0,
                seed=seed,
                max_tokens=600,
            )
            .choices[0]
            .message
        )
        if message.tool_calls:
            check_calls(message.tool_calls)
        else:
            jsonschema.validate(json.loads(message.content), PERSON)


def test_many_shapes_at_once(server: RunningServer) -> None:
    """Sixteen calls in one batch, each with a schema of its own."""
    import concurrent.futures

    def one(number: int) -> None:
        schema = {"type": "object", "properties": {f"key{number}": {"enum": [number]}}, "required": [f"key{number}"],
                  "additionalProperties": False}  # fmt: skip
        answer = server.post(
            "/v1/chat/completions",
            {"messages": ASK, "max_tokens": 100, "temperature": 0, "guided_json": schema},
        ).json()
        assert json.loads(answer["choices"][0]["message"]["content"]) == {f"key{number}": number}

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
