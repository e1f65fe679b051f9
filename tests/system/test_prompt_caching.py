"""Prompt caching through the whole stack: usage says what the engine did, tenants are apart, leases are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest

from tests.system.harness import RunningServer, real_options, start_server, wait_until

HITS = "nonet_prefix_hit_tokens_total"
BLOCK = 16
FIVE = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
KEYS = ("key-a", "key-b")


def ask(
    server: RunningServer,
    text: str,
    system: object,
    *,
    key: str = "key-a",
    stream: bool = False,
    **more: Any,
) -> dict[str, int]:
    """The usage of one message, its total checked against count_tokens."""
    with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client:
        model = client.models.list().data[0].id
        given = {
            "model": model,
            "system": system,
            "messages": [{"role": "user", "content": text}],
            **more,
        }
        total = client.messages.count_tokens(**given).input_tokens
        if stream:
            with client.messages.stream(**given, max_tokens=2) as events:
                usage = events.get_final_message().usage.model_dump()
        else:
            usage = client.messages.create(**given, max_tokens=2).usage.model_dump()
    read, created = usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]
    assert usage["input_tokens"] + read + created == total
    assert created == sum(usage["cache_creation"].values())
    return {
        "input": usage["input_tokens"],
        "read": read,
        "5m": usage["cache_creation"]["ephemeral_5m_input_tokens"],
        "1h": usage["cache_creation"]["ephemeral_1h_input_tokens"],
    }


def system_prompt(
    name: str, control: dict[str, str] | None = FIVE, words: int = 60
) -> list[dict[str, Any]]:
    text = f"You are {name}. " + " ".join(f"Rule {i}: be kind." for i in range(words))
    return [{"type": "text", "text": text, **({"cache_control": control} if control else {})}]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = real_options("smollm2", max_model_len=2048)
    running = start_server(tmp_path_factory.mktemp("caching"), options=options, api_keys=KEYS)
    running.headers = {"authorization": "Bearer key-a"}
    yield running
    assert running.stop() == 0


def settled_hits(server: RunningServer) -> float:
    """Tokens of prefix hits once the engine has reported its last answer, which it does a moment after giving it."""
    seen: list[float] = []

    def is_settled() -> bool:
        seen.append(server.metric(HITS))
        return len(set(seen[-10:])) == 1 and len(seen) >= 10

    wait_until(is_settled)
    return seen[-1]


@pytest.mark.models
@pytest.mark.parametrize("stream", [False, True])
def test_usage_is_what_the_engine_did(real: RunningServer, stream: bool) -> None:
    system = system_prompt(f"first {stream}")
    before = settled_hits(real)
    first = ask(real, "Hello there", system, stream=stream)
    assert first["5m"] >= 400
    assert first["5m"] % BLOCK == 0
    assert settled_hits(real) - before == first["read"]
    second = ask(real, "Good bye", system, stream=stream)
    assert second == {
        "input": second["input"],
        "read": first["5m"] + first["read"],
        "5m": 0,
        "1h": 0,
    }
    assert settled_hits(real) - before == first["read"] + second["read"]
    assert real.metric("nonet_kv_blocks_leased") >= (first["5m"] + first["read"]) / BLOCK


@pytest.mark.models
def test_without_cache_control_nothing_is_written(real: RunningServer) -> None:
    settled_hits(real)
    leased = real.metric("nonet_kv_blocks_leased")
    system = system_prompt("automatic", None)
    first, second = (ask(real, "Hello there", system) for _ in range(2))
    assert (first["5m"], first["1h"], second["5m"], second["1h"]) == (0, 0, 0, 0)
    assert second["read"] > 400, "automatic caching works as ever"
    settled_hits(real)
    assert real.metric("nonet_kv_blocks_leased") == leased


@pytest.mark.models
def test_lifetimes_are_counted_apart(real: RunningServer) -> None:
    system = [*system_prompt("layered", HOUR), *system_prompt("more", FIVE, 20)]
    first = ask(real, "Hello there", system)
    assert first["1h"] > 400
    assert 80 < first["5m"] < first["1h"]


@pytest.mark.models
def test_tenants_do_not_share(real: RunningServer) -> None:
    system = system_prompt("mine")
    first = ask(real, "Hello there", system)
    assert ask(real, "Hello there", system)["read"] > 400
    other = ask(real, "Hello there", system, key="key-b")
    assert other["read"] == 0
    assert other["5m"] == first["5m"] + first["read"]


@pytest.mark.models
def test_a_whole_conversation_is_kept(real: RunningServer) -> None:
    text = " ".join(f"Line {i} of a poem." for i in range(60))
    first = ask(real, text, "Be brief.", cache_control=FIVE)
    assert first["5m"] > 300
    second = ask(real, text + " And then?", "Be brief.", cache_control=FIVE)
    assert second["read"] >= first["5m"] - BLOCK


def test_marks_land_on_the_right_tokens(start_one: Callable[..., RunningServer]) -> None:
    """One token a byte: the counts are known exactly."""
    server = start_one(api_keys=KEYS)
    server.headers = {"authorization": "Bearer key-a"}
    system = system_prompt("exact", words=10)
    tokens = len("S" + "system\n" + system[0]["text"] + "E" + "\n" + "S" + "user\n")
    usage = ask(server, "Hello", system)
    assert (usage["read"], usage["5m"]) == (16, tokens // BLOCK * BLOCK - 16)
    marked = [
        {**system[0], "cache_control": HOUR},
        {"type": "text", "text": "x" * 99, "cache_control": FIVE},
    ]
    usage = ask(server, "Hello", marked)
    shared = tokens - len("E\nSuser\n")
    assert usage["1h"] == shared // BLOCK * BLOCK - 16
    assert usage["1h"] + usage["5m"] + 16 == (tokens + 100) // BLOCK * BLOCK


@pytest.mark.parametrize(
    "system", [system_prompt("x", words=1) * 5, [*system_prompt("x"), *system_prompt("y", HOUR)]]
)
def test_too_many_or_in_the_wrong_order(server: RunningServer, system: object) -> None:
    with pytest.raises(anthropic.BadRequestError, match="cache_control"):
        ask(server, "Hello", system)
