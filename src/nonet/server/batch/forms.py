"""How each API writes the lines of a batch's answer, and which endpoints its requests may go to."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Protocol

import orjson

from nonet.store.batch_records import LineState

__all__ = ["ANTHROPIC", "FORMS", "OPENAI", "OPENAI_ENDPOINTS", "Form"]

OPENAI = "openai"
ANTHROPIC = "anthropic"
OPENAI_ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
)


class Form(Protocol):
    """The lines of one API. With `has_error_file` those of failed requests go to a file of their own."""

    has_error_file: bool
    is_hidden: bool  # whether the file is read through the batch only

    def answered(self, custom_id: str, request_id: str, status: int, body: bytes) -> bytes:
        """The line of a request that was answered, with an answer or an error."""
        ...

    def unrun(self, custom_id: str, state: LineState) -> bytes:
        """The line of a request that was not run."""
        ...


class _OpenAI:
    has_error_file = True
    is_hidden = False
    _reasons: Mapping[LineState, tuple[str, str]] = {
        LineState.CANCELLED: (
            "batch_cancelled",
            "The batch was cancelled before this request was run.",
        ),
        LineState.EXPIRED: (
            "batch_expired",
            "This request could not be executed before the completion window expired.",
        ),
    }

    def answered(self, custom_id: str, request_id: str, status: int, body: bytes) -> bytes:
        response = {
            "status_code": status,
            "request_id": request_id,
            "body": orjson.Fragment(body),
        }
        return self._line(custom_id, response, None)

    def unrun(self, custom_id: str, state: LineState) -> bytes:
        code, message = self._reasons[state]
        return self._line(custom_id, None, {"code": code, "message": message})

    def _line(
        self, custom_id: str, response: dict[str, object] | None, error: dict[str, str] | None
    ) -> bytes:
        name = f"batch_req_{uuid.uuid4().hex}"
        return orjson.dumps(
            {"id": name, "custom_id": custom_id, "response": response, "error": error}
        )


class _Anthropic:
    has_error_file = False
    is_hidden = True
    _reasons: Mapping[LineState, str] = {
        LineState.CANCELLED: "canceled",
        LineState.EXPIRED: "expired",
    }

    def answered(self, custom_id: str, request_id: str, status: int, body: bytes) -> bytes:
        fragment = orjson.Fragment(body)
        if status == 200:
            return self._line(custom_id, {"type": "succeeded", "message": fragment})
        return self._line(custom_id, {"type": "errored", "error": fragment})

    def unrun(self, custom_id: str, state: LineState) -> bytes:
        return self._line(custom_id, {"type": self._reasons[state]})

    def _line(self, custom_id: str, result: dict[str, object]) -> bytes:
        return orjson.dumps({"custom_id": custom_id, "result": result})


FORMS: Mapping[str, Form] = {OPENAI: _OpenAI(), ANTHROPIC: _Anthropic()}
