"""From a body of the Responses API to the token ids that the model continues, turns that came before included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from nonet.core.errors import InvalidRequestError, NotFoundError
from nonet.server.answer_form import AnswerForm, answer_form
from nonet.server.call import Call
from nonet.server.limits import check_depth, check_length, check_text
from nonet.server.openai.responses.items import Item, given_items, item_messages
from nonet.server.openai.responses.schemas import InputTokensRequest, TextFormat
from nonet.server.prompts import encode_text, render_chat, thinking_kwargs
from nonet.server.shapes import JsonSchemaFormat, ResponseFormat, ShapeFields, asked_shape
from nonet.server.tools import checked_tools

__all__ = ["ResponsePrompt", "response_prompt"]

UNSUPPORTED = ("conversation", "prompt")


@dataclass(frozen=True, slots=True)
class ResponsePrompt:
    """A turn as the model reads it, and what it answers with."""

    given: list[Item]  # of this turn
    messages: list[dict[str, Any]]
    text: str
    ids: list[int]
    form: AnswerForm


async def response_prompt(call: Call, body: InputTokensRequest) -> ResponsePrompt:
    """Instructions, earlier turns and this turn's input, as the model's template writes them."""
    state = call.state
    _check(call, body)
    given = given_items(body.input)
    items = [*await _earlier_items(call, body.previous_response_id), *given]
    check_length("messages", len(items), "input")
    use = checked_tools(
        [_tool(number, tool) for number, tool in enumerate(body.tools or ())],
        body.tool_choice,
        body.parallel_tool_calls,
    )
    form_given = body.text.format if body.text is not None else None
    form = await answer_form(state, use, asked_shape(_shape(form_given)))
    messages = form.messages(item_messages(body.instructions, items))
    text = await render_chat(
        state,
        messages,
        tools=form.template_tools,
        template_kwargs=thinking_kwargs(
            body.reasoning.effort if body.reasoning is not None else None,
            body.chat_template_kwargs,
            "reasoning",
        ),
    )
    ids = await encode_text(state, text, "input", add_special=False)
    return ResponsePrompt(given, messages, text, ids, form)


async def _earlier_items(call: Call, previous_id: str | None) -> list[Item]:
    """Input and output of the turns before this one."""
    if previous_id is None:
        return []
    check_length("name", len(previous_id), "previous_response_id")
    check_text(previous_id, "previous_response_id")
    try:
        turns = await call.state.responses.turns(call.tenant, previous_id)
    except NotFoundError as error:
        raise InvalidRequestError(str(error), "previous_response_id") from None
    items: list[Item] = []
    for turn in turns:
        items += orjson.loads(turn.input)
        items += orjson.loads(turn.answer)["output"]
    return items


def _check(call: Call, body: InputTokensRequest) -> None:
    call.choose_model(body.model)
    for name in UNSUPPORTED:
        if getattr(body, name) is not None:
            raise InvalidRequestError(f"{name} is not supported; leave it out", name)
    if body.truncation not in (None, "disabled"):
        raise InvalidRequestError(
            f"truncation is {body.truncation[:50]!r}; this server takes 'disabled' only",
            "truncation",
        )
    if body.instructions is not None:
        check_text(body.instructions, "instructions")
    check_length("tools", len(body.tools or ()), "tools")
    check_depth(body.tools, "tools")
    check_depth(body.chat_template_kwargs, "chat_template_kwargs")


def _tool(number: int, tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in the form of chats, where the function is an object of its own."""
    if tool.get("type") != "function":
        raise InvalidRequestError(
            f"tools[{number}] has type {str(tool.get('type'))[:50]!r}; this server takes functions only",
            "tools",
        )
    fields = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in fields if name in tool}}


def _shape(form: TextFormat | None) -> ShapeFields:
    """The wish for a shape in the form of chats."""
    if form is None:
        return ShapeFields()
    schema = JsonSchemaFormat(
        name=form.name, description=form.description, schema=form.schema, strict=form.strict
    )
    return ShapeFields(response_format=ResponseFormat(type=form.type, json_schema=schema))
