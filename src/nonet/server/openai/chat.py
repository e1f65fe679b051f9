"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson

from nonet.core.errors import InvalidRequestError, NonetError
from nonet.core.limits import check
from nonet.gateway.answer import CallDelta, Conversation
from nonet.server.answer_form import answer_form
from nonet.server.call import Call
from nonet.server.calls import whole_calls
from nonet.server.delivery import StreamShape, send_stream, send_whole
from nonet.server.generation import ChoiceText, Generation, Usage
from nonet.server.limits import check_choices, check_depth
from nonet.server.openai.events import completion_usage, stream_ending, stream_failure
from nonet.server.openai.logprobs import chat_logprobs, prompt_logprobs
from nonet.server.openai.messages import template_messages
from nonet.server.openai.sampling import (
    check_common,
    sampling_params,
    terms_of,
    tier_field,
    wants_usage,
)
from nonet.server.openai.schemas import ChatRequest, SamplingFields
from nonet.server.openai.stored_chat import ChatKeeper, check_stored
from nonet.server.prompts import check_fits, encode_text, render_chat, thinking_kwargs
from nonet.server.requests import engine_requests
from nonet.server.shapes import ShapeFields, asked_shape
from nonet.server.tools import checked_tools
from nonet.text.tokenizer import Tokenizer

__all__ = ["chat_completions"]

# In the request's sampling, or only about how the answer is delivered and kept.
SAMPLED = {*SamplingFields.__struct_fields__} - {*ShapeFields.__struct_fields__}
SAMPLED |= {"messages", "max_completion_tokens", "logprobs", "top_logprobs", "store", "metadata"}


async def chat_completions(call: Call) -> None:
    """Answer a conversation, as a stream or whole."""
    received_s = time.monotonic()
    body = await call.json(ChatRequest)
    model = call.choose_model(body.model)
    check_common(body)
    check_stored(call, body)
    check_choices(1, 1 if body.n is None else body.n)
    params = sampling_params(
        body, model, max_tokens=_max_tokens(body), logprobs=_num_logprobs(body)
    )
    check_depth(body.chat_template_kwargs, "chat_template_kwargs")
    use = checked_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    form = await answer_form(call.state, use, asked_shape(body))
    params = form.shaped(params, model.vocab_size)
    messages = form.messages(template_messages(body.messages))
    text = await render_chat(
        call.state,
        messages,
        tools=form.template_tools,
        template_kwargs=thinking_kwargs(
            body.reasoning_effort, body.chat_template_kwargs, "reasoning_effort"
        ),
    )
    prompt_ids = await encode_text(call.state, text, "messages", add_special=False)
    check_fits(model, prompt_ids, params.max_tokens, "messages")
    name = f"chatcmpl-{secrets.token_hex(16)}"
    requests = engine_requests(call, name, [prompt_ids], params, terms_of(body))
    generation = Generation(
        call,
        requests,
        received_s,
        conversation=Conversation(messages=messages, settings=_settings(body)),
        reader=form.reader(name, params.n, text),
    )
    await _send(_Head(call, body, name, prompt_ids), generation)


async def _send(head: _Head, generation: Generation) -> None:
    """As a stream or whole; kept before its end is told where the body says so."""
    call, body = head.call, head.body

    def whole(choices: Sequence[ChoiceText]) -> dict[str, Any]:
        return _whole(head, generation.usage, choices)

    keeper = ChatKeeper(call, body, generation.num_choices, whole) if body.store else None
    keep = keeper.keep if keeper is not None else None
    if not body.stream:
        build = keeper.whole if keeper is not None else whole
        await send_whole(call, generation, build, before_end=keep)
        return
    shape: StreamShape = _ChatChunks(head, generation.num_choices)
    if keeper is not None:
        shape = keeper.gathering(shape)
    await send_stream(call, generation, shape, before_end=keep)


def _settings(body: ChatRequest) -> dict[str, Any]:
    """What shapes the answer besides messages and sampling: every field that is not known to be one of those."""
    given = {name: getattr(body, name) for name in body.__struct_fields__ if name not in SAMPLED}
    return dict(msgspec.to_builtins(given))


def _max_tokens(body: ChatRequest) -> int | None:
    for name, value in (
        ("max_completion_tokens", body.max_completion_tokens),
        ("max_tokens", body.max_tokens),
    ):
        if value is not None:
            check("max_tokens", value, param=name)
            return value
    return None


def _num_logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None:
        check("top_logprobs", body.top_logprobs)
        if not body.logprobs:
            raise InvalidRequestError(
                "top_logprobs needs logprobs; set logprobs to true", "top_logprobs"
            )
    return (body.top_logprobs or 0) if body.logprobs else None


@dataclass(frozen=True, slots=True)
class _Head:
    """What is known of an answer before its first token."""

    call: Call
    body: ChatRequest
    name: str
    prompt_ids: list[int]
    created_s: int = field(default_factory=lambda: int(time.time()))

    def told(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": kind,
            "created": self.created_s,
            "model": self.call.model.name,
            **tier_field(self.body),
        }


def _whole(head: _Head, usage: Usage, choices: Sequence[ChoiceText]) -> dict[str, Any]:
    tokenizer, body = head.call.state.tokenizer, head.body
    answer: dict[str, Any] = {
        **head.told("chat.completion"),
        "choices": [
            {
                "index": choice.choice,
                "message": _message(choice),
                "logprobs": chat_logprobs(tokenizer, choice.logprobs) if body.logprobs else None,
                "finish_reason": _finish_reason(choice),
                "stop_reason": choice.stop_reason,
                **({"token_ids": choice.token_ids} if body.return_token_ids else {}),
            }
            for choice in choices
        ],
        "usage": completion_usage(usage),
    }
    if body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(tokenizer, choices[0].prompt_logprobs)
    if body.return_token_ids:
        answer["prompt_token_ids"] = head.prompt_ids
    return answer


def _message(choice: ChoiceText) -> dict[str, Any]:
    calls = [_call(call) for call in whole_calls(choice.calls)]
    content = choice.text if choice.text or not calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.thought:
        message["reasoning_content"] = choice.thought
    return message | {"tool_calls": calls} if calls else message


def _call(call: CallDelta) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def _delta(piece: ChoiceText) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if piece.thought:
        delta["reasoning_content"] = piece.thought
    if piece.text or not (piece.thought or piece.calls or piece.finish_reason):
        delta["content"] = piece.text
    if piece.calls:
        delta["tool_calls"] = [
            {"index": call.index, **_call(call)}
            if call.name
            else {"index": call.index, "function": {"arguments": call.arguments}}
            for call in piece.calls
        ]
    return delta


def _finish_reason(choice: ChoiceText) -> str | None:
    return "tool_calls" if choice.ends_in_calls else choice.finish_reason


class _ChatChunks:
    """Chunks of one chat stream; a plain piece of text is two prepared halves around the quoted text."""

    def __init__(self, head: _Head, num_choices: int) -> None:
        self._call = head.call
        self._tokenizer: Tokenizer = head.call.state.tokenizer
        self._body = body = head.body
        self._prompt_ids = head.prompt_ids
        self._num_choices = num_choices
        self._head = head.told("chat.completion.chunk")
        self._tail: dict[str, Any] = {"usage": None} if wants_usage(body) else {}
        self._is_plain = not (body.logprobs or body.return_token_ids)
        start = b"data: " + orjson.dumps(self._head)[:-1]
        self._before = [
            start + b',"choices":[{"index":%d,"delta":{"content":' % choice
            for choice in range(num_choices)
        ]
        usage = b',"usage":null' if self._tail else b""
        self._after = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"

    def opening(self, usage: Usage) -> bytes:
        """The role of each choice; the first chunk also carries the prompt's token ids when asked for."""
        extra = {"prompt_token_ids": self._prompt_ids} if self._body.return_token_ids else {}
        events = [
            self._chunk(
                [
                    {
                        "index": choice,
                        "delta": {"role": "assistant", "content": ""},
                        "logprobs": None,
                        "finish_reason": None,
                    }
                ],
                extra if choice == 0 else {},
            )
            for choice in range(self._num_choices)
        ]
        return b"".join(events)

    def piece(self, piece: ChoiceText) -> bytes:
        is_text = not (piece.thought or piece.calls) and piece.finish_reason is None
        if self._is_plain and is_text and piece.prompt_logprobs is None:
            if not piece.text:
                return b""
            return self._before[piece.choice] + orjson.dumps(piece.text) + self._after
        logprobs = (
            chat_logprobs(self._tokenizer, piece.logprobs)
            if self._body.logprobs and piece.logprobs
            else None
        )
        choice = {
            "index": piece.choice,
            "delta": _delta(piece),
            "logprobs": logprobs,
            "finish_reason": _finish_reason(piece),
            "stop_reason": piece.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = piece.token_ids
        extra: dict[str, Any] = {}
        if piece.prompt_logprobs is not None:
            extra["prompt_logprobs"] = prompt_logprobs(self._tokenizer, piece.prompt_logprobs)
        return self._chunk([choice], extra)

    def ending(self, usage: Usage) -> bytes:
        options, reply = self._body.stream_options, self._call.reply
        wants_cost = options is not None and options.include_cost
        cost = reply.outcome.cost if reply is not None and wants_cost else None
        return stream_ending(self._head, usage if wants_usage(self._body) else None, cost)

    def failure(self, error: NonetError) -> bytes:
        return stream_failure(error)

    def _chunk(self, choices: list[dict[str, Any]], extra: dict[str, Any]) -> bytes:
        body = {**self._head, "choices": choices, **self._tail, **extra}
        return b"data: " + orjson.dumps(body) + b"\n\n"
