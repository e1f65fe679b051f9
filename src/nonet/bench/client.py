"""An open-loop client for /v1/completions: every request leaves at its own time, however slow the answers are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nonet.bench.http import error_text, stream_events
from nonet.bench.metrics import RequestTimes
from nonet.bench.workload import WorkItem
from nonet.core.errors import UnavailableError

__all__ = ["Target", "send_all"]

# Where a piece of a chat's answer may hold what the model said: its answer, its thoughts, its calls.
OUTPUTS = ("content", "reasoning_content", "tool_calls")


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how it is asked."""

    url: str  # "http://127.0.0.1:8000"
    model: str
    api_key: str | None = field(default=None, repr=False)
    ignore_eos: bool = (
        True  # generate exactly what the workload asks; needs a server that knows the field
    )
    timeout_s: float = 600.0


async def send_all(
    target: Target, items: Sequence[WorkItem], due_s: Sequence[float]
) -> list[RequestTimes]:
    """Send each item at its time and wait for all; a failure is recorded, never raised."""
    start = time.monotonic()
    tasks = [
        asyncio.create_task(_send_at(target, index, item, due, start))
        for index, (item, due) in enumerate(zip(items, due_s, strict=True))
    ]
    return list(await asyncio.gather(*tasks))


async def _send_at(
    target: Target, index: int, item: WorkItem, due_s: float, start: float
) -> RequestTimes:
    await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
    seen = _Seen(index, due_s, time.monotonic() - start, len(item.prompt_ids))
    try:
        async with asyncio.timeout(target.timeout_s):
            await _stream(target, item, seen, start)
    except TimeoutError:
        seen.error = f"no end within {target.timeout_s:g} s"
    except (OSError, UnavailableError) as error:
        seen.error = str(error) or type(error).__name__
    return seen.times()


@dataclass(slots=True)
class _Seen:
    """What has been seen of one request so far."""

    index: int
    due_s: float
    sent_s: float
    prompt_tokens: int
    delivery_s: list[float] = field(default_factory=list)
    output_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    cache: str | None = None

    def times(self) -> RequestTimes:
        if self.error is None and not self.delivery_s:
            self.error = "the stream ended without output"
        return RequestTimes(
            index=self.index,
            due_s=self.due_s,
            sent_s=self.sent_s,
            delivery_s=self.delivery_s,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens or len(self.delivery_s),
            cached_tokens=self.cached_tokens,
            finish_reason=self.finish_reason,
            error=self.error,
            cache=self.cache,
        )

    def take_headers(self, headers: Mapping[str, str]) -> None:
        self.cache = headers.get("x-nonet-cache")

    def take(self, event: dict[str, Any], now_s: float) -> None:
        if event.get("error"):
            self.error = error_text(event)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            said = choice.get("text") or any(delta.get(name) for name in OUTPUTS)
            if said or choice.get("token_ids"):
                self.delivery_s.append(now_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        usage = event.get("usage")
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
            self.output_tokens = usage.get("completion_tokens", self.output_tokens)
            details = usage.get("prompt_tokens_details") or {}
            self.cached_tokens = details.get("cached_tokens") or 0


async def _stream(target: Target, item: WorkItem, seen: _Seen, start: float) -> None:
    path = "/v1/chat/completions" if item.messages else "/v1/completions"
    asked: dict[str, object] = {"prompt": list(item.prompt_ids)}
    if item.messages:
        asked = {"messages": list(item.messages)}
    body = {
        "model": target.model,
        **asked,
        "max_tokens": item.output_len,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if target.ignore_eos else {}),
        **({"service_tier": item.service_tier} if item.service_tier else {}),
        **item.extra,
    }
    async for event in stream_events(target.url, path, body, target.api_key, seen.take_headers):
        seen.take(event, time.monotonic() - start)
