"""What the streams of both completion endpoints have in common: how an event is written, and how a stream ends."""

from __future__ import annotations

from typing import Any

import orjson

from nonet.core.errors import NonetError
from nonet.server.errors import event_of
from nonet.server.generation import Usage

__all__ = ["chunk", "completion_usage", "stream_ending", "stream_failure"]

DONE = b"data: [DONE]\n\n"


def chunk(body: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def stream_ending(head: dict[str, Any], usage: Usage | None, cost: str | None = None) -> bytes:
    """The usage chunk, when it was asked for, and the mark of the end; `cost` is told where it is known."""
    if usage is None:
        return DONE
    told = completion_usage(usage)
    if cost is not None:
        told["cost"] = cost
    return chunk({**head, "choices": [], "usage": told}) + DONE


def stream_failure(error: NonetError) -> bytes:
    return b"data: " + event_of(error) + b"\n\n" + DONE


def completion_usage(usage: Usage) -> dict[str, Any]:
    """`prompt_tokens` counts the cached ones too."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.written_5m_tokens + usage.written_1h_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.thought_tokens},
    }
