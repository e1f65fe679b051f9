"""The exact-match cache: a replay equals the stream, who gets one, and only complete answers are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from exact_cases import Wall, cached, shelf
from tests.gateway_fakes import ScriptedEngine, ask, pipeline, read, text

from nonet.core.errors import NonetError
from nonet.gateway.answer import CacheWishes, Caller
from nonet.text.tokenizer import Tokenizer


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_the_second_ask_is_a_hit(tokenizer: Tokenizer, is_streamed: bool) -> None:
    engine = ScriptedEngine(num_cached=2)
    line = cached(engine, tokenizer)
    first = await line.answer(ask(is_streamed=is_streamed, n=2))
    fresh = await read(first)
    again = await line.answer(ask(is_streamed=is_streamed, n=2, name="b"))
    replayed = await read(again)
    assert (first.outcome.cache, again.outcome.cache) == ("miss", "exact")
    assert engine.num_started == 1
    assert [p for step in replayed for p in step] == [p for step in fresh for p in step]
    assert first.usage == again.usage
    assert again.outcome.total == again.usage
    assert again.outcome.savings[0].technique == "exact_cache"


async def test_a_whole_answer_replays_as_the_stream_it_would_have_been(
    tokenizer: Tokenizer,
) -> None:
    line = cached(ScriptedEngine(), tokenizer)
    await read(await line.answer(ask(is_streamed=False, logprobs=None, n=2)))
    replayed = await read(await line.answer(ask(is_streamed=True, n=2)))
    fresh = await read(await cached(ScriptedEngine(), tokenizer).answer(ask(n=2)))
    assert [p for step in replayed for p in step] == [p for step in fresh for p in step]


async def test_sampled_asks_pass_by_without_consent(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine()
    line = cached(engine, tokenizer)
    for _ in range(2):
        reply = await line.answer(ask(temperature=1.0))
        await read(reply)
        assert reply.outcome.cache == "bypass"
    assert engine.num_started == 2
    consenting = Caller(wishes=CacheWishes(allow_sampled=True))
    outcomes = []
    for _ in range(2):
        reply = await line.answer(ask(temperature=1.0, caller=consenting))
        await read(reply)
        outcomes.append(reply.outcome.cache)
    assert outcomes == ["miss", "exact"]


@pytest.mark.parametrize(
    ("params", "hit"), [({"seed": 5}, True), ({"top_k": 1}, True), ({}, False)]
)
async def test_what_is_deterministic(
    tokenizer: Tokenizer, params: dict[str, Any], hit: bool
) -> None:
    line = cached(ScriptedEngine(), tokenizer)
    await read(await line.answer(ask(temperature=1.0, **params)))
    reply = await line.answer(ask(temperature=1.0, **params))
    await read(reply)
    assert (reply.outcome.cache == "exact") is hit


async def test_wishes(tokenizer: Tokenizer) -> None:
    engine, wall = ScriptedEngine(), Wall()
    line = cached(engine, tokenizer, wall=wall)

    async def outcome(**wishes: Any) -> str | None:
        reply = await line.answer(ask(caller=Caller(wishes=CacheWishes(**wishes))))
        await read(reply)
        return reply.outcome.cache

    assert await outcome(no_store=True) == "bypass"
    assert await outcome() == "miss"  # the one before was not kept
    assert await outcome(no_store=True) == "bypass"
    assert await outcome() == "exact"
    wall.now_s += 100
    assert await outcome(max_age_s=99) == "miss"  # and kept anew
    assert await outcome(max_age_s=99) == "exact"
    wall.now_s += 100
    assert await outcome(no_cache=True) == "miss"
    assert await outcome(max_age_s=1) == "exact"


async def test_entries_grow_old(tokenizer: Tokenizer) -> None:
    wall = Wall()
    line = cached(ScriptedEngine(), tokenizer, {"ttl_s": 60}, wall=wall)
    await read(await line.answer(ask()))
    for later_s, expected in ((59, "exact"), (2, "miss")):
        wall.now_s += later_s
        reply = await line.answer(ask())
        await read(reply)
        assert reply.outcome.cache == expected


async def test_tenants_do_not_share(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine()
    line = cached(engine, tokenizer)
    for tenant in ("a", "b", ""):
        reply = await line.answer(ask(caller=Caller(tenant=tenant)))
        await read(reply)
        assert reply.outcome.cache == "miss"
    assert engine.num_started == 3


async def test_failures_are_not_kept(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(error_at=3)
    line = cached(engine, tokenizer)
    reply = await line.answer(ask())
    with pytest.raises(NonetError, match="told to fail"):
        await read(reply)
    engine.error_at = None
    again = await line.answer(ask())
    assert again.outcome.cache == "miss"
    assert len(await read(again)) == 8


async def test_an_answer_that_is_left_early_is_not_kept_and_not_finished(
    tokenizer: Tokenizer,
) -> None:
    engine = ScriptedEngine()
    line = cached(engine, tokenizer)
    reply = await line.answer(ask(max_tokens=1000))
    async for _ in reply.pieces:
        break
    await reply.pieces.aclose()
    for _ in range(5):
        await asyncio.sleep(0)
    assert engine.aborted == ["a-0"]
    assert engine.num_steps < 10
    assert shelf(line).shelf.num_entries == 0
    assert (await line.answer(ask(max_tokens=1000))).outcome.cache == "miss"


async def test_answers_over_the_bound_are_streamed_but_not_kept(tokenizer: Tokenizer) -> None:
    line = cached(ScriptedEngine(), tokenizer, {"max_entry_mib": 0.01})
    expected = await text(await pipeline(ScriptedEngine(), tokenizer).answer(ask(max_tokens=500)))
    for _ in range(2):
        reply = await line.answer(ask(max_tokens=500))
        assert await text(reply) == expected
        assert reply.outcome.cache == "miss"
    assert shelf(line).shelf.num_entries == 0
