"""Limits over HTTP: 429 with the time to wait, keys with limits of their own, and nothing shared between keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.system.harness import RunningServer
from tests.system.test_gateway_ledger import ledger_options

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, **fields}


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def key_file(folder: Path) -> str:
    digest = hashlib.sha256(b"slow").hexdigest()
    file = folder / "keys.toml"
    file.write_text(
        f"""
        [[key]]
        secret = "quick"
        [[key]]
        sha256 = "{digest}"
        tenant = "team"
        requests_per_minute = 3
        [[key]]
        secret = "poor"
        tenant = "team"
        money_per_day = "0.00002"
        [[key]]
        secret = "old"
        expires = 2020-01-01
        """
    )
    return str(file)


def test_limits_of_keys(start_one: Callable[..., RunningServer], tmp_path: Path) -> None:
    options = ledger_options(tmp_path, "limits:tokens_per_minute=100000", "exact_cache")
    server = start_one(gateway=options, api_key_file=key_file(tmp_path))

    assert server.post(CHAT, body(), **auth("old")).status_code == 401
    free = server.post(CHAT, body(), **auth("quick"))
    assert free.status_code == 200
    assert free.headers["x-ratelimit-limit-tokens"] == "100000"
    assert "x-ratelimit-limit-requests" not in free.headers

    answers = [server.post(CHAT, body(), **auth("slow")) for _ in range(6)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    error = refused[0].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "3 requests per minute" in error["message"]
    assert 1 <= int(refused[0].headers["retry-after"]) <= 20

    spent = 0.0
    while True:  # until the money of the day is gone
        answer = server.post(CHAT, body(temperature=1), **auth("poor"))
        if answer.status_code == 429:
            break
        spent += float(answer.headers["x-nonet-cost"])
    assert 0 < spent <= 0.00002
    assert 0 < int(answer.headers["retry-after"]) <= 86_400

    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="poor", max_retries=0) as client,
        pytest.raises(openai.RateLimitError, match="per day"),
    ):
        client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "x"}], max_tokens=3
        )
    report = httpx.get(f"{server.url}/v1/usage?by=key", headers=auth("poor")).json()
    costs = {line["key"]: float(line["cost"]) for line in report["data"]}
    assert costs[hashlib.sha256(b"poor").hexdigest()[:16]] == pytest.approx(spent)
    assert len(costs) == 2


def test_money_without_a_ledger_is_refused(
    start_one: Callable[..., RunningServer], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="needs the ledger"):
        start_one(gateway={"gateway": ["limits"]}, api_key_file=key_file(tmp_path))
