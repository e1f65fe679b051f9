"""What a semantic cache would serve and how much of it would be wrong: labelled questions through the real decisions.

Questions with one label have one answer, so the label stands for the answer and no model runs. The stream goes through
`Partition` and `Evidence` as the layer uses them: what is not served is answered by the label and learned from, and a
share of the hits is verified. Vectors are given, so the same questions can be run many times.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nonet.core.errors import ConfigError
from nonet.embed.base import Vectors
from nonet.gateway.cache.semantic.evidence import upper_bound
from nonet.gateway.cache.semantic.gates import Marks, marks_of
from nonet.gateway.cache.semantic.index import Index
from nonet.gateway.cache.semantic.partition import Look, Partition, Question, Rules

__all__ = ["Labelled", "Score", "Stream", "fixed_threshold", "read_labelled", "run_stream"]

NEAREST = 8
OUT_OF_SCOPE = "oos"  # questions of this label have nothing to do with each other


@dataclass(frozen=True)
class Labelled:
    """Questions and what their answers are called."""

    name: str
    texts: list[str]
    labels: list[str]

    @cached_property
    def marks(self) -> list[Marks]:
        return [marks_of(text) for text in self.texts]


@dataclass(frozen=True, slots=True)
class Score:
    """`would` counts all that gates and thresholds let be a hit; `served` those that the proof let out, unverified."""

    questions: int
    entries: int
    would: int
    would_false: int
    would_bound: float  # of the false share, 95 %
    served: int
    served_false: int
    served_bound: float
    first_served: int | None
    state: str

    @property
    def hit_rate(self) -> float:
        return self.served / self.questions

    def row(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "hit_rate": self.hit_rate,
            "would_rate": self.would / self.questions,
        }


class Stream:
    """One partition that is asked questions one after another; afterwards it may be asked what it would serve."""

    def __init__(self, rules: Rules, dimensions: int, shadow: float, seed: int) -> None:
        self.partition = Partition(rules)
        self._index = Index(dimensions, exact_up_to=10**9)
        self._labels: dict[bytes, str] = {}
        self._shadow = shadow
        self._dice = random.Random(seed)
        self.counts = {"questions": 0, "would": 0, "would_false": 0, "served": 0, "served_false": 0}
        self.first_served: int | None = None

    def look(self, vector: Vectors, marks: Marks) -> Look:
        questions = self.partition.questions
        near = [(questions[key], like) for key, like in self._index.search(vector, NEAREST)]
        return self.partition.look(marks, near)

    def ask(self, text: str, label: str, vector: Vectors, marks: Marks) -> None:
        counts = self.counts
        counts["questions"] += 1
        look = self.look(vector, marks)
        is_right = (
            look.question is not None
            and label != OUT_OF_SCOPE
            and self._labels[look.question.key] == label
        )
        if look.fits:
            counts["would"] += 1
            counts["would_false"] += not is_right
            is_serving = self.partition.evidence.state == "serving"
            if is_serving and self._dice.random() >= self._shadow:
                if self.first_served is None:
                    self.first_served = counts["questions"]
                counts["served"] += 1
                counts["served_false"] += not is_right
                return
        if self.partition.evidence.state == "off":
            return
        if look.question is not None:
            self.partition.learn(look, is_right)
        if not is_right:
            self.keep(text, label, vector, marks)

    def keep(self, text: str, label: str, vector: Vectors, marks: Marks) -> None:
        key = str(len(self._labels)).encode()
        self.partition.add(Question(key, text, marks))
        self._index.add(key, vector)
        self._labels[key] = label

    def score(self) -> Score:
        counts = self.counts
        return Score(
            **counts,
            entries=len(self._labels),
            would_bound=upper_bound(counts["would_false"], counts["would"]),
            served_bound=upper_bound(counts["served_false"], counts["served"]),
            first_served=self.first_served,
            state=self.partition.evidence.state,
        )


def read_labelled(folder: Path) -> list[Labelled]:
    """The held-in sets of a data folder: banking77, clinc150 and the pairs of GPTCache, each pair its own answer."""
    try:
        with (folder / "banking77" / "train.csv").open(encoding="utf-8") as file:
            banking = list(csv.DictReader(file))
        with (folder / "clinc150" / "train_val.csv").open(encoding="utf-8") as file:
            clinc = list(csv.DictReader(file))
        pairs = (folder / "gptcache_pairs" / "pairs.jsonl").read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the data sets are not in {folder}: {error}; set NONET_DATA") from None
    rows = [json.loads(line) for line in pairs.splitlines()]
    return [
        Labelled(
            "banking77", [row["text"] for row in banking], [row["category"] for row in banking]
        ),
        Labelled("clinc150", [row["text"] for row in clinc], [row["intent"] for row in clinc]),
        Labelled(
            "gptcache_pairs",
            [row[side] for row in rows for side in ("origin", "similar")],
            [f"pair {number}" for number in range(len(rows)) for _ in range(2)],
        ),
    ]


def run_stream(
    data: Labelled, vectors: Vectors, rules: Rules, *, seed: int = 0, shadow: float = 0.05
) -> Stream:
    """The questions of a set in a random order."""
    stream = Stream(rules, vectors.shape[1], shadow, seed)
    for place in np.random.default_rng(seed).permutation(len(data.texts)):
        stream.ask(data.texts[place], data.labels[place], vectors[place], data.marks[place])
    return stream


def fixed_threshold(
    data: Labelled, vectors: Vectors, thresholds: Sequence[float], seed: int = 0
) -> list[dict[str, Any]]:
    """What a cache with one threshold and no gates serves: the nearest entry, above it; misses become entries."""
    return [_fixed(data, vectors, threshold, seed) for threshold in thresholds]


def _fixed(data: Labelled, vectors: Vectors, threshold: float, seed: int) -> dict[str, Any]:
    index = Index(vectors.shape[1], exact_up_to=10**9)
    hits = false = 0
    for place in np.random.default_rng(seed).permutation(len(data.texts)):
        label = data.labels[place]
        found = index.search(vectors[place], 1)
        if found and found[0][1] >= threshold:
            hits += 1
            false += label == OUT_OF_SCOPE or data.labels[int(found[0][0])] != label
        else:
            index.add(str(place).encode(), vectors[place])
    return {
        "threshold": threshold,
        "questions": len(data.texts),
        "hits": hits,
        "hit_rate": hits / len(data.texts),
        "false": false,
        "false_rate": false / hits if hits else None,
        "bound": upper_bound(false, hits),
    }
