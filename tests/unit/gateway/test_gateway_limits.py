"""Rate limits: estimated then settled, the time to wait computed, money from the ledger, keys apart from each other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway_fakes import ScriptedEngine, ask, pipeline, read, site

from nonet.core.clock import FakeClock
from nonet.core.errors import ConfigError, NonetError, RateLimitError
from nonet.gateway.answer import Caller, KeyLimits
from nonet.gateway.bookkeeper import Bookkeeper
from nonet.gateway.bucket import TokenBucket
from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.limits import RateLimits
from nonet.gateway.pipeline import Pipeline
from nonet.store.database import Database
from nonet.telemetry.ledger import Ledger
from nonet.telemetry.prices import PICOS, read_rates
from nonet.text.tokenizer import Tokenizer

KEY = Caller(tenant="t", key_id="k")


class Wall:
    def __init__(self, now_s: float = 86_400.0 * 100 + 3600) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def limited(
    engine: ScriptedEngine, tokenizer: Tokenizer, clock: FakeClock, *more: Any, **config: Any
) -> Pipeline:
    layer = RateLimits(RateLimits.Config(**config), site(clock=clock))
    return pipeline(engine, tokenizer, layer, *more)


# --- the bucket --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 90), st.floats(0, 2000)), min_size=1, max_size=40),
)
def test_a_bucket_never_gives_more_than_its_rate(
    per_minute: int, takes: list[tuple[float, float]]
) -> None:
    bucket, now, taken = TokenBucket(per_minute, 0.0), 0.0, 0.0
    for pause_s, amount in takes:
        now += pause_s
        amount = min(amount, per_minute)
        wait_s = bucket.wait_s(amount, now)
        if wait_s == 0:
            bucket.take(amount, now)
            taken += amount
        else:
            assert bucket.wait_s(amount, now + wait_s + 1e-6) == 0  # the promise is kept
            now += wait_s + 1e-6
        assert taken <= per_minute * (1 + now / 60) + 1e-3


def test_settling() -> None:
    bucket = TokenBucket(100, 0.0)
    bucket.take(90, 0.0)
    bucket.settle(90, 30, 0.0)
    assert bucket.level(0.0) == 70
    bucket.take(10, 0.0)
    bucket.settle(10, 150, 0.0)  # more than was thought: a debt
    assert bucket.level(0.0) == -80
    assert bucket.wait_s(1, 0.0) == pytest.approx(81 * 0.6)
    assert bucket.level(1e9) == 100
    bucket.settle(50, 0, 1e9)
    assert bucket.level(1e9) == 100


def test_a_take_larger_than_the_bucket_waits_for_a_full_one() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(1, 0.0)
    assert bucket.wait_s(1000, 0.0) == pytest.approx(1.0)
    assert bucket.wait_s(1000, 1.001) == 0


# --- the layer ---------------------------------------------------------------------------------------------------


async def test_requests(tokenizer: Tokenizer) -> None:
    clock = FakeClock()
    line = limited(ScriptedEngine(), tokenizer, clock, requests_per_minute=6)
    for left in range(5, -1, -1):
        reply = await line.answer(ask(caller=KEY))
        await read(reply)
        headers = dict(reply.outcome.headers)
        assert headers[b"x-ratelimit-limit-requests"] == b"6"
        assert headers[b"x-ratelimit-remaining-requests"] == b"%d" % left
    with pytest.raises(RateLimitError, match="6 requests per minute") as refusal:
        await line.answer(ask(caller=KEY))
    assert refusal.value.retry_after_s == pytest.approx(10.0)
    await read(await line.answer(ask(caller=Caller(key_id="other"))))  # keys are apart
    clock.advance(refusal.value.retry_after_s)
    await read(await line.answer(ask(caller=KEY)))
    with pytest.raises(RateLimitError):
        await line.answer(ask(caller=KEY))


async def test_tokens_are_estimated_then_settled(tokenizer: Tokenizer) -> None:
    clock = FakeClock()
    line = limited(ScriptedEngine(), tokenizer, clock, tokens_per_minute=1000)
    # 5 of prompt and 600 of output may be used; the scripted engine is told to stop long before
    replies = [await line.answer(ask(caller=KEY, max_tokens=600))]
    with pytest.raises(RateLimitError, match="1000 tokens per minute") as refusal:
        await line.answer(ask(caller=KEY, max_tokens=600))
    assert refusal.value.retry_after_s == pytest.approx((2 * 605 - 1000) * 60 / 1000)
    async for _ in replies[0].pieces:
        break
    await replies[0].pieces.aclose()  # used 5 + 1
    for _ in range(2):
        reply = await line.answer(ask(caller=KEY, max_tokens=400))
        steps = await read(reply)
        assert len(steps) == 400
    headers = dict((await line.answer(ask(caller=KEY, max_tokens=1))).outcome.headers)
    assert headers[b"x-ratelimit-remaining-tokens"] == b"%d" % (1000 - 6 - 2 * 405 - 6)


@pytest.mark.parametrize("is_early", [True, False])
async def test_failures_give_back_what_was_reserved(tokenizer: Tokenizer, is_early: bool) -> None:
    class Refusing:
        async def start(self) -> None: ...
        async def close(self) -> None: ...

        async def handle(self, ask: Any, next: Any) -> Any:
            raise NonetError("no")

    more = [Refusing()] if is_early else []
    engine = ScriptedEngine(error_at=0)
    line = limited(engine, tokenizer, FakeClock(), *more, tokens_per_minute=700)
    for _ in range(20):
        with pytest.raises(NonetError) as failure:
            await read(await line.answer(ask(caller=KEY, max_tokens=600)))
        assert not isinstance(failure.value, RateLimitError)


async def test_hits_use_no_tokens(tokenizer: Tokenizer) -> None:
    clock = FakeClock()
    cache = ExactCache(ExactCache.Config(), site())
    line = limited(ScriptedEngine(), tokenizer, clock, cache, tokens_per_minute=30)
    for number in range(10):
        reply = await line.answer(ask(caller=KEY, name=f"r{number}"))
        await read(reply)
    assert reply.outcome.cache == "exact"
    left = dict(reply.outcome.headers)[b"x-ratelimit-remaining-tokens"]
    assert left == b"%d" % (30 - 13 - 13)  # the first answer, and what this one had reserved


async def test_a_key_has_limits_of_its_own(tokenizer: Tokenizer) -> None:
    line = limited(ScriptedEngine(), tokenizer, FakeClock(), requests_per_minute=1)
    own = Caller(key_id="k", limits=KeyLimits(requests_per_minute=3, tokens_per_minute=1000))
    for _ in range(3):
        await read(await line.answer(ask(caller=own)))
    with pytest.raises(RateLimitError, match="3 requests"):
        await line.answer(ask(caller=own))
    partial = Caller(key_id="p", limits=KeyLimits(tokens_per_minute=1000))
    await read(await line.answer(ask(caller=partial)))
    with pytest.raises(RateLimitError, match="1 requests"):
        await line.answer(ask(caller=partial))


# --- money -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "nonet.db", full_sync=False)
    made.open()
    yield made
    await made.close()


def priced(folder: Path) -> dict[str, Any]:
    path = folder / "prices.json"
    prices = {"fake": {"input_cost_per_token": 0.01, "output_cost_per_token": 0.1}}
    path.write_text(json.dumps(prices))
    return {"rates": read_rates(path, "fake"), "books": True}


def with_money(
    database: Database, folder: Path, tokenizer: Tokenizer, wall: Wall, money: str
) -> Pipeline:
    place = site(
        database=database, ledger=Ledger(database), clock=FakeClock(), wall=wall, **priced(folder)
    )
    return pipeline(
        ScriptedEngine(),
        tokenizer,
        RateLimits(RateLimits.Config(money_per_day=money), place),
        Bookkeeper(Bookkeeper.Config(), place),
    )


async def test_money_of_a_day(database: Database, tmp_path: Path, tokenizer: Tokenizer) -> None:
    wall = Wall()
    line = with_money(database, tmp_path, tokenizer, wall, "2.00")
    await line.start()
    for _ in range(2):  # 5 * 0.01 + 8 * 0.1 = 0.85 each
        reply = await line.answer(ask(caller=KEY))
        await read(reply)
        assert reply.outcome.cost_picos == 85 * PICOS // 100
    with pytest.raises(RateLimitError, match=r"2\.00 per day") as refusal:
        await line.answer(ask(caller=KEY))
    assert refusal.value.retry_after_s == pytest.approx(86_400 - 3600)
    await read(await line.answer(ask(caller=KEY, max_tokens=2)))  # 0.25 still fits
    again = with_money(database, tmp_path, tokenizer, wall, "2.00")
    await again.start()  # a restart forgives nothing
    with pytest.raises(RateLimitError):
        await again.answer(ask(caller=KEY, max_tokens=1))
    wall.now_s += refusal.value.retry_after_s
    for fresh in (line, again):
        await read(await fresh.answer(ask(caller=KEY)))


async def test_money_in_flight_is_reserved(
    database: Database, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    line = with_money(database, tmp_path, tokenizer, Wall(), "1.00")
    await line.start()

    async def one() -> str:
        try:
            await read(await line.answer(ask(caller=KEY)))
        except RateLimitError as error:
            return f"refused {error.retry_after_s:.0f}"
        return "answered"

    outcomes = await asyncio.gather(*[one() for _ in range(6)])
    assert outcomes.count("answered") == 1
    assert outcomes.count("refused 1") == 5


def test_limits_that_cannot_be_held(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the ledger"):
        RateLimits(RateLimits.Config(money_per_day="1"), site())
    with pytest.raises(ConfigError, match="give an amount"):
        RateLimits(RateLimits.Config(money_per_day="lots"), site(**priced(tmp_path)))
    for config in ({"requests_per_minute": -1}, {"tokens_per_minute": -5}, {"assumed_output": 0}):
        with pytest.raises(ConfigError):
            RateLimits.Config(**config)
