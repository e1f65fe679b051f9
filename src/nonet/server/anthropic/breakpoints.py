"""The places in a Messages body that carry cache_control, as marks for the prompt cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from nonet.core.errors import InvalidRequestError
from nonet.server.anthropic.conversation import asked_tools, template_messages
from nonet.server.anthropic.schemas import Block, CacheControl, Message, Prompt
from nonet.server.prompt_cache import MAX_MARKS, Mark

__all__ = ["TTLS_S", "marks_of"]

TTLS_S = {"5m": 300.0, "1h": 3600.0}
ELSE = ("0", "1")  # what a conversation may go on with, one of them unlike the real one


@dataclass(frozen=True, slots=True)
class _Cut:
    """A body up to a place with cache_control, in the order in which these APIs count: tools, system, messages."""

    body: Prompt
    ttl: str


def marks_of(body: Prompt) -> list[Mark]:
    """InvalidRequestError for too many breakpoints, an unknown lifetime, or a longer one after a shorter."""
    cuts = [*_in_tools(body), *_in_system(body), *_in_messages(body)]
    if body.cache_control is not None:
        cuts.append(_Cut(body, _ttl(body.cache_control, "cache_control")))
    if len(cuts) > MAX_MARKS:
        raise InvalidRequestError(
            f"cache_control is given {len(cuts)} times; at most {MAX_MARKS} are allowed",
            "cache_control",
        )
    lifetimes = [TTLS_S[cut.ttl] for cut in cuts]
    if lifetimes != sorted(lifetimes, reverse=True):
        raise InvalidRequestError(
            "cache_control with ttl '1h' comes after one with '5m'; in the order tools, system, messages the longer "
            "must come first",
            "cache_control",
        )
    return [
        Mark(
            template_messages(cut.body.system, cut.body.messages),
            asked_tools(cut.body),
            TTLS_S[cut.ttl],
        )
        for cut in cuts
    ]


def _in_tools(body: Prompt) -> list[_Cut]:
    cuts = []
    for number, tool in enumerate(body.tools or ()):
        control = tool.get("cache_control")
        if control is not None:
            ttl = _ttl(_as_control(control, f"tools[{number}]"), f"tools[{number}]")
            tools = (body.tools or [])[: number + 1]
            cuts.append(_Cut(_going_on(body, system=body.system, tools=tools), ttl))
    return cuts


def _in_system(body: Prompt) -> list[_Cut]:
    cuts = []
    blocks = body.system if isinstance(body.system, list) else []
    for number, block in enumerate(blocks):
        if block.cache_control is not None:
            ttl = _ttl(block.cache_control, f"system[{number}]")
            cuts.append(_Cut(_going_on(body, system=blocks[: number + 1], tools=body.tools), ttl))
    return cuts


def _in_messages(body: Prompt) -> list[_Cut]:
    cuts = []
    for number, message in enumerate(body.messages):
        blocks = [] if isinstance(message.content, str) else message.content
        for part, block in enumerate(blocks):
            if block.cache_control is None:
                continue
            where = f"messages[{number}].content[{part}]"
            begun = Message(message.role, blocks[: part + 1])
            messages = [*body.messages[:number], begun]
            cuts.append(
                _Cut(
                    msgspec.structs.replace(body, messages=messages),
                    _ttl(block.cache_control, where),
                )
            )
    return cuts


def _going_on(
    body: Prompt, *, system: str | list[Block] | None, tools: list[dict[str, Any]] | None
) -> Prompt:
    """A body cut before its messages, with another message than the first of them in their place.

    Templates want a message, and where the texts part is where what they have in common ends.
    """
    first = template_messages(None, body.messages[:1])[0]["content"]
    other = next(text for text in ELSE if not first.startswith(text))
    return msgspec.structs.replace(
        body, system=system, tools=tools, messages=[Message("user", other)]
    )


def _as_control(value: Any, where: str) -> CacheControl:
    try:
        return msgspec.convert(value, CacheControl)
    except msgspec.ValidationError:
        raise InvalidRequestError(
            f"{where} has a cache_control that is not {{'type': 'ephemeral'}}", "cache_control"
        ) from None


def _ttl(control: CacheControl, where: str) -> str:
    if control.type != "ephemeral":
        raise InvalidRequestError(
            f"{where} has a cache_control of type {control.type[:50]!r}; allowed: 'ephemeral'",
            "cache_control",
        )
    ttl = control.ttl or "5m"
    if ttl not in TTLS_S:
        raise InvalidRequestError(
            f"{where} has a cache_control with ttl {ttl[:50]!r}; allowed: {', '.join(TTLS_S)}",
            "cache_control",
        )
    return ttl
