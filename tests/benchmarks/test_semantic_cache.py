"""The benchmark of the semantic cache at small sizes: crossings, and pairs against a partition that has learned."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks_path import FOLDER
from tests.semantic_fakes import WordEmbedder

assert FOLDER.is_dir()

import semantic_cache  # noqa: E402
from nonet.bench.semantic import Labelled  # noqa: E402


async def test_crossings_hit_at_home_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await semantic_cache._crossings(WordEmbedder(), 200)
    assert found == {"asked": 200, "same": 1, "miss": 200}
    monkeypatch.setattr(semantic_cache, "CROSSED", ("nothing",))  # the check must be able to fail
    assert (await semantic_cache._crossings(WordEmbedder(), 20))["semantic"] == 20


def test_the_suite_is_counted_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = semantic_cache.pairs(each=3)
    monkeypatch.setattr(semantic_cache, "pairs", lambda: suite)
    topics = [f"w{n}a w{n}b w{n}c w{n}d" for n in range(120)]
    data = Labelled(
        "made",
        [f"{topic} {end}" for _ in range(3) for topic in topics for end in ("please", "kindly")],
        [topic for _ in range(3) for topic in topics for _ in range(2)],
    )
    embedder = WordEmbedder()
    vectors = embedder.embed([embedder.encode(text) for text in data.texts])
    found = semantic_cache._adversarial(data, vectors, embedder, delta=0.2)
    assert found["pairs"] == len(suite)
    assert found["all gates"]["served"] == {"all": 0}
    assert found["no gates"]["served"]["all"] > 0
    assert json.loads(json.dumps(found)) == found
