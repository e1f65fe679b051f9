"""The only place where an error becomes an HTTP status and an OpenAI error object."""

from __future__ import annotations

import math
from dataclasses import dataclass

import orjson

from nonet.core.errors import (
    AuthenticationError,
    ContextLengthError,
    EngineDeadError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    RateLimitError,
    RequestTooLargeError,
    UnavailableError,
    UserError,
)

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
    error: type[Exception]
    status: int
    kind: str
    code: str | None = None


# The first row whose class matches decides: subclasses stand before their parents.
_ROWS = (
    _Row(ContextLengthError, 400, "invalid_request_error", "context_length_exceeded"),
    _Row(InvalidRequestError, 400, "invalid_request_error"),
    _Row(AuthenticationError, 401, "authentication_error", "invalid_api_key"),
    _Row(NotFoundError, 404, "invalid_request_error", "not_found"),
    _Row(RequestTooLargeError, 413, "invalid_request_error", "request_too_large"),
    _Row(UserError, 400, "invalid_request_error"),
    _Row(RateLimitError, 429, "rate_limit_error", "rate_limit_exceeded"),
    _Row(OverloadedError, 429, "rate_limit_error", "overloaded"),
    _Row(UnavailableError, 503, "service_unavailable_error", "unavailable"),
    _Row(EngineDeadError, 503, "service_unavailable_error", "engine_restarting"),
    _Row(Exception, 500, "internal_server_error", "internal_error"),
)


def answer_of(error: Exception) -> Answer:
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
    return Answer(row.status, _body(error, row), tuple(headers))


def event_of(error: Exception) -> bytes:
    """The error object alone, for a stream whose status has gone out already."""
    return _body(error, _row(error))


def route_error(status: int, path: str) -> Answer:
    """No such route (404), or not with this method (405)."""
    sentence = "does not exist" if status == 404 else "does not take this method"
    row = _Row(Exception, status, "invalid_request_error", "not_found" if status == 404 else None)
    return Answer(status, _object(f"{path[:200]!r} {sentence}", row, None))


def _row(error: Exception) -> _Row:
    return next(row for row in _ROWS if isinstance(error, row.error))


def _body(error: Exception, row: _Row) -> bytes:
    message = str(error) if row.status != 500 else "the server failed; its log says more"
    return _object(message, row, error.param if isinstance(error, InvalidRequestError) else None)


def _object(message: str, row: _Row, param: str | None) -> bytes:
    return orjson.dumps(
        {
            "error": {
                "message": message.encode("utf-8", "replace").decode(),
                "type": row.kind,
                "param": param,
                "code": row.code,
            }
        }
    )
