"""The only place where an error becomes an HTTP status and an error object, in the shape of the call's dialect."""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from nonet.core.errors import (
    AuthenticationError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFoundError,
    OverloadedError,
    RateLimitError,
    RequestTooLargeError,
    UnavailableError,
    UserError,
)
from nonet.server.dialect import Dialect

__all__ = ["Answer", "answer_of", "event_of", "route_error"]

RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, extra headers and body of an error response."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    """`kind` and `code` are OpenAI's, `anthropic` is the other dialect's type."""

    error: type[Exception]
    status: int
    kind: str
    code: str | None
    anthropic: str


# The first row whose class matches decides: subclasses stand before their parents.
_ROWS = (
    _Row(ContextLengthError, 400, "invalid_request_error", "context_length_exceeded", "invalid_request_error"),
    _Row(InvalidRequestError, 400, "invalid_request_error", None, "invalid_request_error"),
    _Row(AuthenticationError, 401, "authentication_error", "invalid_api_key", "authentication_error"),
    _Row(ModelNotFoundError, 404, "invalid_request_error", "model_not_found", "not_found_error"),
    _Row(NotFoundError, 404, "invalid_request_error", "not_found", "not_found_error"),
    _Row(RequestTooLargeError, 413, "invalid_request_error", "request_too_large", "request_too_large"),
    _Row(UserError, 400, "invalid_request_error", None, "invalid_request_error"),
    _Row(RateLimitError, 429, "rate_limit_error", "rate_limit_exceeded", "rate_limit_error"),
    _Row(OverloadedError, 429, "rate_limit_error", "overloaded", "rate_limit_error"),
    _Row(UnavailableError, 503, "service_unavailable_error", "unavailable", "overloaded_error"),
    _Row(EngineDeadError, 503, "service_unavailable_error", "engine_restarting", "overloaded_error"),
    _Row(Exception, 500, "internal_server_error", "internal_error", "api_error"),
)  # fmt: skip


def answer_of(
    error: Exception, dialect: Dialect = Dialect.OPENAI, request_id: str | None = None
) -> Answer:
    """The response to an error; what is not ours becomes 500 without details."""
    row = _row(error)
    headers: list[tuple[bytes, bytes]] = []
    if row.status in (429, 503):
        retry_after_s = error.retry_after_s if isinstance(error, OverloadedError) else RETRY_AFTER_S
        headers.append((b"retry-after", str(max(1, math.ceil(retry_after_s))).encode()))
    if row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if row.status == 413:
        headers.append((b"connection", b"close"))
    return Answer(row.status, event_of(error, dialect, request_id), tuple(headers))


def event_of(
    error: Exception, dialect: Dialect = Dialect.OPENAI, request_id: str | None = None
) -> bytes:
    """The error object alone, for a stream whose status has gone out already."""
    row = _row(error)
    message = str(error) if row.status != 500 else "the server failed; its log says more"
    param = error.param if isinstance(error, InvalidRequestError) else None
    return _object(message, row, param, dialect, request_id)


def route_error(
    status: int, path: str, dialect: Dialect = Dialect.OPENAI, request_id: str | None = None
) -> Answer:
    """No such route (404), or not with this method (405)."""
    is_missing = status == 404
    sentence = "does not exist" if is_missing else "does not take this method"
    row = _Row(
        Exception,
        status,
        "invalid_request_error",
        "not_found" if is_missing else None,
        "not_found_error" if is_missing else "invalid_request_error",
    )
    return Answer(status, _object(f"{path[:200]!r} {sentence}", row, None, dialect, request_id))


def _row(error: Exception) -> _Row:
    return next(row for row in _ROWS if isinstance(error, row.error))


def _object(
    message: str, row: _Row, param: str | None, dialect: Dialect, request_id: str | None
) -> bytes:
    text = message.encode("utf-8", "replace").decode()
    if dialect is Dialect.ANTHROPIC:
        error = {"type": row.anthropic, "message": text}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
    return orjson.dumps(
        {"error": {"message": text, "type": row.kind, "param": param, "code": row.code}}
    )
