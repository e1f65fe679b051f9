"""Events and usage of the Messages API against Anthropic's own recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.sse import order, parse_events

from nonet.core.errors import EngineDeadError
from nonet.gateway.answer import CallDelta
from nonet.server.anthropic.events import MessageEvents, MessageHead, whole_message
from nonet.server.generation import ChoiceText, Usage

RECORDED = Path(__file__).parents[2] / "data" / "anthropic_sse"
HEAD = MessageHead(name="msg_1", model="m")
USAGE = Usage(prompt_tokens=20, completion_tokens=1, cached_tokens=16)


def stream(pieces: list[ChoiceText]) -> list[tuple[str, Any]]:
    shape = MessageEvents(HEAD)
    parts = [shape.opening(USAGE), *map(shape.piece, pieces), shape.ending(USAGE)]
    return parse_events(b"".join(parts).decode())


def recorded(name: str) -> list[tuple[str, Any]]:
    return parse_events((RECORDED / f"{name}.txt").read_text())


def test_order_is_that_of_a_recording() -> None:
    pieces = [ChoiceText(0, "a"), ChoiceText(0, ""), ChoiceText(0, "b", finish_reason="stop")]
    assert order(stream(pieces)) == order(recorded("basic_response"))


def test_order_of_a_call_is_that_of_a_recording() -> None:
    """Text, then a call of a tool whose arguments come in pieces."""
    pieces = [
        ChoiceText(0, "I'll "),
        ChoiceText(0, "check.", calls=[CallDelta(0, "toolu_1", "get_weather")]),
        ChoiceText(0, calls=[CallDelta(0, arguments='{"city":')]),
        ChoiceText(0, calls=[CallDelta(0, arguments=' "Paris"}')]),
        ChoiceText(0, finish_reason="stop", ends_in_calls=True),
    ]
    ours, theirs = stream(pieces), recorded("tool_use_response")
    assert order(ours) == order(theirs)
    blocks = [
        [e["content_block"] for n, e in one if n == "content_block_start"] for one in (ours, theirs)
    ]
    for mine, block in zip(*blocks, strict=True):
        assert mine["type"] == block["type"]
        assert block.keys() <= mine.keys() | {"citations", "caller"}
    kinds = [
        [e["delta"]["type"] for n, e in one if n == "content_block_delta"] for one in (ours, theirs)
    ]
    assert set(kinds[0]) == set(kinds[1]) == {"text_delta", "input_json_delta"}
    assert dict(ours)["message_delta"]["delta"]["stop_reason"] == "tool_use"
    parts = [e["delta"].get("partial_json", "") for n, e in ours if n == "content_block_delta"]
    assert "".join(parts) == '{"city": "Paris"}'


def test_thoughts_are_a_block_before_the_text() -> None:
    pieces = [
        ChoiceText(0, thought="hm"),
        ChoiceText(0, "Yes", thought=", so", finish_reason="stop"),
    ]
    events = stream(pieces)
    starts = [e["content_block"] for n, e in events if n == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": ""},
    ]  # fmt: skip
    assert [e["index"] for n, e in events if n == "content_block_stop"] == [0, 1]
    cut = ChoiceText(0, calls=[CallDelta(0, "t", "f", '{"a": 1')], finish_reason="length")
    whole = whole_message(HEAD, cut, USAGE)
    assert whole["content"][0]["input"] == {"partial_json": '{"a": 1'}
    assert whole["stop_reason"] == "max_tokens"


def test_each_event_has_the_fields_of_the_recorded_one() -> None:
    ours = dict(stream([ChoiceText(0, "a", finish_reason="stop")]))
    for name, theirs in recorded("basic_response"):
        assert theirs.keys() <= ours[name].keys(), name
        for field in ("message", "delta", "content_block"):
            assert theirs.get(field, {}).keys() <= ours[name].get(field, {}).keys(), (name, field)
    assert ours["message_start"]["message"]["usage"]["input_tokens"] == 4


def test_an_answer_without_text_has_no_block() -> None:
    assert order(stream([ChoiceText(0, "", finish_reason="stop")])) == [
        "message_start", "message_delta", "message_stop",
    ]  # fmt: skip
    assert whole_message(HEAD, ChoiceText(0), USAGE)["content"] == []


def test_the_text_is_quoted() -> None:
    events = stream([ChoiceText(0, 'a"\n\u2028🙂', finish_reason="stop")])
    deltas = [data["delta"]["text"] for name, data in events if name == "content_block_delta"]
    assert deltas == ['a"\n\u2028🙂']


@pytest.mark.parametrize(
    ("choice", "reason", "sequence"),
    [
        (ChoiceText(0, finish_reason="stop"), "end_turn", None),
        (ChoiceText(0, finish_reason="stop", stop_reason=7), "end_turn", None),
        (ChoiceText(0, finish_reason="stop", stop_reason="END"), "stop_sequence", "END"),
        (ChoiceText(0, finish_reason="length"), "max_tokens", None),
    ],
)
def test_stop_reasons(choice: ChoiceText, reason: str, sequence: str | None) -> None:
    assert HEAD.stop(choice) == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_context_that_ends_first_is_the_reason() -> None:
    head = MessageHead(name="msg_1", model="m", is_bounded_by_context=True)
    ended = ChoiceText(0, finish_reason="length")
    assert head.stop(ended)["stop_reason"] == "model_context_window_exceeded"


def test_the_kinds_of_input_add_up_to_the_prompt() -> None:
    usage = HEAD.usage(USAGE)
    kinds = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(usage[kind] for kind in kinds) == 20
    assert usage["cache_read_input_tokens"] == 16


def test_a_failure_is_an_event_in_anthropics_shape() -> None:
    ((name, data),) = parse_events(MessageEvents(HEAD).failure(EngineDeadError("gone")).decode())
    assert name == data["type"] == "error"
    assert data["error"] == {"type": "overloaded_error", "message": "gone"}
