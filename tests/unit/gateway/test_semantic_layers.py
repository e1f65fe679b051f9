"""The layer among others, and how it is named and set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway_fakes import read, site
from tests.semantic_bench import KEPT, RESET, SAME, Bench
from tests.semantic_fakes import chat

from nonet.core.errors import ConfigError, UnknownNameError
from nonet.gateway import LAYERS
from nonet.gateway.answer import Caller
from nonet.gateway.bookkeeper import Bookkeeper
from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.cache.semantic.layer import SemanticCache
from nonet.gateway.cache.semantic.settings import Settings
from nonet.gateway.pipeline import Pipeline
from nonet.store.database import Database
from nonet.telemetry.ledger import Ledger, LedgerRow


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
