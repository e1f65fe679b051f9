"""The seam: layers in the catalogue's order, off when nothing is named, and the engine's answers below them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from tests.gateway_fakes import ScriptedEngine, ask, read, site, text, tiny_tokenizer
from tests.gateway_fakes import pipeline as made

from nonet.core.catalogue import Catalogue
from nonet.core.errors import ConfigError, UnknownNameError
from nonet.core.outputs import SequenceDelta
from nonet.gateway import LAYERS, pipeline
from nonet.gateway.answer import Ask, Outcome, Reply
from nonet.gateway.assemble import joined_specs
from nonet.gateway.generate import EngineAnswers
from nonet.gateway.pipeline import Next, build_layers
from nonet.gateway.site import Site
from nonet.text.tokenizer import Tokenizer


class Marking:
    """Appends its letter to a header on the way back."""

    def __init__(self, letter: bytes, site: Site) -> None:
        self._letter = letter

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def handle(self, ask: Ask, next: Next) -> Reply:
        reply = await next(ask)
        reply.outcome.headers.append((b"x-mark", self._letter))
        return reply


class A(Marking):
    def __init__(self, config: None, site: Site) -> None:
        super().__init__(b"a", site)


class B(Marking):
    def __init__(self, config: None, site: Site) -> None:
        super().__init__(b"b", site)


async def test_layers_stand_in_the_order_of_the_catalogue(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Catalogue("gateway layer", {"a": f"{__name__}:A", "b": f"{__name__}:B"})
    monkeypatch.setattr(pipeline, "LAYERS", table)
    layers = build_layers(["b", "a"], site())
    reply = await made(ScriptedEngine(), tokenizer, *layers).answer(ask())
    await read(reply)
    assert [value for _, value in reply.outcome.headers] == [b"b", b"a"]  # a is outermost
    with pytest.raises(ConfigError, match="given twice"):
        build_layers(["a", "a"], site())


def test_caches_stand_below_what_must_see_every_ask() -> None:
    order = LAYERS.order()
    assert order.index("ledger") < order.index("exact_cache")


def test_off_means_off() -> None:
    assert build_layers([], site()) == []
    with pytest.raises(UnknownNameError, match="Did you mean 'exact_cache'"):
        build_layers(["exact_cash"], site())
    with pytest.raises(UnknownNameError, match="ttl_s"):
        build_layers(["exact_cache:ttl=3"], site())
    with pytest.raises(ConfigError, match="above 0"):
        build_layers(["exact_cache:ttl_s=0"], site())
    with pytest.raises(ConfigError, match="set data_dir"):
        build_layers(["ledger"], site())


def test_specs_from_the_environment_are_joined_again() -> None:
    given = ["exact_cache:ttl_s=60", "memory_mib=8", "ledger", "ledger:hit_percent=3"]
    assert joined_specs(given) == [
        "exact_cache:ttl_s=60,memory_mib=8", "ledger", "ledger:hit_percent=3",
    ]  # fmt: skip
    assert joined_specs(["ledger", "hit_percent=3"]) == ["ledger:hit_percent=3"]
    with pytest.raises(ConfigError, match="name a layer first"):
        joined_specs(["ttl_s=60"])


async def test_the_engine_answers(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(num_cached=3)
    reply = await made(engine, tokenizer).answer(ask(n=2))
    steps = await read(reply)
    assert len(steps) == 8
    assert [len(step) for step in steps] == [2] * 8
    assert reply.usage.completion_tokens == 16
    assert reply.usage.cached_tokens == 3
    assert {piece.finish_reason for piece in steps[-1]} == {"length"}
    assert reply.outcome == Outcome()
    assert reply.outcome.all_headers() == []


async def test_tokens_after_a_stop_string_are_neither_returned_nor_counted(
    tokenizer: Tokenizer,
) -> None:
    engine = ScriptedEngine()
    whole = await text(await made(engine, tokenizer).answer(ask(max_tokens=40)))
    stop = whole[10:12]
    cut = whole.index(stop)
    reply = await made(engine, tokenizer).answer(ask(max_tokens=40, stop=[stop]))
    steps = await read(reply)
    assert "".join(piece.text for step in steps for piece in step) == whole[:cut]
    assert steps[-1][0].finish_reason == "stop"
    assert steps[-1][0].stop_reason == stop
    assert reply.usage.completion_tokens == cut + 2
    assert ("a-0", 0) in engine._dropped


async def test_late_readers_get_steps_again(tokenizer: Tokenizer) -> None:
    class Late(ScriptedEngine):
        """Everything in one delivery."""

        async def stream(  # type: ignore[no-untyped-def]
            self, requests, *, idle_s=None, each_step=True
        ) -> AsyncGenerator[list[SequenceDelta], None]:
            everything = [d async for step in super().stream(requests) for d in step]
            yield everything

    question = ask(n=3, is_streamed=False)
    answers = EngineAnswers(Late(), tokenizer)
    lumped = await read(await answers(question))
    assert len(lumped) == 1
    steps = await read(await answers(msgspec.structs.replace(question, keeps_steps=True)))
    assert [len(step) for step in steps] == [3] * 8
    assert steps == await read(await EngineAnswers(ScriptedEngine(), tokenizer)(ask(n=3)))


async def test_leaving_aborts(tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine()
    reply = await made(engine, tokenizer).answer(ask(max_tokens=100))
    async for _ in reply.pieces:
        break
    await reply.pieces.aclose()
    assert engine.aborted == ["a-0"]


def test_tokenizer_folder_is_small(tmp_path: Path) -> None:
    assert tiny_tokenizer(tmp_path).vocab_size == 260
