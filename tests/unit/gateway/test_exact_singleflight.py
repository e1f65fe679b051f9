"""The exact-match cache: one generation for many who ask at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from exact_cases import cached
from tests.gateway_fakes import ScriptedEngine, ask, pipeline, read, site, text

from nonet.core.errors import NonetError
from nonet.gateway.answer import Ask, CacheWishes, Caller
from nonet.gateway.cache.exact import ExactCache
from nonet.text.tokenizer import Tokenizer


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_hundred_at_once_cost_one_generation(
    tokenizer: Tokenizer, is_streamed: bool
) -> None:
    engine = ScriptedEngine()
    line = cached(engine, tokenizer)

    async def one(number: int) -> tuple[str, str | None]:
        reply = await line.answer(ask(name=f"r{number}", is_streamed=is_streamed))
        return await text(reply), reply.outcome.cache

    answers = await asyncio.gather(*[one(number) for number in range(100)])
    assert engine.num_started == 1
    assert len({answer for answer, _ in answers}) == 1
    assert sorted(str(outcome) for _, outcome in answers) == ["exact"] * 99 + ["miss"]


async def test_without_singleflight_there_are_many(tokenizer: Tokenizer) -> None:
    """The check above must be able to fail."""
    engine = ScriptedEngine()
    line = cached(engine, tokenizer)
    wish = Caller(wishes=CacheWishes(no_cache=True))
    await asyncio.gather(
        *[text(await line.answer(ask(name=f"r{n}", caller=wish))) for n in range(10)]
    )
    assert engine.num_started == 10


async def test_followers_stream_along(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    assert engine.gate is not None
    line = cached(engine, tokenizer)
    asking = [asyncio.create_task(line.answer(ask(name=f"r{n}"))) for n in range(2)]
    leader, follower = await asyncio.gather(*asking)
    firsts = [asyncio.create_task(anext(reply.pieces)) for reply in (leader, follower)]
    await asyncio.sleep(0)
    assert not any(first.done() for first in firsts)
    engine.gate.set()
    one, two = await asyncio.gather(*firsts)
    assert one == two
    assert engine.num_steps < 8
    assert await read(leader) == await read(follower)


async def test_the_leader_may_leave(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine()
    line = cached(engine, tokenizer)
    expected = await text(await pipeline(ScriptedEngine(), tokenizer).answer(ask(max_tokens=50)))
    leader = await line.answer(ask(max_tokens=50))
    follower = await line.answer(ask(max_tokens=50, name="b"))
    await anext(leader.pieces)
    await leader.pieces.aclose()
    assert await text(follower) == expected
    assert engine.num_started == 1
    assert engine.aborted == []


async def test_a_failing_leader_fails_its_followers_loudly(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(error_at=2)
    line = cached(engine, tokenizer)
    replies = [await line.answer(ask(name=f"r{n}")) for n in range(5)]
    outcomes = await asyncio.gather(*[read(reply) for reply in replies], return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["told to fail"] * 5


async def test_a_refusal_below_reaches_everybody(tokenizer: Tokenizer) -> None:
    class Refusing:
        async def start(self) -> None: ...
        async def close(self) -> None: ...

        async def handle(self, ask: Ask, next: Any) -> Any:
            await asyncio.sleep(0)
            raise NonetError("not today")

    cache = ExactCache(ExactCache.Config(), site())
    line = pipeline(ScriptedEngine(), tokenizer, cache, Refusing())
    outcomes = await asyncio.gather(
        *[line.answer(ask(name=f"r{n}")) for n in range(3)], return_exceptions=True
    )
    assert [str(outcome) for outcome in outcomes] == ["not today"] * 3


async def test_a_cancelled_follower_harms_nobody(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    assert engine.gate is not None
    line = cached(engine, tokenizer)
    leader = await line.answer(ask())
    waiting = asyncio.create_task(read(await line.answer(ask(name="b"))))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    engine.gate.set()
    assert len(await read(leader)) == 8


async def test_a_stream_does_not_wait_for_a_whole_answer(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    assert engine.gate is not None
    line = cached(engine, tokenizer)
    whole = await line.answer(ask(is_streamed=False))
    stream = await line.answer(ask(name="b"))
    patient = await line.answer(ask(name="c", is_streamed=False))
    engine.gate.set()
    answers = await asyncio.gather(text(whole), text(stream), text(patient))
    assert len(set(answers)) == 1
    assert engine.num_started == 2
