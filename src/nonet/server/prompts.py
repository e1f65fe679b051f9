"""Text and messages become token ids: inline when short, on the text thread when long, checked against the context."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nonet.core.errors import ContextLengthError, InvalidRequestError
from nonet.server.limits import check_length, check_text, check_token_ids
from nonet.server.state import ServedModel, ServerState

__all__ = ["check_fits", "check_text", "encode_text", "off_loop", "render_chat", "thinking_kwargs"]

T = TypeVar("T")

INLINE_CHARACTERS = 4096  # about a millisecond of tokenising; more goes to the text thread


async def encode_text(
    state: ServerState, text: str, param: str, *, add_special: bool = True
) -> list[int]:
    """Token ids of a text."""
    check_text(text, param)
    return await off_loop(
        state, len(text), lambda: state.tokenizer.encode(text, add_special=add_special)
    )


async def render_chat(
    state: ServerState,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    template_kwargs: Mapping[str, Any] | None,
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as the model's template writes it."""
    template = state.template
    if template is None:
        raise InvalidRequestError(
            f"the model {state.model.name!r} has no chat template; use /v1/completions", "messages"
        )
    size = sum(len(str(message.get("content") or "")) for message in messages)
    size += 1000 * len(tools or ())
    try:
        return await off_loop(
            state,
            size,
            lambda: template.render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                template_kwargs=template_kwargs,
            ),
        )
    except RecursionError:
        raise InvalidRequestError(
            "the messages nest too deeply; flatten them", "messages"
        ) from None


def thinking_kwargs(
    effort: str | None, given: Mapping[str, Any] | None, param: str
) -> dict[str, Any]:
    """What a template is told of thinking by an `effort` such as "none" or "low"; a client's own words for the template
    win."""
    told: dict[str, Any] = {}
    if effort is not None:
        check_length("name", len(effort), param)
        check_text(effort, param)
        told = {"enable_thinking": effort != "none", "reasoning_effort": effort}
    return {**told, **(given or {})}


def check_fits(
    model: ServedModel, prompt_ids: list[int], max_tokens: int | None, param: str
) -> None:
    """Raise unless the prompt is within the vocabulary and leaves room for what is asked."""
    check_token_ids(prompt_ids, model.vocab_size, param)
    if not prompt_ids:
        raise InvalidRequestError(f"{param} has no tokens; give at least one", param)
    room = model.max_model_len - len(prompt_ids)
    if room < 1:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens and the context holds {model.max_model_len}, "
            "the answer included; shorten it",
            param,
        )
    if max_tokens is not None and max_tokens > room:
        raise ContextLengthError(
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {max_tokens}; the context holds "
            f"{model.max_model_len}, so at most {room} fit",
            "max_tokens",
        )


async def off_loop(state: ServerState, size: int, work: Callable[[], T]) -> T:
    """`work()` here when `size` characters are few, else on the text thread."""
    if size <= INLINE_CHARACTERS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(state.pool, work)
