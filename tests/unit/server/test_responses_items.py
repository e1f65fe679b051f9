"""Items of the Responses API: what clients may give, what becomes of it, and how pieces become items and events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.data.openai.validation import EVENT_SCHEMAS, validate

from nonet.core.errors import InvalidRequestError
from nonet.gateway.answer import CallDelta, ChoiceText, Usage
from nonet.server.openai.responses.answer import ResponseHead
from nonet.server.openai.responses.items import given_items, item_messages
from nonet.server.openai.responses.output import OutputItems
from nonet.server.openai.responses.schemas import InputItem, ResponsesRequest

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "42"}


def items(given: Any) -> list[dict[str, Any]]:
    return given_items(msgspec.convert(given, str | list[InputItem] | None))


def messages(given: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    return item_messages(instructions, items(given))


def test_a_text_is_a_message_of_the_user() -> None:
    assert messages("hi", "be brief") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_messages_in_each_of_their_forms() -> None:
    given = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}] * 2},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
    ]
    assert messages(given) == [
        {"role": "system", "content": "d"},
        {"role": "user", "content": "a\na"},
        {"role": "assistant", "content": "b"},
    ]


def test_calls_join_the_message_before_them_and_thoughts_the_one_after() -> None:
    thought = {
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }
    given = [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "let me see"}, CALL,
        {**CALL, "call_id": "c2"}, RESULT, thought, CALL,
    ]  # fmt: skip
    plain = messages(given)
    assert [call["id"] for call in plain[1]["tool_calls"]] == ["c1", "c2"]
    assert plain[2] == {"role": "tool", "content": "42", "tool_call_id": "c1"}
    assert plain[3]["reasoning_content"] == "hm"
    assert plain[3]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_what_is_stored_is_complete() -> None:
    stored = items(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, CALL, RESULT]
    )
    for item in stored:
        validate("ItemResource", item)
    assert len({item["id"] for item in stored}) == 4
    assert given_items(msgspec.convert(stored, list[InputItem])) == stored, (
        "what we show can be given back"
    )


@pytest.mark.parametrize(
    "given",
    [
        None, "", [], "\ud800",
        [{"role": "boss", "content": "x"}], [{"role": "user"}], [{"content": "x"}],
        [{"role": "user", "content": [{"type": "input_image"}]}],
        [{"role": "user", "content": [{"type": "input_text"}]}],
        [{"type": "computer_call"}], [{"type": "function_call", "call_id": "c"}], [{"type": "function_call_output"}],
        [{"role": "user", "content": "x"}] * 8193,
    ],
)  # fmt: skip
def test_bad_input(given: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        items(given)
    assert caught.value.param == "input"


PIECES = (
    ChoiceText(0, thought="hm, "),
    ChoiceText(0, "Le", thought="yes"),
    ChoiceText(0, "t me see"),
    ChoiceText(0, calls=[CallDelta(0, "call_1", "f", '{"a"'), CallDelta(1, "call_2", "g")]),
    ChoiceText(0, calls=[CallDelta(1, arguments="{}")]),
)


def test_pieces_become_items() -> None:
    output = OutputItems()
    events = [event for piece in PIECES for event in output.take(piece)] + output.close()
    assert [item["type"] for item in output.items] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    thought, message, first, second = output.items
    assert thought["content"][0]["text"] == "hm, yes"
    assert message["content"][0]["text"] == "Let me see"
    assert (first["name"], first["arguments"], second["arguments"]) == ("f", '{"a"', "{}")
    assert {item["status"] for item in output.items} == {"completed"}
    for number, event in enumerate(events):
        validate(EVENT_SCHEMAS[event["type"]], {**event, "sequence_number": number})
    for item in output.items:
        validate("OutputItem", item)


def test_events_build_the_items_that_they_end_with() -> None:
    """What a client puts together from deltas is what the last event of the item says."""
    output = OutputItems()
    built: dict[str, str] = {}
    for event in [event for piece in PIECES for event in output.take(piece)] + output.close():
        if event["type"].endswith(".delta"):
            built[event["item_id"]] = built.get(event["item_id"], "") + event["delta"]
        elif event["type"] == "response.output_item.added":
            assert event["item"]["status"] == "in_progress"
            assert not event["item"].get("content")
        elif event["type"] == "response.output_item.done":
            item = event["item"]
            whole = item.get("arguments") or item["content"][0]["text"]
            assert built[item["id"]] == whole


def test_a_cut_item_says_so() -> None:
    output = OutputItems()
    output.take(ChoiceText(0, "Once"))
    assert output.close(is_cut=True)[-1]["item"]["status"] == "incomplete"
    assert output.close() == []


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {
            "metadata": {"a": "b"},
            "user": "u",
            "instructions": "i",
            "max_output_tokens": 7,
            "store": False,
        },
        {
            "tools": [{"type": "function", "name": "f"}],
            "tool_choice": {"type": "function", "name": "f"},
        },
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}},
        {
            "reasoning": {"effort": "low"},
            "top_logprobs": 2,
            "safety_identifier": "s",
            "prompt_cache_key": "k",
        },
    ],
)
@pytest.mark.parametrize("status", ["in_progress", "completed", "incomplete", "failed"])
def test_responses_are_as_published(asked: dict[str, Any], status: Any) -> None:
    body = msgspec.convert({"input": "x", **asked}, ResponsesRequest)
    head = ResponseHead(name="resp_1", model="m", body=body, temperature=1.0, top_p=1.0)
    error = {"code": "server_error", "message": "m"} if status == "failed" else None
    usage = Usage(prompt_tokens=9, completion_tokens=2, cached_tokens=3, thought_tokens=1)
    response = head.response(status, [], usage, error)
    validate("Response", response)
    assert response["usage"]["total_tokens"] == 11
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}
