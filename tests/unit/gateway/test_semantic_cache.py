"""The layer: what is served and when, what is verified, and who judges that two answers are the same."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
from tests.semantic_bench import KEPT, RESET, SAME, Bench, forgive
from tests.semantic_fakes import TableModel, chat

from nonet.core.errors import NonetError
from nonet.gateway.answer import Ask, CacheWishes, Caller, Conversation, Reply
from nonet.gateway.cache.semantic.judge import agree, is_equal
from nonet.gateway.cache.semantic.settings import Settings


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
            forgive(bench)
    assert bench.layer.show()["partitions"] == {"proving": 0, "serving": 0, "off": 1}
    assert any("state=off" in record.message for record in caplog.records)
    bench.roll = 1.0
    assert await bench.outcome(SAME) == "bypass"
    assert await bench.outcome(SAME, system="elsewhere") == "miss"  # other partitions go on
    bench.layer.purge()
    assert await bench.outcome(SAME) == "miss"


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
    plain = msgspec.structs.replace(chat(SAME), conversation=None)
    reply = await bench.layer.handle(msgspec.structs.replace(plain, conversation=None), _answering)
    assert reply.outcome.cache == "bypass"
    begun = Conversation(messages=[{"role": "assistant", "content": "To reset"}], settings={})
    reply = await bench.layer.handle(msgspec.structs.replace(plain, conversation=begun), _answering)
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
