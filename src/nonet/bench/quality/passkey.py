"""A number hidden in filler, at several depths of texts of several lengths, asked for at the end.

Idea: retrieval needs the entries of the cache that hold the number, so it shows what pruning or coarse keys lose where
perplexity does not. Made from a seed, no data set is needed. Reference: the passkey test of landmark attention
(arXiv 2305.16300).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from nonet.bench.quality.base import Measure, Spelling, Subject, TaskResult
from nonet.bench.quality.data import digest
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.statistics import share_interval
from nonet.core.errors import ConfigError
from nonet.core.sampling_params import SamplingParams

__all__ = ["Passkey", "hide"]

BEGINNING = (
    "There is an important number hidden in a lot of irrelevant text. Find it and remember it. "
    "You will be asked for it.\n\n"
)
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
KEY = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "\n\nWhat is the pass key? The pass key is"
ANSWER_TOKENS = 8


class Passkey:
    """The share of numbers found, in all and by length and depth."""

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `passkey:lengths=256/512,depths=...,each=...,seed=...`."""

        lengths: str = (
            "256/512/1024"  # tokens of a whole prompt; longer than the context is refused
        )
        depths: int = 5  # from the beginning (0) to the end (1)
        each: int = 2  # numbers for each length and depth
        seed: int = 0

    def __init__(self, config: Config) -> None:
        parts = config.lengths.split("/")
        if not all(part.isdigit() for part in parts) or config.depths < 1 or config.each < 1:
            raise ConfigError(
                f"passkey: lengths {config.lengths!r}, depths {config.depths}, each {config.each}; give lengths such "
                "as 256/512 and counts of at least 1"
            )
        self._lengths = [int(part) for part in parts]
        self._config = config

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult:
        knobs, rng = self._config, random.Random(self._config.seed)
        longest = subject.max_model_len - ANSWER_TOKENS
        if max(self._lengths) > longest:
            raise ConfigError(
                f"passkey: a prompt of {max(self._lengths)} tokens and its answer do not fit in the context of "
                f"{subject.max_model_len}; give lengths up to {longest}"
            )
        depths = [place / max(1, knobs.depths - 1) for place in range(knobs.depths)]
        cells = [(length, depth) for length in self._lengths for depth in depths] * knobs.each
        keys = [str(rng.randrange(10_000, 100_000)) for _ in cells]
        texts = [
            hide(subject.spelling, key, length, depth)
            for key, (length, depth) in zip(keys, cells, strict=True)
        ]
        params = SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS)
        outputs = subject.generate([subject.spelling.encode(text) for text in texts], params)
        hits = [key in one.outputs[0].text for key, one in zip(keys, outputs, strict=True)]
        grid: dict[str, dict[str, list[bool]]] = {}
        for (length, depth), hit in zip(cells, hits, strict=True):
            grid.setdefault(str(length), {}).setdefault(f"{depth:.2f}", []).append(hit)
        return TaskResult(
            measures=_measures(grid, hits),
            data="made from the seed",
            sha256=digest(texts),
            details={
                "found by length and depth": {
                    length: {depth: sum(row) / len(row) for depth, row in by_depth.items()}
                    for length, by_depth in grid.items()
                }
            },
        )


def hide(spelling: Spelling, key: str, length: int, depth: float) -> str:
    """The longest such text of at most `length` tokens, the key after the share `depth` of its filler."""
    hidden = KEY.format(key=key)

    def text(count: int) -> str:
        before = round(count * depth)
        return f"{BEGINNING}{FILLER * before}{hidden}{FILLER * (count - before)}{QUESTION}"

    most = length // 5  # sentences, none of which is shorter in tokens
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if len(spelling.encode(text(middle))) <= length else (low, middle - 1)
        )
    if len(spelling.encode(text(0))) > length:
        raise ConfigError(f"passkey: {length} tokens do not hold the question; give longer ones")
    return text(low)


def _measures(grid: Mapping[str, Mapping[str, list[bool]]], hits: list[bool]) -> list[Measure]:
    rows = [("found", hits)]
    if len(grid) > 1:
        for length, by_depth in grid.items():
            rows.append((f"found in {length}", [hit for row in by_depth.values() for hit in row]))
    return [
        Measure(name=name, interval=share_interval(some), items=[float(hit) for hit in some])
        for name, some in rows
    ]
