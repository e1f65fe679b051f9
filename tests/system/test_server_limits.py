"""Every row of the limits table over HTTP: just below, at and just above each bound; generated from the table."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from nonet.core.limits import LIMITS, Limit
from nonet.server.limits import HTTP_LIMITS
from tests.system.harness import PATIENCE_S, RunningServer

# Fields that a completion request carries as one number.
NUMBERS = (
    "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "priority",
)  # fmt: skip
# Rows that are tested in their own way below, or cannot be reached over HTTP.
ELSEWHERE = {
    "logit_bias", "stop", "stop_item", "stop_token_ids", "top_logprobs", "prompt_ids", "prompts", "messages", "text",
    "cache_salt", "request_id", "user", "grammar",
}  # fmt: skip


def cases() -> list[tuple[str, Any, bool]]:
    found: list[tuple[str, Any, bool]] = []
    for field in NUMBERS:
        limit = LIMITS[field]
        step = 1 if limit.kind == "int" else 0.001
        for bound, sign in ((limit.minimum, 1), (limit.maximum, -1)):
            assert bound is not None
            exact = int(bound) if limit.kind == "int" else float(bound)
            found += [
                (field, exact, True),
                (field, exact + sign * step, True),
                (field, exact - sign * step, False),
            ]
    return found


def complain(server: RunningServer, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """The error object, or None when the body was taken; 5xx fails."""
    answer = server.post(path, body)
    assert answer.status_code in (200, 400), answer.text
    return None if answer.status_code == 200 else answer.json()["error"]


def ask(server: RunningServer, **fields: Any) -> dict[str, Any] | None:
    return complain(server, "/v1/completions", {"prompt": "x", "max_tokens": 1, **fields})


def test_every_row_is_tested() -> None:
    assert set(NUMBERS) | ELSEWHERE == set(LIMITS)


@pytest.mark.parametrize(("field", "value", "is_allowed"), cases())
def test_numbers(server: RunningServer, field: str, value: Any, is_allowed: bool) -> None:
    error = ask(server, **{field: value})
    if is_allowed:
        # within the table a value may still not fit this prompt's context
        assert error is None or error["code"] == "context_length_exceeded" or field == "min_tokens"
    else:
        assert error is not None
        assert error["param"] == field
        assert "allowed" in error["message"]


@pytest.mark.parametrize("field", NUMBERS)
def test_wrong_types(server: RunningServer, field: str) -> None:
    for value in ("1", [1], {}, True):
        error = ask(server, **{field: value})
        assert error is not None, (field, value)
        assert error["param"] == field


def longest(limit: Limit) -> int:
    assert limit.max_length is not None
    return limit.max_length


@pytest.mark.parametrize(
    ("field", "param", "make"),
    [
        ("logit_bias", "logit_bias", lambda n: {str(i % 260): 1.0 for i in range(n)}),
        ("stop", "stop", lambda n: ["zzzz"] * n),
        ("stop_item", "stop", lambda n: "z" * n),
        ("stop_token_ids", "stop_token_ids", lambda n: [259] * n),
        ("cache_salt", "cache_salt", lambda n: "s" * n),
        ("user", "user", lambda n: "u" * n),
        ("prompts", "prompt", lambda n: ["x"] * n),
    ],
)
def test_lengths(server: RunningServer, field: str, param: str, make: Any) -> None:
    most = longest(LIMITS[field])
    for length in (most - 1, most):
        assert ask(server, **{param: make(length)}) is None
    if (
        field != "logit_bias"
    ):  # its keys are token ids, of which this model has fewer than the limit
        error = ask(server, **{param: make(most + 1)})
        assert error is not None
        assert error["param"] == param


def test_values_inside_lists(server: RunningServer) -> None:
    assert ask(server, logit_bias={"0": -100, "259": 100}) is None
    for bias in (100.001, -100.001):
        error = ask(server, logit_bias={"0": bias})
        assert error is not None
        assert error["param"] == "logit_bias"
    for field, value in (
        ("logit_bias", {"260": 1}),
        ("logit_bias", {"-1": 1}),
        ("stop_token_ids", [260]),
        ("stop_token_ids", [-1]),
        ("prompt", [260]),
        ("prompt", [-1]),
        ("prompt", [[1], [260]]),
        ("stop", [""]),
    ):
        error = ask(server, **{field: value})
        assert error is not None, (field, value)
        assert error["param"] == field


def test_top_logprobs(server: RunningServer) -> None:
    limit = LIMITS["top_logprobs"]
    assert limit.maximum is not None
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "logprobs": True}
    path = "/v1/chat/completions"
    for value, is_allowed in (
        (0, True),
        (limit.maximum, True),
        (-1, False),
        (limit.maximum + 1, False),
    ):
        error = complain(server, path, {**body, "top_logprobs": int(value)})
        assert (error is None) is is_allowed


def test_messages(server: RunningServer) -> None:
    path = "/v1/chat/completions"
    turn = {"role": "user", "content": "x"}
    too_many = [turn] * (longest(LIMITS["messages"]) + 1)
    error = complain(server, path, {"messages": too_many})
    assert error is not None
    assert error["param"] == "messages"
    parts = [{"type": "text", "text": "x"}] * (longest(HTTP_LIMITS["content_parts"]) + 1)
    error = complain(server, path, {"messages": [{"role": "user", "content": parts}]})
    assert error is not None
    assert "length" in error["message"]


def test_choices(server: RunningServer) -> None:
    most = HTTP_LIMITS["choices"].maximum
    assert most is not None
    assert ask(server, prompt=["x"] * (int(most) // 128), n=128) is None
    error = ask(server, prompt=["x"] * (int(most) // 128 + 1), n=128)
    assert error is not None
    assert error["param"] == "n"


def test_nesting(server: RunningServer) -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(depth - 1):
            value = {"a": value}
        return value

    path = "/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    most = int(HTTP_LIMITS["json_depth"].maximum or 0)

    def tools(depth: int) -> list[dict[str, Any]]:
        """Depth counts the list, the tool and the function too."""
        return [{"type": "function", "function": {"name": "f", "parameters": nested(depth - 3)}}]

    assert complain(server, path, {**body, "tools": tools(most)}) is None
    error = complain(server, path, {**body, "tools": tools(most + 1)})
    assert error is not None
    assert error["param"] == "tools"
    error = complain(server, path, {**body, "guided_json": nested(most + 1)})
    assert error is not None
    assert error["param"] == "guided_json"


def test_grammars(server: RunningServer) -> None:
    longest_text = longest(LIMITS["grammar"])
    choice = ["a"] * longest(HTTP_LIMITS["choice"])
    regex = "a|" * (longest_text // 2)
    assert ask(server, guided_choice=choice) is None
    for fields in ({"guided_choice": [*choice, "b"]}, {"guided_regex": regex + "b"}):
        error = ask(server, **fields)
        assert error is not None
        assert error["param"] == next(iter(fields))
        assert "length" in error["message"]


def test_tools(server: RunningServer) -> None:
    path = "/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    most = longest(HTTP_LIMITS["tools"])
    for number, is_allowed in ((most, True), (most + 1, False)):
        tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(number)]
        # "none" leaves them out of the prompt, which they would fill.
        error = complain(server, path, {**body, "tools": tools, "tool_choice": "none"})
        assert (error is None) == is_allowed, error


def test_prompt_ids_fill_the_context_exactly(server: RunningServer) -> None:
    room = server.get("/v1/models").json()["data"][0]["max_model_len"]
    assert ask(server, prompt=[1] * (room - 1)) is None
    for prompt, max_tokens, param in (
        ([1] * (room - 1), 2, "max_tokens"),
        ([1] * room, 1, "prompt"),
    ):
        error = ask(server, prompt=prompt, max_tokens=max_tokens)
        assert error is not None
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_long_request_id_is_replaced(server: RunningServer) -> None:
    most = longest(LIMITS["request_id"])
    for length, is_kept in ((most, True), (most + 1, False)):
        given = "r" * length
        answer = server.get("/version", **{"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) is is_kept


def test_body_of_exactly_the_limit(server: RunningServer) -> None:
    most = 8 * 1024 * 1024
    for length, status in ((most, 400), (most + 1, 413)):
        answer = httpx.post(
            f"{server.url}/v1/completions", content=b" " * length, timeout=PATIENCE_S
        )
        assert answer.status_code == status
