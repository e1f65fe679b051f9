"""Answers of the Messages API: content blocks, stop reasons and usage, whole or as the events of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from nonet.core.errors import NonetError
from nonet.core.service_class import ServiceClass
from nonet.gateway.answer import CallDelta
from nonet.server.calls import whole_calls
from nonet.server.dialect import Dialect
from nonet.server.errors import event_of
from nonet.server.generation import ChoiceText, Usage

__all__ = ["MessageEvents", "MessageHead", "whole_message"]

TIERS: dict[ServiceClass, str] = {
    "interactive": "priority",
    "standard": "standard",
    "batch": "batch",
}

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
TEXT_BEFORE = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"text_delta","text":'
)
TEXT_AFTER = b"}}\n\n"
SIGNATURE = ""  # thoughts come back unchecked


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageHead:
    """What is known of an answer before its first token."""

    name: str
    model: str
    is_bounded_by_context: bool = False  # rather than by what the client asked for
    service_class: ServiceClass = "standard"

    def message(
        self, content: list[dict[str, Any]], stop: dict[str, str | None], usage: Usage
    ) -> dict[str, Any]:
        return {
            "id": self.name,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            **stop,
            "usage": self.usage(usage),
        }

    def stop(self, choice: ChoiceText) -> dict[str, str | None]:
        """`stop_reason` and `stop_sequence` of a finished choice."""
        if choice.finish_reason == "length":
            reason = "model_context_window_exceeded" if self.is_bounded_by_context else "max_tokens"
            return {"stop_reason": reason, "stop_sequence": None}
        if choice.ends_in_calls:
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if isinstance(choice.stop_reason, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": choice.stop_reason}
        return {"stop_reason": "end_turn", "stop_sequence": None}

    def usage(self, usage: Usage) -> dict[str, Any]:
        """What came from the cache, what was put there, and the rest: the three kinds of input add up to the prompt."""
        created = usage.written_5m_tokens + usage.written_1h_tokens
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens - created,
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": usage.cached_tokens,
            "cache_creation": {
                "ephemeral_5m_input_tokens": usage.written_5m_tokens,
                "ephemeral_1h_input_tokens": usage.written_1h_tokens,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.thought_tokens},
            "service_tier": TIERS[self.service_class],
        }


def whole_message(head: MessageHead, choice: ChoiceText, usage: Usage) -> dict[str, Any]:
    """The answer at once; without a block when the model said nothing, as an empty one may not be sent back."""
    content: list[dict[str, Any]] = []
    if choice.thought:
        content.append({"type": "thinking", "thinking": choice.thought, "signature": SIGNATURE})
    if choice.text:
        content.append({"type": "text", "text": choice.text})
    for call in whole_calls(choice.calls):
        content.append({**_begun(call), "input": _object(call.arguments)})
    return head.message(content, head.stop(choice), usage)


class MessageEvents:
    """Events of one stream, in the order of Anthropic's recordings.

    message_start, then for each block content_block_start, deltas and content_block_stop, then message_delta with the
    final counts, then message_stop. A block begins with its first text; one is open at a time.
    """

    def __init__(self, head: MessageHead) -> None:
        self._head = head
        self._index = -1  # of the last block
        self._kind = ""  # of the open block
        self._stop: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}
        self._before = b""

    def opening(self, usage: Usage) -> bytes:
        return _event("message_start", {"message": self._head.message([], self._stop, usage)})

    def piece(self, piece: ChoiceText) -> bytes:
        events = b""
        if piece.thought:
            if self._kind != "thinking":
                events += self._start({"type": "thinking", "thinking": "", "signature": SIGNATURE})
            events += self._delta({"type": "thinking_delta", "thinking": piece.thought})
        if piece.text:
            if self._kind != "text":
                events += self._start({"type": "text", "text": ""})
            events += self._before + orjson.dumps(piece.text) + TEXT_AFTER
        for call in piece.calls:
            if call.call_id:
                events += self._start({**_begun(call), "input": {}})
            if call.arguments:
                events += self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        if piece.finish_reason is not None:
            self._stop = self._head.stop(piece)
            events += self._end()
        return events

    def ending(self, usage: Usage) -> bytes:
        counts = self._head.usage(usage)
        return _event("message_delta", {"delta": self._stop, "usage": counts}) + MESSAGE_STOP

    def failure(self, error: NonetError) -> bytes:
        return b"event: error\ndata: " + event_of(error, Dialect.ANTHROPIC) + b"\n\n"

    def _start(self, block: dict[str, Any]) -> bytes:
        events = self._end()
        self._index += 1
        self._kind = block["type"]
        self._before = TEXT_BEFORE % self._index
        begun = _event("content_block_start", {"index": self._index, "content_block": block})
        return events + begun + (PING if self._index == 0 else b"")

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _end(self) -> bytes:
        if not self._kind:
            return b""
        self._kind = ""
        return _event("content_block_stop", {"index": self._index})


def _begun(call: CallDelta) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.call_id, "name": call.name}


def _object(arguments: str) -> Any:
    """A call's arguments; those of an answer that was cut short may be no JSON, and are told as far as they came."""
    try:
        return orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        return {"partial_json": arguments}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    body = orjson.dumps({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"
