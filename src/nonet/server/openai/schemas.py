"""Bodies of the OpenAI dialect as typed structs; unknown fields are ignored, null means "not given"."""

from __future__ import annotations

from typing import Any

import msgspec

from nonet.server.shapes import ShapeFields

__all__ = [
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "ContentPart",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "LoadAdapterRequest",
    "SamplingFields",
    "StreamOptions",
    "TokenizeRequest",
    "UnloadAdapterRequest",
]


class StreamOptions(msgspec.Struct, frozen=True):
    """How a stream reports."""

    include_usage: bool | None = None
    include_cost: bool | None = None  # an extension: in the usage, where a ledger prices


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message; only text parts can be used."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None  # what an assistant thought, for templates that tell it


class SamplingFields(ShapeFields, frozen=True, kw_only=True):
    """What both completion endpoints take; the second half are extensions of other servers."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    prompt_cache_key: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    finish_in_time: bool | None = (
        None  # nonet's own: an answer with a grammar is complete at max_tokens
    )
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
    service_tier: str | None = None
    return_token_ids: bool | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None  # noted beside what is stored
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt` is a text, a list of texts, token ids, or a list of lists of token ids."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class EmbeddingRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/embeddings. `input` is a text, a list of texts, token ids, or a list of lists of token ids."""

    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


class LoadAdapterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/load_lora_adapter. A relative `lora_path` is below the server's lora_dir."""

    lora_name: str
    lora_path: str
    base_model_name: str | None = None
    load_inplace: bool | None = None


class UnloadAdapterRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/unload_lora_adapter."""

    lora_name: str
    lora_int_id: int | None = None
