"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from nonet.core.limits import check
from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import ServiceClass
from nonet.gateway.answer import Conversation
from nonet.server.anthropic.events import MessageEvents, MessageHead, whole_message
from nonet.server.anthropic.prompt import leases_of, message_prompt
from nonet.server.anthropic.schemas import CountRequest, MessagesRequest
from nonet.server.call import Call
from nonet.server.delivery import send_stream, send_whole
from nonet.server.generation import Generation
from nonet.server.limits import check_length, check_text
from nonet.server.openai.sampling import sampling_params, service_class
from nonet.server.openai.schemas import SamplingFields
from nonet.server.prompts import check_fits
from nonet.server.requests import Terms, engine_requests
from nonet.server.state import ServedModel

__all__ = ["count_tokens", "create_message"]


async def create_message(call: Call) -> None:
    """Answer a conversation, as a stream or whole."""
    received_s = time.monotonic()
    body = await call.json(MessagesRequest)
    model = call.choose_model(body.model)
    _check(body)
    prompt = await message_prompt(call.state, body)
    check_fits(model, prompt.ids, None, "messages")
    room = model.max_model_len - len(prompt.ids)
    sampling = _sampling(body, model, min(body.max_tokens, room))
    name = f"msg_{uuid.uuid4().hex}"
    requests = engine_requests(
        call,
        name,
        [prompt.ids],
        prompt.form.shaped(sampling, model.vocab_size),
        Terms(
            cache_salt=body.cache_salt,
            priority=body.priority,
            service_class=_service_class(body),
            leases=await leases_of(call.state, body, prompt),
        ),
    )
    generation = Generation(
        call,
        requests,
        received_s,
        conversation=Conversation(messages=prompt.messages, settings=_settings(body)),
        reader=prompt.form.reader(name, 1, prompt.text),
    )
    head = MessageHead(
        name=name,
        model=model.name,
        is_bounded_by_context=body.max_tokens > room,
        service_class=call.caller.service_class or _service_class(body),
    )
    if body.stream:
        await send_stream(call, generation, MessageEvents(head))
    else:
        await send_whole(
            call, generation, lambda choices: whole_message(head, choices[0], generation.usage)
        )


async def count_tokens(call: Call) -> None:
    """How many tokens a conversation would be charged as input."""
    body = await call.json(CountRequest)
    prompt = await message_prompt(call.state, body)
    await call.respond({"input_tokens": len(prompt.ids)})


def _settings(body: MessagesRequest) -> dict[str, Any]:
    """What shapes the answer besides messages and sampling."""
    return {
        "tools": body.tools,
        "tool_choice": msgspec.to_builtins(body.tool_choice),
        "thinking": msgspec.to_builtins(body.thinking),
        "output_config": body.output_config,
    }


def _check(body: MessagesRequest) -> None:
    """What is refused before any work is done."""
    check("max_tokens", body.max_tokens)
    if body.priority is not None:
        check("priority", body.priority)
    _service_class(body)
    user = body.metadata.get("user_id") if body.metadata else None
    for field, text in (("cache_salt", body.cache_salt), ("user", user)):
        if isinstance(text, str):
            check_length(field, len(text), field)
            check_text(text, field)


def _service_class(body: MessagesRequest) -> ServiceClass:
    return "standard" if body.service_tier == "standard_only" else service_class(body.service_tier)


def _sampling(body: MessagesRequest, model: ServedModel, max_tokens: int) -> SamplingParams:
    stops = body.stop_sequences or []
    check_length("stop", len(stops), "stop_sequences")
    for text in stops:
        check_text(text, "stop_sequences")
    fields = SamplingFields(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=stops,
        seed=body.seed,
        ignore_eos=body.ignore_eos,
    )
    return sampling_params(fields, model, max_tokens=max_tokens, logprobs=None)
