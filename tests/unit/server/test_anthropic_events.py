"""Events and usage of the Messages API against Anthropic's own recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.sse import order, parse_events

from nonet.core.errors import EngineDeadError
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
