"""What the official clients build on the APIs: answers parsed into classes, streams put together, tools that are run.

The scripted engine says what the prompt dictates, and the real model what its grammar lets it: both must do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel, Field

from tests.system.harness import RunningServer


class Person(BaseModel):
    """Somebody. No bounds: Anthropic's client leaves them out of the schema that it sends."""

    name: Literal["Ann", "Bob"]
    age: int


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=5)
    days: int = Field(ge=1, le=9)


ANN = '{"name": "Ann", "age": 7}'
CALL = '<tool_call>{"name": "%s", "arguments": {"city": "Rome", "days": 2}}</tool_call>'
FEW: dict[str, Any] = {"temperature": 0}


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": f"Who or what? SAY-THIS:{text}"}]


def one_call(model: str) -> dict[str, Any]:
    """Asks for the weather by exactly one call."""
    return {
        "model": model,
        "messages": said(CALL % "Weather"),
        "tools": [openai.pydantic_function_tool(Weather)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 200,
        **FEW,
    }


@pytest.fixture
def client(any_server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{any_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def claude(any_server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=any_server.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def doors(claude: anthropic.Anthropic, model: str) -> list[Any]:
    """Both ways to Messages; one is enough for an engine that takes its time."""
    return [claude.beta.messages, *([claude.messages] if model == "fake" else [])]


def check_person(found: Any, text: str | None, model: str) -> None:
    assert isinstance(found, Person)
    assert text is not None
    assert found == Person.model_validate_json(text)
    if model == "fake":
        assert found == Person.model_validate_json(ANN)


def test_chat_parse(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=said(ANN), response_format=Person, max_tokens=100, **FEW
    )
    message = answer.choices[0].message
    check_person(message.parsed, message.content, model)


def test_chat_parse_of_calls(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(**one_call(model))
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Weather)
    if model == "fake":
        assert call.function.parsed_arguments == Weather(city="Rome", days=2)


def test_chat_stream(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model, messages=said(ANN), response_format=Person, max_tokens=100, **FEW
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    kinds = [event.type for event in events]
    assert kinds.count("content.done") == 1
    done = events[kinds.index("content.done")]
    message = final.choices[0].message
    assert "".join(e.delta for e in events if e.type == "content.delta") == message.content
    check_person(done.parsed, message.content, model)
    check_person(message.parsed, message.content, model)


def test_chat_stream_of_calls(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(**one_call(model)) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    (done,) = [e for e in events if e.type == "tool_calls.function.arguments.done"]
    parts = [e.arguments_delta for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert json.loads("".join(parts)) == json.loads(done.arguments)
    (call,) = final.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == done.parsed_arguments
    assert isinstance(done.parsed_arguments, Weather)


def test_responses_parse(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.parse(
        model=model, input=said(ANN), text_format=Person, max_output_tokens=100, **FEW
    )
    check_person(answer.output_parsed, answer.output_text, model)


def test_responses_stream(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(
        model=model, input=said(ANN), text_format=Person, max_output_tokens=100, **FEW
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text
    check_person(final.output_parsed, final.output_text, model)


def test_messages_parse(claude: anthropic.Anthropic, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": said(ANN), "max_tokens": 100}
    for messages in doors(claude, model):
        answer = messages.parse(**asked, output_format=Person, extra_body=FEW)
        check_person(answer.parsed_output, answer.content[0].text, model)


def test_messages_stream(claude: anthropic.Anthropic, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": said(ANN), "max_tokens": 100}
    for messages in doors(claude, model):
        with messages.stream(**asked, output_format=Person, extra_body=FEW) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert final.content[0].text == text
        check_person(final.parsed_output, text, model)
        with messages.stream(**asked, output_format=Person, extra_body=FEW) as stream:
            assert stream.get_final_text() == text


@pytest.mark.parametrize("is_streamed", [False, True])
def test_tool_runner(claude: anthropic.Anthropic, model: str, is_streamed: bool) -> None:
    asked: list[tuple[str, int]] = []

    @anthropic.beta_tool
    def weather(city: str, days: int) -> str:
        """The weather of a city.

        Args:
            city: its name
            days: how many
        """
        asked.append((city, days))
        return "It rains. SAY-THIS:It rains in Rome."

    # The scripted engine answers once it has the result; the real one is made to call, and stopped.
    is_fake = model == "fake"
    runner = claude.beta.messages.tool_runner(
        model=model,
        messages=said(CALL % "weather"),
        tools=[weather],
        max_tokens=200,
        max_iterations=4 if is_fake else 1,
        tool_choice={"type": "auto"} if is_fake else {"type": "tool", "name": "weather"},
        extra_body=FEW,
        stream=is_streamed,
    )
    final = runner.until_done()
    if is_fake:
        assert asked == [("Rome", 2)]
        assert (
            final.content[0].text.splitlines()[0] == "It rains in Rome."
        )  # then the template's end
        assert final.stop_reason == "end_turn"
        return
    (call,) = [block for block in final.content if block.type == "tool_use"]
    assert final.stop_reason == "tool_use"
    assert isinstance(call.input["city"], str)
    assert isinstance(call.input["days"], int)
