"""The measurement of semantic caches: labelled streams, one fixed threshold, the data it reads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.semantic_fakes import WordEmbedder

from nonet.bench.semantic import Labelled, fixed_threshold, read_labelled, run_stream
from nonet.core.errors import ConfigError
from nonet.embed.base import Vectors
from nonet.gateway.cache.semantic.partition import Rules
from nonet.gateway.cache.semantic.settings import ALL_GATES

TOPICS = ("card", "loan", "rent", "boiler", "ticket", "parcel")
WAYS = (
    "how do I cancel my {}", "please cancel the {} now", "cancel {} for me", "I want to cancel a {}",
    "{} cancel", "kindly cancel this old {}",
)  # fmt: skip


def questions(count: int, noise: float = 0.0) -> tuple[Labelled, Vectors]:
    """Questions on a few topics; a share of them wears the label of another topic."""
    rng = random.Random(0)
    texts, labels = [], []
    for _ in range(count):
        topic = rng.choice(TOPICS)
        texts.append(rng.choice(WAYS).format(topic))
        labels.append(rng.choice(TOPICS) if rng.random() < noise else topic)
    embedder = WordEmbedder()
    vectors = embedder.embed([embedder.encode(text) for text in texts])
    return Labelled("made", texts, labels), vectors


def test_a_clean_stream_is_served_without_a_false_hit() -> None:
    data, vectors = questions(1500)
    score = run_stream(data, vectors, Rules(delta=0.05, gates=ALL_GATES)).score()
    assert score.questions == 1500
    assert score.state == "serving"
    assert score.served > 700
    assert (score.would_false, score.served_false) == (0, 0)
    assert 0 < score.would_bound < score.served_bound < 0.01
    assert score.first_served is not None
    assert score.hit_rate == score.served / 1500
    assert score.would > score.served


def test_a_stream_that_breaks_the_bound_is_not_served() -> None:
    """The check above must be able to fail: with a tenth of the labels wrong there is no proof."""
    data, vectors = questions(1500, noise=0.12)
    score = run_stream(data, vectors, Rules(delta=0.02, gates=ALL_GATES)).score()
    assert score.state == "proving"
    assert score.served == 0


def test_questions_without_scope_are_never_right() -> None:
    data, vectors = questions(300)
    loose = Labelled("loose", data.texts, ["oos"] * len(data.texts))
    score = run_stream(loose, vectors, Rules(delta=0.5, gates=ALL_GATES)).score()
    assert score.would_false == score.would
    assert score.entries == 300


def test_one_threshold_serves_what_is_near() -> None:
    data, vectors = questions(300, noise=0.2)
    low, high = fixed_threshold(data, vectors, [0.3, 0.999])
    assert low["hits"] > high["hits"] > 0
    assert low["false_rate"] > 0.1
    assert low["bound"] > low["false_rate"]


def test_the_data_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set NONET_DATA"):
        read_labelled(tmp_path)
    for folder, name, text in (
        ("banking77", "train.csv", "text,category\nWhere is it?,card_arrival\n"),
        ("clinc150", "train_val.csv", "split,text,intent\ntrain,hi,greeting\nval,odd,oos\n"),
        ("gptcache_pairs", "pairs.jsonl", '{"origin": "a", "similar": "b"}\n'),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    banking, clinc, pairs = read_labelled(tmp_path)
    assert (banking.texts, banking.labels) == (["Where is it?"], ["card_arrival"])
    assert clinc.labels == ["greeting", "oos"]
    assert (pairs.texts, pairs.labels) == (["a", "b"], ["pair 0", "pair 0"])
