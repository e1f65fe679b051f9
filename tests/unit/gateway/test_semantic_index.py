"""The nearest vectors: the exact scan against a sort of everything, usearch against the exact scan."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from nonet.core.errors import ConfigError
from nonet.embed.base import Vectors, normalised
from nonet.gateway.cache.semantic.index import Index

DIMENSIONS = 24


def vectors(count: int, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    return normalised(rng.standard_normal((count, DIMENSIONS)).astype(np.float32))


@pytest.mark.parametrize("exact_up_to", [10**6, 50])
def test_adds_and_removes_against_a_sort_of_everything(exact_up_to: int) -> None:
    rng = random.Random(4)
    index = Index(DIMENSIONS, exact_up_to)
    held: dict[bytes, Vectors] = {}
    rows = vectors(400)
    missed = 0
    for number, row in enumerate(rows):
        key = b"%d" % number
        index.add(key, row)
        held[key] = row
        if held and rng.random() < 0.4:
            gone = rng.choice(sorted(held))
            index.remove(gone)
            del held[gone]
        query = rows[rng.randrange(len(rows))]
        expected = sorted(held, key=lambda key: -float(held[key] @ query))[:5]
        found = index.search(query, 5)
        assert len(index) == len(held)
        assert [like for _, like in found] == sorted((like for _, like in found), reverse=True)
        assert all(like == pytest.approx(float(held[key] @ query), abs=1e-5) for key, like in found)
        missed += len({*expected} - {key for key, _ in found})
    if exact_up_to > len(rows):
        assert missed == 0
    else:
        assert missed <= 0.02 * 5 * len(rows)


def test_an_empty_index_finds_nothing() -> None:
    index = Index(DIMENSIONS, 10)
    assert index.search(vectors(1)[0], 3) == []
    index.add(b"one", vectors(1)[0])
    index.remove(b"one")
    assert index.search(vectors(1)[0], 3) == []


def test_usearch_is_imported_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    index = Index(DIMENSIONS, 10)
    rows = vectors(11)
    for number in range(10):
        index.add(b"%d" % number, rows[number])
    assert index.search(rows[3], 1)[0][0] == b"3"
    with pytest.raises(ConfigError, match="needs usearch for so many entries"):
        index.add(b"10", rows[10])
