"""Every error of the tree has a status, and a 500 tells nothing."""

from __future__ import annotations

import inspect

import orjson
import pytest

from nonet.core import errors
from nonet.server.dialect import Dialect
from nonet.server.errors import answer_of, event_of, route_error

STATUSES = {
    "NonetError": 500,
    "UserError": 400,
    "InvalidRequestError": 400,
    "ContextLengthError": 400,
    "AuthenticationError": 401,
    "NotFoundError": 404,
    "ModelNotFoundError": 404,
    "RequestTooLargeError": 413,
    "ConfigError": 400,
    "UnknownNameError": 400,
    "ModelFileError": 400,
    "UnsupportedModelError": 400,
    "DownloadError": 400,
    "OverloadedError": 429,
    "RateLimitError": 429,
    "UnavailableError": 503,
    "StoreError": 503,
    "EngineDeadError": 503,
}

# The published table of types.
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def test_every_error_is_listed() -> None:
    tree = {
        name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.NonetError)
    }
    assert tree == set(STATUSES)


@pytest.mark.parametrize("name", sorted(STATUSES))
def test_status(name: str) -> None:
    error = getattr(errors, name)("what went wrong")
    answer = answer_of(error)
    assert answer.status == STATUSES[name]
    body = orjson.loads(answer.body)["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert ("what went wrong" in body["message"]) is (answer.status != 500)
    assert (b"retry-after" in dict(answer.headers)) is (answer.status in (429, 503))
    assert event_of(error) == answer.body


@pytest.mark.parametrize("name", sorted(STATUSES))
def test_status_in_the_other_dialect(name: str) -> None:
    error = getattr(errors, name)("what went wrong")
    answer = answer_of(error, Dialect.ANTHROPIC, "req-1")
    assert (answer.status, answer.headers) == (answer_of(error).status, answer_of(error).headers)
    body = orjson.loads(answer.body)
    assert (body["type"], body["request_id"]) == ("error", "req-1")
    assert body["error"]["type"] == ANTHROPIC_TYPES[answer.status]
    assert ("what went wrong" in body["error"]["message"]) is (answer.status != 500)


def test_foreign_errors_and_odd_text() -> None:
    answer = answer_of(ValueError("/secret/path at 0x7f00"))
    assert answer.status == 500
    assert b"secret" not in answer.body
    odd = answer_of(errors.InvalidRequestError("half \ud800", "prompt"))
    assert orjson.loads(odd.body)["error"]["param"] == "prompt"
    assert route_error(405, "/x" * 1000).status == 405


def test_retry_after_is_rounded_up() -> None:
    headers = dict(answer_of(errors.OverloadedError("full", 2.1)).headers)
    assert headers[b"retry-after"] == b"3"
