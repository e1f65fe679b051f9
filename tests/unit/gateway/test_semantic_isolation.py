"""Who shares answers with whom: nobody whose question has other surroundings."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.semantic_bench import SAME, Bench
from tests.semantic_fakes import chat

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.gateway.answer import Ask, Caller, Conversation
from nonet.gateway.cache.key import NOT_IN_KEY, partition_key
from nonet.gateway.cache.semantic import layer as layer_module

CROSSED: dict[str, Callable[[int], dict[str, Any]]] = {
    "tenant": lambda n: {"tenant": f"tenant {n}"},
    "model": lambda n: {"adapter": f"adapter {n}"},
    "system": lambda n: {"system": f"You are assistant {n}"},
    "history": lambda n: {"history": [{"role": "user", "content": f"hi {n}"}]},
    "tools": lambda n: {"settings": {"tools": [{"name": f"f{n}"}]}},
    "format": lambda n: {"settings": {"response_format": {"type": f"json {n}"}}},
    "sampling": lambda n: {"max_tokens": 100 + n},
}


async def crossings(bench: Bench, count: int) -> int:
    """Hits among the same question asked with other surroundings."""
    rng = random.Random(7)
    await bench.prove()
    hits = 0
    for number in range(count):
        fields: dict[str, Any] = {}
        for name in rng.sample(list(CROSSED), rng.randrange(1, len(CROSSED) + 1)):
            for key, value in CROSSED[name](rng.randrange(1000)).items():
                fields[key] = {**fields[key], **value} if key == "settings" in fields else value
        reply = await bench.layer.handle(chat(SAME, name=f"r{number}", **fields), bench.model)
        hits += reply.outcome.cache == "semantic"
        await anext(reply.pieces)
        await reply.pieces.aclose()
    return hits


async def test_ten_thousand_crossings_and_no_hit() -> None:
    one = Bench(with_tools=True)
    await one.layer.start()
    assert await crossings(one, 10_000) == 0
    assert await one.outcome(SAME) == "semantic"  # at home there still is one
    await one.layer.close()


@pytest.mark.parametrize("forgotten", ["tenant", "system", "everything"])
async def test_a_key_that_forgets_is_crossed(
    monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The mutants: partitions that leave the tenant, the history, or all of it out."""

    def mutant(ask: Ask, fingerprint: bytes) -> bytes:
        if forgotten == "everything":
            return b""
        if forgotten == "tenant":
            requests = tuple(
                msgspec.structs.replace(request, cache_salt="") for request in ask.requests
            )
            ask = msgspec.structs.replace(ask, caller=Caller(), requests=requests)
        else:
            assert ask.conversation is not None
            only = Conversation(
                messages=ask.conversation.messages[-1:], settings=ask.conversation.settings
            )
            ask = msgspec.structs.replace(ask, conversation=only)
        return partition_key(ask, fingerprint)

    monkeypatch.setattr(layer_module, "partition_key", mutant)
    one = Bench(with_tools=True)
    await one.layer.start()
    assert await crossings(one, 300) > 0
    await one.layer.close()


def test_every_field_but_the_text_is_in_the_partition() -> None:
    base = chat()
    request = base.requests[0]
    other: dict[str, Any] = {"eos_ids": (5,), "cache_salt": "s", "adapter_id": "x", "pools": True}
    known = {*other, "prompt_ids", "params"} | NOT_IN_KEY
    assert known == set(Request.__struct_fields__)
    keys = [partition_key(base, b"m"), partition_key(base, b"n")]
    for name, value in other.items():
        changed = msgspec.structs.replace(request, **{name: value})
        keys.append(partition_key(msgspec.structs.replace(base, requests=(changed,)), b"m"))
    for name in SamplingParams.__struct_fields__:
        value = {"seed": 3, "stop": ["x"], "grammar": None}.get(name, 1)
        params = msgspec.structs.replace(request.params, **{name: value})
        if params == request.params:
            params = msgspec.structs.replace(request.params, **{name: 2})
        changed = msgspec.structs.replace(request, params=params)
        keys.append(partition_key(msgspec.structs.replace(base, requests=(changed,)), b"m"))
    assert len(set(keys)) == len(keys)
    text = partition_key(chat("anything else"), b"m")
    assert text == keys[0]
