"""Bodies of the Responses API as typed structs; unknown fields are ignored, null means "not given"."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["InputItem", "InputTokensRequest", "Part", "Reasoning", "ResponsesRequest", "TextFormat"]


class Part(msgspec.Struct, frozen=True):
    """One part of an item's content; only text can be used."""

    type: str
    text: str | None = None


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the conversation; `type` decides which of the other fields it needs."""

    type: str | None = None  # a message when not given
    id: str | None = None
    role: str | None = None  # message
    content: str | list[Part] | None = None  # message, reasoning
    summary: list[Part] | None = None  # reasoning
    call_id: str | None = None  # function_call, function_call_output
    name: str | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The shape that the answer's text must have."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer's text is written."""

    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, frozen=True, kw_only=True):
    """How much the model may think."""

    effort: str | None = None
    summary: str | None = None


class InputTokensRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/responses/input_tokens: what becomes the prompt."""

    model: str | None = None
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: str | None = None
    prompt: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # an extension


class ResponsesRequest(InputTokensRequest, frozen=True, kw_only=True):
    """POST /v1/responses; the last part are extensions."""

    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    stop: str | list[str] | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    ignore_eos: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
