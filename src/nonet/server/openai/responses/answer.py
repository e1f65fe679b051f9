"""The response object: what was asked, told back, what became of it, and its usage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from nonet.server.generation import Usage
from nonet.server.openai.responses.items import Item
from nonet.server.openai.responses.schemas import ResponsesRequest, TextFormat

__all__ = ["ResponseHead", "Status", "response_usage"]

Status = Literal["in_progress", "completed", "incomplete", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """What is known of a response before its first token: its name, and what was asked, told back."""

    name: str
    model: str
    body: ResponsesRequest
    temperature: float
    top_p: float
    created_s: int = field(default_factory=lambda: int(time.time()))

    def response(
        self,
        status: Status,
        output: list[Item],
        usage: Usage | None = None,
        error: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        body = self.body
        is_cut = status == "incomplete"
        return {
            "id": self.name,
            "object": "response",
            "created_at": self.created_s,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self.model,
            "output": output,
            **({"usage": response_usage(usage)} if usage is not None else {}),
            **self._asked(body),
        }

    def _asked(self, body: ResponsesRequest) -> dict[str, Any]:
        form = body.text.format if body.text is not None else None
        reasoning = body.reasoning
        told: dict[str, Any] = {
            "background": False,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {
                "effort": reasoning.effort if reasoning is not None else None,
                "summary": reasoning.summary if reasoning is not None else None,
            },
            "service_tier": "default" if body.service_tier in (None, "auto") else body.service_tier,
            "store": body.store is not False,
            "temperature": self.temperature,
            "text": {"format": _told(form) if form is not None else {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": [{"strict": None, "parameters": None, **tool} for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": body.truncation or "disabled",
        }
        for name in ("user", "safety_identifier", "prompt_cache_key"):
            value = getattr(body, name)
            if value is not None:
                told[name] = value
        return told


def response_usage(usage: Usage) -> dict[str, Any]:
    """`input_tokens` counts the cached ones too."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.written_5m_tokens + usage.written_1h_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thought_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _told(form: TextFormat) -> dict[str, Any]:
    """The format as it was given: what was left out stays out."""
    given: dict[str, Any] = msgspec.to_builtins(form)
    return {key: value for key, value in given.items() if value is not None}
