"""The layer: what is served and when, what is kept, who shares with whom, and what is verified."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway_fakes import read, site
from tests.semantic_fakes import TableModel, WordEmbedder, chat

from nonet.core.errors import ConfigError, NonetError, UnknownNameError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.gateway import LAYERS
from nonet.gateway.answer import Ask, CacheWishes, Caller, Conversation, Reply
from nonet.gateway.bookkeeper import Bookkeeper
from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.cache.key import NOT_IN_KEY, partition_key
from nonet.gateway.cache.semantic import layer as layer_module
from nonet.gateway.cache.semantic.judge import agree, is_equal
from nonet.gateway.cache.semantic.layer import SemanticCache
from nonet.gateway.cache.semantic.settings import Settings
from nonet.gateway.pipeline import Pipeline
from nonet.store.database import Database
from nonet.telemetry.ledger import Ledger, LedgerRow

KEPT = "How do I reset my password?"
SAME = "How do I reset the password?"
RESET = "Click on the link below the form and follow the mail."


class Bench:
    """A layer over a model that answers from a table, with dice that never ask for verification."""

    def __init__(self, site_fields: dict[str, Any] | None = None, **knobs: Any) -> None:
        self.roll = 1.0
        self.model = TableModel({KEPT: RESET, SAME: RESET})
        settings = Settings(**{"delta": 0.3, **knobs})
        self.layer = SemanticCache(
            settings, site(**site_fields or {}), WordEmbedder(), dice=lambda: self.roll
        )

    async def ask(self, ask: Ask) -> Reply:
        reply = await self.layer.handle(ask, self.model)
        self.steps = await read(reply)
        await self.layer.settled()
        return reply

    async def outcome(self, *args: Any, **fields: Any) -> str | None:
        return (await self.ask(chat(*args, **fields))).outcome.cache

    async def prove(self, **fields: Any) -> int:
        """Ask until there is a hit; how often the model was asked."""
        for number in range(60):
            if await self.outcome(SAME if number else KEPT, **fields) == "semantic":
                return number
        raise AssertionError("no hit")

    @property
    def text(self) -> str:
        return "".join(piece.text for step in self.steps for piece in step)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    await one.layer.start()
    yield one
    await one.layer.close()


# --- hits --------------------------------------------------------------------------------------------------------


async def test_a_paraphrase_is_a_hit_once_it_is_proven(bench: Bench) -> None:
    num_asked = await bench.prove()
    assert bench.model.num_asked == num_asked
    assert num_asked > 8  # the proof at delta 30 %
    reply = await bench.ask(chat(SAME))
    assert bench.text.split() == RESET.split()
    assert reply.outcome.cache == "semantic"
    assert reply.outcome.similarity is not None
    assert 0.7 < reply.outcome.similarity < 1
    headers = dict(reply.outcome.all_headers())
    assert headers[b"x-nonet-cache"] == b"semantic"
    assert float(headers[b"x-nonet-similarity"]) == pytest.approx(
        reply.outcome.similarity, abs=1e-4
    )
    assert reply.usage.prompt_tokens == len(SAME)  # its own, not the kept question's
    assert reply.usage.completion_tokens == len(RESET.split())
    assert reply.outcome.total == reply.usage
    assert reply.outcome.savings[0].technique == "semantic_cache"
    assert reply.outcome.entry is None  # not for replays by bytes: another question may have it


async def test_at_the_default_bound_a_hundred_are_no_proof() -> None:
    one = Bench(delta=Settings().delta)
    await one.layer.start()
    outcomes = {await one.outcome(SAME if number else KEPT) for number in range(100)}
    assert outcomes == {"miss"}
    await one.layer.close()


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_hit_replays_the_steps_as_they_came(bench: Bench, is_streamed: bool) -> None:
    await bench.ask(chat(KEPT))
    fresh = bench.steps
    await bench.prove()
    await bench.ask(chat(SAME, is_streamed=is_streamed))
    pieces = [piece for step in bench.steps for piece in step]
    assert pieces == [piece for step in fresh for piece in step]


async def test_another_question_is_a_miss(bench: Bench) -> None:
    await bench.prove()
    for other in (
        "How do I not reset my password?",
        "How do I reset my 2 passwords?",
        "How do I reset my router?",
        "How do I reset my password tomorrow?",
        "my password how do I reset?",
        "How do I reset `password`?",
    ):
        assert await bench.outcome(other) == "miss"
        assert await bench.outcome(SAME) == "semantic"


async def test_words_are_learned_from_verified_answers(bench: Bench) -> None:
    await bench.prove()
    longer = "How do I reset the forgotten password?"
    assert await bench.outcome(longer) == "miss"
    bench.layer.purge()
    bench.model.answers[longer] = RESET
    await bench.prove()
    assert await bench.outcome(longer) == "miss"  # verified, and the word found harmless
    assert await bench.outcome(longer) == "semantic"


# --- what is verified --------------------------------------------------------------------------------------------


async def test_shadow_samples_run_the_model_and_are_compared(bench: Bench) -> None:
    await bench.prove()
    asked = bench.model.num_asked
    bench.roll = 0.049
    assert await bench.outcome(SAME) == "miss"
    assert bench.model.num_asked == asked + 1
    bench.roll = 0.051
    assert await bench.outcome(SAME) == "semantic"
    assert bench.model.num_asked == asked + 1


async def test_a_partition_that_breaks_its_bound_is_switched_off(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.prove()
    bench.roll = 0.0
    with caplog.at_level(logging.WARNING, "nonet.gateway"):
        for number in range(200):
            bench.model.answers[SAME] = f"Now it is done in quite another way, by step {number}."
            if await bench.outcome(SAME) == "bypass":
                break
            _forgive(bench)
    assert bench.layer.show()["partitions"] == {"proving": 0, "serving": 0, "off": 1}
    assert any("state=off" in record.message for record in caplog.records)
    bench.roll = 1.0
    assert await bench.outcome(SAME) == "bypass"
    assert await bench.outcome(SAME, system="elsewhere") == "miss"  # other partitions go on
    bench.layer.purge()
    assert await bench.outcome(SAME) == "miss"


def _forgive(bench: Bench) -> None:
    """The thresholds learn at once and stop the hits themselves; here they must not, so that the proof has to."""
    for partition in bench.layer._partitions.values():
        for question in partition.questions.values():
            assert question.belief is not None
            for _ in range(20):
                question.belief.learn(0.75, True, partition.pool)


async def test_wishes(bench: Bench) -> None:
    await bench.prove()

    async def outcome(**wishes: Any) -> str | None:
        return await bench.outcome(SAME, caller=Caller(wishes=CacheWishes(**wishes)))

    assert await outcome(no_store=True) == "bypass"
    assert await outcome(no_cache=True) == "miss"
    assert await outcome(max_age_s=0) == "miss"
    assert await outcome() == "semantic"


async def test_what_is_not_for_this_cache(bench: Bench) -> None:
    await bench.prove()
    tools = {"tools": [{"name": "f"}]}
    assert await bench.outcome(SAME, settings=tools) == "bypass"
    assert await bench.outcome(SAME, temperature=1.0) == "bypass"
    assert await bench.outcome(SAME, n=2) == "bypass"
    assert await bench.outcome(" ") == "bypass"
    longest = "word " * 40  # longer than the encoder reads
    assert await bench.outcome(longest) == "bypass"
    assert await bench.outcome(longest, system="another") == "miss"
    assert bench.layer.count() == 1
    plain = dataclasses.replace(chat(SAME), conversation=None)
    reply = await bench.layer.handle(dataclasses.replace(plain, conversation=None), _answering)
    assert reply.outcome.cache == "bypass"
    begun = Conversation(messages=[{"role": "assistant", "content": "To reset"}], settings={})
    reply = await bench.layer.handle(dataclasses.replace(plain, conversation=begun), _answering)
    assert reply.outcome.cache == "bypass"


async def _answering(ask: Ask) -> Reply:
    return await TableModel()(chat("anything"))


async def test_tools_when_they_are_wanted() -> None:
    one = Bench(with_tools=True)
    await one.layer.start()
    tools = {"tools": [{"name": "f"}]}
    await one.prove(settings=tools)
    assert await one.outcome(SAME) == "miss"
    await one.layer.close()


async def test_failures_and_early_leavers_teach_nothing(bench: Bench) -> None:
    bench.model.fails = True
    with pytest.raises(NonetError, match="told to fail"):
        await bench.ask(chat(KEPT))
    bench.model.fails = False
    reply = await bench.layer.handle(chat(KEPT), bench.model)
    await anext(reply.pieces)
    await reply.pieces.aclose()
    await bench.layer.settled()
    assert bench.layer.count() == 0


# --- isolation ---------------------------------------------------------------------------------------------------


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
            ask = dataclasses.replace(ask, caller=Caller(), requests=requests)
        else:
            assert ask.conversation is not None
            only = Conversation(
                messages=ask.conversation.messages[-1:], settings=ask.conversation.settings
            )
            ask = dataclasses.replace(ask, conversation=only)
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
        keys.append(partition_key(dataclasses.replace(base, requests=(changed,)), b"m"))
    for name in SamplingParams.__struct_fields__:
        value = {"seed": 3, "stop": ["x"], "grammar": None}.get(name, 1)
        params = msgspec.structs.replace(request.params, **{name: value})
        if params == request.params:
            params = msgspec.structs.replace(request.params, **{name: 2})
        changed = msgspec.structs.replace(request, params=params)
        keys.append(partition_key(dataclasses.replace(base, requests=(changed,)), b"m"))
    assert len(set(keys)) == len(keys)
    text = partition_key(chat("anything else"), b"m")
    assert text == keys[0]


# --- where it is kept --------------------------------------------------------------------------------------------


class Wall:
    """A clock on the wall that is moved by hand."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


async def restarted(folder: Path, wall: Wall, **knobs: Any) -> tuple[Bench, Database]:
    database = Database(folder / "nonet.db")
    database.open()
    one = Bench({"database": database, "wall": wall}, **knobs)
    await one.layer.start()
    return one, database


async def ended(one: Bench, database: Database) -> None:
    await one.layer.close()
    await database.close()


async def test_what_was_learned_outlives_the_server(tmp_path: Path) -> None:
    wall = Wall()
    one, database = await restarted(tmp_path, wall)
    await one.prove()
    await ended(one, database)
    one, database = await restarted(tmp_path, wall)
    assert one.layer.show()["partitions"]["serving"] == 1
    assert await one.outcome(SAME) == "semantic"
    assert one.text.split() == RESET.split()
    assert one.model.num_asked == 0
    assert one.layer.purge() == 1
    await ended(one, database)
    one, database = await restarted(tmp_path, wall)
    assert one.layer.show()["partitions"] == {"proving": 0, "serving": 0, "off": 0}
    rows = await database.read(
        lambda c: [
            c.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("semantic_question", "semantic_partition", "semantic_answer")
        ]
    )
    assert rows == [0, 0, 0]
    await ended(one, database)


async def test_a_switched_off_partition_stays_so(tmp_path: Path) -> None:
    one, database = await restarted(tmp_path, Wall())
    await one.prove()
    one.roll = 0.0
    for number in range(200):
        one.model.answers[SAME] = f"Now it is done in quite another way, by step {number}."
        if await one.outcome(SAME) == "bypass":
            break
        _forgive(one)
    await ended(one, database)
    one, database = await restarted(tmp_path, Wall())
    assert await one.outcome(SAME) == "bypass"
    await ended(one, database)


async def test_entries_grow_old(tmp_path: Path) -> None:
    wall = Wall()
    one, database = await restarted(tmp_path, wall, ttl_s=60)
    await one.prove()
    wall.now_s += 59
    assert await one.outcome(SAME) == "semantic"
    wall.now_s += 2
    assert await one.outcome(SAME) == "miss"
    assert one.layer.count() == 1  # the old one went, the new answer is kept
    await ended(one, database)


async def test_entries_are_bounded() -> None:
    one = Bench(max_entries=5)
    await one.layer.start()
    for number in range(20):
        await one.outcome(f"question about subject{chr(97 + number)}")
    assert one.layer.count() == 5
    assert one.layer.show()["entries"] == 5
    await one.layer.close()
    small = Bench(memory_mib=0.002, disk_mib=0)
    await small.layer.start()
    for number in range(20):
        await small.outcome(f"question about subject{chr(97 + number)}")
    assert small.layer.show()["entries"] < 5
    await small.layer.close()


async def test_purge_of_one_tenant(bench: Bench) -> None:
    for tenant in ("a", "b"):
        await bench.prove(tenant=tenant)
    assert bench.layer.count("a") == bench.layer.count("b") == 1
    assert bench.layer.purge("a") == 1
    assert await bench.outcome(SAME, tenant="a") == "miss"
    assert await bench.outcome(SAME, tenant="b") == "semantic"


async def test_what_is_purged_while_it_is_made_is_not_kept(bench: Bench) -> None:
    reply = await bench.layer.handle(chat(KEPT), bench.model)
    await anext(reply.pieces)
    bench.layer.purge()
    await read(reply)
    await bench.layer.settled()
    assert bench.layer.count() == 0


# --- beside other layers -----------------------------------------------------------------------------------------


async def test_the_ledger_books_what_was_saved(tmp_path: Path) -> None:
    database = Database(tmp_path / "nonet.db")
    database.open()
    one = Bench()
    books = site(database=database, ledger=Ledger(database))
    line = Pipeline([Bookkeeper(Bookkeeper.Config(), books), one.layer], one.model)
    await line.start()
    await one.prove()
    rows: list[LedgerRow] = []
    await read(await line.answer(chat(SAME, caller=Caller(book=rows.append))))
    (row,) = rows
    assert row.cache == "semantic"
    assert (row.prompt_tokens, row.output_tokens) == (len(SAME), len(RESET.split()))
    name, prompt_tokens, output_tokens, *_ = msgspec.json.decode(row.savings)[0]
    assert (name, prompt_tokens, output_tokens) == (
        "semantic_cache",
        len(SAME),
        len(RESET.split()),
    )
    await line.close()
    await database.close()


async def test_below_the_exact_cache() -> None:
    one = Bench()
    exact = ExactCache(ExactCache.Config(), site())
    line = Pipeline([exact, one.layer], one.model)
    await line.start()
    await one.prove()
    outcomes = []
    for text in (SAME, SAME, KEPT, KEPT, "What else?", "What else?"):
        reply = await line.answer(chat(text))
        await read(reply)
        await one.layer.settled()
        outcomes.append(reply.outcome.cache)
    # What came by likeness is not kept as if it were exact.
    assert outcomes == ["semantic", "semantic", "semantic", "semantic", "miss", "exact"]
    sampled = await line.answer(chat(SAME, n=2))
    await read(sampled)
    assert sampled.outcome.cache == "miss"
    await line.close()


def test_the_spec_string() -> None:
    name, cls, config = LAYERS.configured("semantic_cache:delta=0.02,gates=words+numbers")
    assert (name, cls) == ("semantic_cache", SemanticCache)
    assert config.delta == 0.02
    assert config.chosen_gates == {"words", "numbers"}
    assert LAYERS.order().index("exact_cache") < LAYERS.order().index("semantic_cache")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"delta": 0}, "delta is 0; give a number between 0 and 1"),
        ({"confidence": 1}, "confidence is 1"),
        ({"shadow": 0}, "shadow is 0; give a number between 0 and 1"),
        ({"min_similarity": 2}, "min_similarity is 2; give a number from 0 to 1"),
        ({"max_entries": 0}, "max_entries is 0; give a number above 0"),
        ({"disk_mib": -1}, "disk_mib is -1"),
        ({"gates": "words+colour"}, "there is no gate 'colour'; give all, or some of code"),
    ],
)
def test_settings_that_cannot_be(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**knobs)


def test_an_encoder_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="no model 'minilmm'"):
        SemanticCache(Settings(embedder="minilmm"), site())


# --- the judge ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "equal", "agreeing"),
    [
        ("Paris.", "paris", True, False),
        ("Yes", "No", False, False),
        ("It takes 3 days to arrive.", "It will take 3 days to arrive.", False, True),
        ("It takes 3 days to arrive.", "It takes 5 days to arrive.", False, False),
        ("You can return it at any time.", "You can not return it at any time.", False, False),
        ("Run `a` and then wait for it.", "Run `b` and then wait for it.", False, False),
    ],
)
def test_the_same_answer(one: str, two: str, equal: bool, agreeing: bool) -> None:
    assert is_equal(one, two) is equal
    assert agree(one, two) is agreeing


async def test_answers_that_sound_alike_are_the_same(bench: Bench) -> None:
    bench.model.answers[SAME] = "Click on the link below the form, then follow the mail."
    assert await bench.prove() > 8
    strict = Bench(same_answer=1.0)
    strict.model.answers[SAME] = bench.model.answers[SAME]
    await strict.layer.start()
    assert [await strict.outcome(SAME if n else KEPT) for n in range(3)] == ["miss"] * 3
    assert strict.layer.count() == 2
    await strict.layer.close()
