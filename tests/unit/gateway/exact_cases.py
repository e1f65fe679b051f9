"""The exact-match cache over a scripted engine, for the tests of its parts."""

from __future__ import annotations

from typing import Any

from tests.gateway_fakes import ScriptedEngine, pipeline, site

from nonet.gateway.cache.exact import ExactCache
from nonet.gateway.pipeline import Pipeline
from nonet.store.database import Database
from nonet.text.tokenizer import Tokenizer


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
