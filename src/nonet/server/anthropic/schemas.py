"""Bodies of the Anthropic dialect as typed structs; unknown fields are ignored, null means "not given"."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "Block",
    "CacheControl",
    "CountRequest",
    "Message",
    "MessagesRequest",
    "Prompt",
    "Thinking",
    "ToolChoice",
]


class CacheControl(msgspec.Struct, frozen=True):
    """The prompt up to the object that carries this is to stay cached for `ttl` after each use."""

    type: str
    ttl: str | None = None


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a message; `type` decides which of the other fields it needs."""

    type: str
    text: str | None = None  # text
    thinking: str | None = None  # thinking
    id: str | None = None  # tool_use
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None  # tool_result
    content: str | list[Block] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str | list[Block]


class Thinking(msgspec.Struct, frozen=True):
    """Whether the model may think before it answers."""

    type: str
    budget_tokens: int | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """Which tools the model may, or must, call."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes the prompt, in a request and in a question for its size."""

    model: str
    messages: list[Message]
    system: str | list[Block] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    cache_control: CacheControl | None = None  # as if the last block had it
    output_config: dict[str, Any] | None = None


class CountRequest(Prompt, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(Prompt, frozen=True, kw_only=True):
    """POST /v1/messages; the last four fields are extensions."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    seed: int | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
