"""From a body of the Messages API to the token ids that the model continues, and to what of them is to stay cached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.core.request import PrefixLease
from nonet.server.answer_form import AnswerForm, answer_form
from nonet.server.anthropic.breakpoints import marks_of
from nonet.server.anthropic.conversation import continued_text, template_messages, tool_use
from nonet.server.anthropic.schemas import Prompt
from nonet.server.limits import check_depth, check_length
from nonet.server.prompt_cache import Mark, find_leases
from nonet.server.prompts import check_text, encode_text, render_chat
from nonet.server.shapes import JsonSchemaFormat, ResponseFormat, ShapeFields, asked_shape
from nonet.server.state import ServerState
from nonet.server.tools import checked_tools

__all__ = ["MessagePrompt", "leases_of", "message_prompt"]

THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}


@dataclass(frozen=True, slots=True)
class MessagePrompt:
    """A conversation as the model reads it."""

    messages: list[dict[str, Any]]  # in OpenAI's form
    text: str
    ids: list[int]
    form: AnswerForm


async def message_prompt(state: ServerState, body: Prompt) -> MessagePrompt:
    """System prompt, tools and messages as the model's template writes them.

    A last message of the assistant is left open, so that the answer goes on where it ends.
    """
    state.find_model(body.model)
    form = await answer_form(state, tool_use(body), asked_shape(_shape(body)))
    messages = form.messages(template_messages(body.system, body.messages))
    begun = continued_text(body.messages)
    text = await render_chat(
        state,
        messages,
        tools=form.template_tools,
        template_kwargs=_template_kwargs(body),
        add_generation_prompt=begun is None,
    )
    if begun is not None:
        text = _left_open(text, begun.strip())
    ids = await encode_text(state, text, "messages", add_special=False)
    return MessagePrompt(messages, text, ids, form)


async def leases_of(
    state: ServerState, body: Prompt, prompt: MessagePrompt
) -> tuple[PrefixLease, ...]:
    """What the body's cache_control asks for."""
    kwargs = _template_kwargs(body)
    uses_tools = prompt.form.use is not None
    marks = [_as_rendered(state, mark, uses_tools) for mark in marks_of(body)]
    return await find_leases(state, marks, prompt.text, prompt.ids, kwargs)


def _as_rendered(state: ServerState, mark: Mark, uses_tools: bool) -> Mark:
    """A mark's conversation as the template gets it."""
    support = state.tools
    use = checked_tools(mark.tools, None) if uses_tools else None
    messages = support.plain_history(mark.messages, use)
    return Mark(messages, support.template_tools(use), mark.ttl_s)


def _shape(body: Prompt) -> ShapeFields:
    """The wish for a shape in the form of chats."""
    form = (body.output_config or {}).get("format")
    if form is None:
        return ShapeFields()
    schema = form.get("schema") if isinstance(form, dict) else None
    if not isinstance(schema, dict) or form.get("type") != "json_schema":
        raise InvalidRequestError(
            "output_config.format is not {'type': 'json_schema', 'schema': {...}}", "output_config"
        )
    check_depth(schema, "output_config")
    json_schema = JsonSchemaFormat(name="answer", schema=schema, strict=True)
    return ShapeFields(response_format=ResponseFormat(type="json_schema", json_schema=json_schema))


def _template_kwargs(body: Prompt) -> dict[str, Any]:
    """What the template is told of thinking. An effort alone does not turn it on."""
    effort = (body.output_config or {}).get("effort")
    told: dict[str, Any] = {}
    if effort is not None:
        if not isinstance(effort, str):
            raise InvalidRequestError(
                'output_config.effort is no text; give one such as "low"', "output_config"
            )
        check_length("name", len(effort), "output_config")
        check_text(effort, "output_config")
        told["reasoning_effort"] = effort
    thinking = body.thinking
    if thinking is None:
        return told
    if thinking.type not in THINKING:
        raise InvalidRequestError(
            f"thinking has type {thinking.type[:50]!r}; allowed: {', '.join(sorted(THINKING))}",
            "thinking",
        )
    return {**told, "enable_thinking": THINKING[thinking.type]}


def _left_open(text: str, begun: str) -> str:
    """The prompt up to the end of the last message, without what the template closes it with."""
    at = text.rfind(begun)
    if at < 0:
        raise InvalidRequestError(
            "the model's chat template rewrites the last assistant message, so it cannot be continued; "
            "end with a user message",
            "messages",
        )
    return text[: at + len(begun)]
