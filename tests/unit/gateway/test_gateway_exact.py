"""The exact-match cache: what is one ask, what is kept, one generation for many, a replay that equals the stream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway_fakes import ScriptedEngine, ask, pipeline, read, site, text, tiny_tokenizer

from nonet.core.errors import NonetError
from nonet.core.grammar import Grammar
from nonet.core.request import PrefixLease, Request
from nonet.core.sampling_params import SamplingParams
from nonet.gateway.answer import Ask, CacheWishes, Caller, Conversation
from nonet.gateway.cache import key as key_module
from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.cache.key import NOT_IN_KEY, ask_key
from nonet.gateway.pipeline import Pipeline
from nonet.store.database import Database
from nonet.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def cached(
    engine: ScriptedEngine, tokenizer: Tokenizer, config: dict[str, Any] | None = None, **more: Any
) -> Pipeline:
    return pipeline(engine, tokenizer, ExactCache(ExactCache.Config(**config or {}), site(**more)))


def shelf(line: Pipeline) -> ExactCache:
    (layer,) = line.layers
    assert isinstance(layer, ExactCache)
    return layer


async def settled(database: Database) -> None:
    """All that was queued before is written."""
    await database.write(lambda _: None)


class Wall:
    """A clock on the wall that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


# --- what is one ask ---------------------------------------------------------------------------------------------


def flips() -> dict[str, Ask]:
    """For each field that an ask, its caller, its requests and their sampling have, the same ask with another value."""
    base = ask()
    request = base.requests[0]
    params: dict[str, Any] = {
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1,
        "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": {1: 2.0}, "seed": 7, "max_tokens": 9,
        "min_tokens": 1, "stop": ["x"], "stop_token_ids": [3], "include_stop_str_in_output": True, "ignore_eos": True,
        "skip_special_tokens": False, "logprobs": 0, "prompt_logprobs": 1,
        "forced_ids": [7], "finish_in_time": True, "grammar": Grammar("json_object"),
    }  # fmt: skip
    fields: dict[str, Any] = {
        "request_id": "b-0", "prompt_ids": [1, 2], "eos_ids": (5,), "priority": 3, "cache_salt": "s",
        "adapter_id": "lora", "service_class": "batch", "leases": (PrefixLease(2, 300.0),), "pools": True,
    }  # fmt: skip
    found: dict[str, Ask] = {}

    def with_request(changed: Request) -> Ask:
        return msgspec.structs.replace(base, requests=(changed,))

    for name, value in params.items():
        changed = msgspec.structs.replace(request.params, **{name: value})
        found[f"params.{name}"] = with_request(msgspec.structs.replace(request, params=changed))
    for name, value in fields.items():
        found[f"request.{name}"] = with_request(msgspec.structs.replace(request, **{name: value}))
    found["echoed"] = msgspec.structs.replace(base, echoed=(4,))
    found["encoder"] = msgspec.structs.replace(base, encoder="minilm")
    found["requests"] = msgspec.structs.replace(base, requests=(request, request))
    found["tenant"] = msgspec.structs.replace(base, caller=Caller(tenant="other"))
    for name, value in (("tools", [{"name": "f"}]), ("response_format", {"type": "json_object"})):
        chat = Conversation(messages=[], settings={name: value})
        found[f"settings.{name}"] = msgspec.structs.replace(base, conversation=chat)
    return found


FLIPS = flips()
SAME = {f"request.{name}" for name in NOT_IN_KEY}


def test_every_field_is_flipped() -> None:
    """A field that is added to requests or sampling later must be added above, or this fails."""
    known = {f"params.{name}" for name in SamplingParams.__struct_fields__}
    known |= {f"request.{name}" for name in Request.__struct_fields__ if name != "params"}
    assert known <= set(FLIPS), sorted(known - set(FLIPS))


@pytest.mark.parametrize("name", FLIPS)
def test_any_field_flip_is_another_key(name: str) -> None:
    is_same = ask_key(FLIPS[name], b"model") == ask_key(ask(), b"model")
    assert is_same is (name in SAME)


def test_another_model_is_another_key() -> None:
    assert ask_key(ask(), b"one") != ask_key(ask(), b"two")


def test_all_flips_differ_from_each_other() -> None:
    keys = [ask_key(flip, b"model") for name, flip in FLIPS.items() if name not in SAME]
    assert len(set(keys)) == len(keys)


def test_a_key_that_forgets_a_field_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: one more field on the list of what does not matter."""
    monkeypatch.setattr(key_module, "NOT_IN_KEY", NOT_IN_KEY | {"cache_salt"})
    assert ask_key(FLIPS["request.cache_salt"], b"m") == ask_key(ask(), b"m")


@settings(deadline=None)
@given(st.lists(st.integers(0, 259), min_size=1, max_size=5), st.lists(st.integers(0, 259)))
def test_prompts_do_not_run_into_each_other(one: list[int], two: list[int]) -> None:
    base = ask().requests[0]

    def key(*prompts: list[int]) -> bytes:
        requests = tuple(msgspec.structs.replace(base, prompt_ids=ids) for ids in prompts)
        return ask_key(Ask(requests=requests), b"m")

    assert key(one, two) != key(one + two)
    assert (key(one, two) == key(two, one)) is (one == two)


# --- hits --------------------------------------------------------------------------------------------------------


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


# --- only complete answers ---------------------------------------------------------------------------------------


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


# --- one generation ----------------------------------------------------------------------------------------------


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


# --- where it is kept --------------------------------------------------------------------------------------------


async def test_answers_outlive_the_server(tokenizer: Tokenizer, tmp_path: Path) -> None:
    wall = Wall()
    for round_, expected in enumerate(("miss", "exact", "exact", "miss")):
        database = Database(tmp_path / "nonet.db")
        database.open()
        line = cached(ScriptedEngine(), tokenizer, {"ttl_s": 100}, database=database, wall=wall)
        await line.start()
        reply = await line.answer(ask())
        fresh = await text(await pipeline(ScriptedEngine(), tokenizer).answer(ask()))
        assert await text(reply) == fresh
        assert reply.outcome.cache == expected, round_
        await line.close()
        await database.close()
        wall.now_s += 40


async def test_the_shelf_is_bounded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    database = Database(tmp_path / "nonet.db")
    database.open()
    config = {"memory_mib": 0.005, "disk_mib": 0.02}
    line = cached(ScriptedEngine(), tokenizer, config, database=database)
    await line.start()
    for number in range(60):
        await read(await line.answer(ask(f"prompt {number}")))
    await settled(database)
    memory, disk = shelf(line).shelf.num_bytes
    assert 0 < memory <= 0.005 * 1024 * 1024
    assert 0 < disk <= 0.02 * 1024 * 1024
    rows = await database.read(
        lambda c: c.execute("SELECT count(*), sum(size) FROM answer").fetchone()
    )
    assert rows == (shelf(line).shelf.num_entries, disk)
    newest = await line.answer(ask("prompt 59"))
    oldest = await line.answer(ask("prompt 0"))
    middle = await line.answer(ask("prompt 50"))  # on disk, no longer in memory
    assert (newest.outcome.cache, oldest.outcome.cache) == ("exact", "miss")
    assert middle.outcome.cache == "exact"
    for reply in (newest, oldest, middle):
        await read(reply)
    await database.close()


async def test_purge(tokenizer: Tokenizer, tmp_path: Path) -> None:
    database = Database(tmp_path / "nonet.db")
    database.open()
    line = cached(ScriptedEngine(), tokenizer, database=database)
    await line.start()
    for tenant in ("a", "b"):
        for number in range(3):
            await read(await line.answer(ask(f"p{number}", caller=Caller(tenant=tenant))))
    assert shelf(line).purge("a") == 3
    for tenant, expected in (("a", "miss"), ("b", "exact")):
        reply = await line.answer(ask("p1", caller=Caller(tenant=tenant)))
        await read(reply)
        assert reply.outcome.cache == expected
    assert shelf(line).purge() == 4
    await settled(database)
    assert await database.read(lambda c: c.execute("SELECT count(*) FROM answer").fetchone()) == (
        0,
    )
    await database.close()


async def test_what_is_purged_while_it_is_made_is_not_kept(tokenizer: Tokenizer) -> None:
    line = cached(ScriptedEngine(), tokenizer)
    reply = await line.answer(ask())
    await anext(reply.pieces)
    shelf(line).purge()
    assert len(await read(reply)) == 7
    assert shelf(line).shelf.num_entries == 0


async def test_an_unreadable_table_is_a_miss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for is_damaged in (False, True):
        database = Database(tmp_path / "nonet.db")
        database.open()
        line = cached(ScriptedEngine(), tokenizer, database=database)
        await line.start()
        if is_damaged:
            await database.write(lambda c: c.execute("UPDATE answer SET body = x'93'").close())
        reply = await line.answer(ask())
        assert len(await text(reply)) == 8
        assert reply.outcome.cache == "miss"
        await database.close()
