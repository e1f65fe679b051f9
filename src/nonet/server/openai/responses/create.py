"""POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import orjson

from nonet.core.errors import InvalidRequestError
from nonet.core.limits import check
from nonet.core.outputs import TokenLogprob
from nonet.gateway.answer import Conversation
from nonet.server.call import Call
from nonet.server.delivery import send_stream, send_whole
from nonet.server.generation import ChoiceText, Generation
from nonet.server.limits import check_length, check_metadata, check_text
from nonet.server.openai.logprobs import chat_logprobs
from nonet.server.openai.responses.answer import ResponseHead
from nonet.server.openai.responses.output import Logprobs, OutputItems
from nonet.server.openai.responses.prompt import ResponsePrompt, response_prompt
from nonet.server.openai.responses.schemas import InputTokensRequest, ResponsesRequest
from nonet.server.openai.responses.stream import ResponseEvents
from nonet.server.openai.sampling import check_common, sampling_params, terms_of
from nonet.server.openai.schemas import SamplingFields
from nonet.server.prompts import check_fits
from nonet.server.requests import engine_requests
from nonet.store.responses import ResponseRecord

__all__ = ["create_response", "input_tokens"]

LOGPROBS = "message.output_text.logprobs"


async def create_response(call: Call) -> None:
    """Answer a turn, as a stream or whole, and keep it for later turns unless told not to."""
    received_s = time.monotonic()
    body = await call.json(ResponsesRequest)
    model = call.choose_model(body.model)
    fields = _sampling_fields(body)
    _check(body, fields)
    params = sampling_params(
        fields, model, max_tokens=body.max_output_tokens, logprobs=_num_logprobs(body)
    )
    prompt = await response_prompt(call, body)
    check_fits(model, prompt.ids, params.max_tokens, "input")
    params = prompt.form.shaped(params, model.vocab_size)
    name = f"resp_{secrets.token_hex(16)}"
    generation = Generation(
        call,
        engine_requests(call, name, [prompt.ids], params, terms_of(fields)),
        received_s,
        conversation=Conversation(messages=prompt.messages, settings=_settings(body)),
        reader=prompt.form.reader(name, 1, prompt.text),
    )
    head = ResponseHead(
        name=name, model=model.name, body=body, temperature=params.temperature, top_p=params.top_p
    )
    answer = ResponseEvents(head, OutputItems(_logprobs_of(call, body)), generation)
    keep = None if body.store is False else partial(_keep, call, prompt, answer)
    if body.stream:
        await send_stream(call, generation, answer, before_end=keep)
        return

    def whole(choices: list[ChoiceText]) -> dict[str, Any]:
        answer.piece(choices[0])
        return answer.response

    await send_whole(call, generation, whole, before_end=keep)


async def input_tokens(call: Call) -> None:
    """How many tokens a turn's prompt has."""
    body = await call.json(InputTokensRequest)
    prompt = await response_prompt(call, body)
    await call.respond({"object": "response.input_tokens", "input_tokens": len(prompt.ids)})


async def _keep(call: Call, prompt: ResponsePrompt, answer: ResponseEvents) -> None:
    """The turn is stored before its end is told."""
    response = answer.response
    await call.state.responses.put(
        ResponseRecord(
            response_id=response["id"],
            tenant=call.tenant,
            previous_id=response["previous_response_id"],
            created_s=float(response["created_at"]),
            input=orjson.dumps(prompt.given),
            answer=orjson.dumps(response),
        )
    )


def _sampling_fields(body: ResponsesRequest) -> SamplingFields:
    return SamplingFields(
        model=body.model,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        stop=body.stop,
        seed=body.seed,
        ignore_eos=body.ignore_eos,
        user=body.user,
        prompt_cache_key=body.prompt_cache_key,
        cache_salt=body.cache_salt,
        priority=body.priority,
        service_tier=body.service_tier,
    )


def _check(body: ResponsesRequest, fields: SamplingFields) -> None:
    """What is refused before any work is done."""
    check_common(fields)
    if body.max_output_tokens is not None:
        check("max_tokens", body.max_output_tokens, param="max_output_tokens")
    if body.background:
        raise InvalidRequestError("background is not supported; leave it out", "background")
    if body.safety_identifier is not None:
        check_length("user", len(body.safety_identifier), "safety_identifier")
        check_text(body.safety_identifier, "safety_identifier")
    check_metadata(body.metadata or {})


def _num_logprobs(body: ResponsesRequest) -> int | None:
    if body.top_logprobs is not None:
        check("top_logprobs", body.top_logprobs)
    return (body.top_logprobs or 0) if _wants_logprobs(body) else None


def _wants_logprobs(body: ResponsesRequest) -> bool:
    return bool(body.top_logprobs) or LOGPROBS in (body.include or ())


def _logprobs_of(call: Call, body: ResponsesRequest) -> Logprobs | None:
    if not _wants_logprobs(body):
        return None
    tokenizer = call.state.tokenizer

    def told(rows: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = chat_logprobs(tokenizer, rows)["content"]
        return content

    return told


def _settings(body: ResponsesRequest) -> dict[str, Any]:
    """What shapes the answer besides messages and sampling."""
    return {
        "tools": body.tools,
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "text": msgspec.to_builtins(body.text),
        "reasoning": msgspec.to_builtins(body.reasoning),
        "chat_template_kwargs": body.chat_template_kwargs,
    }
