"""Which beginnings of a prompt a client wants kept, as leases for the engine.

A client marks places in its conversation, a template turns the conversation into text, and a cache holds tokens. A
mark is found in the text by rendering the conversation as far as the mark: the two texts agree up to it. So nothing
needs to be known about templates, and one that writes the tools after the system prompt, or rewrites what came before,
is dealt with too: what is kept is always a true beginning of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.core.request import PrefixLease
from nonet.server.prompts import off_loop, render_chat
from nonet.server.state import ServerState
from nonet.text.tokenizer import Tokenizer

__all__ = ["MAX_MARKS", "Mark", "find_leases"]

MAX_MARKS = 4


@dataclass(frozen=True, slots=True)
class Mark:
    """The conversation as far as the place that the client marked, and how long it wants that kept after each use."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None  # in OpenAI's form
    ttl_s: float


async def find_leases(
    state: ServerState,
    marks: Sequence[Mark],
    text: str,
    prompt_ids: list[int],
    template_kwargs: Mapping[str, Any] | None,
) -> tuple[PrefixLease, ...]:
    """Leases for the marks, from the shortest beginning to the longest; `text` is the whole prompt.

    A conversation cut short that the template refuses leaves its mark without a lease: the cache then works as without.
    """
    ends: list[tuple[int, float]] = []
    for mark in marks:
        try:
            begun = await render_chat(
                state,
                mark.messages,
                tools=mark.tools,
                template_kwargs=template_kwargs,
                add_generation_prompt=False,
            )
        except InvalidRequestError:
            continue
        ends.append((common_length(text, begun), mark.ttl_s))
    if not ends:
        return ()
    return await off_loop(
        state, len(text), lambda: _leases(state.tokenizer, text, prompt_ids, ends)
    )


def common_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning.

    >>> common_length("abcd", "abxd"), common_length("ab", "abc")
    (2, 2)
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _leases(
    tokenizer: Tokenizer, text: str, prompt_ids: list[int], ends: Sequence[tuple[int, float]]
) -> tuple[PrefixLease, ...]:
    """Ends in characters become counts of the tokens that lie wholly before them."""
    sizes = list(accumulate(len(tokenizer.token_bytes(token_id)) for token_id in prompt_ids))
    longest: dict[int, float] = {}
    for end, ttl_s in ends:
        num_bytes = len(text[:end].encode())
        num_tokens = next((i for i, size in enumerate(sizes) if size > num_bytes), len(prompt_ids))
        longest[num_tokens] = max(ttl_s, longest.get(num_tokens, 0.0))
    return tuple(PrefixLease(num_tokens, longest[num_tokens]) for num_tokens in sorted(longest))
