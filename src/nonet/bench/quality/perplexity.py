"""Perplexity of running text that the model reads, and the distance of its distributions from the reference's.

Idea: exp of the mean negative log likelihood of each token after those before it in its window. KL sees what
perplexity does not: a distribution that moved without the true token's share moving.
Reference: WikiText-2 (Merity et al. 2016), tokenised variant: compare only within one model and window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nonet.bench.quality.base import Subject, TaskResult
from nonet.bench.quality.data import digest
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.likelihood import measure_texts
from nonet.bench.quality.windows import TEXT, text_windows
from nonet.core.given_text import GivenText

__all__ = ["Perplexity"]


class Perplexity:
    """Texts are read in one go, so this sees weights and KV formats, and nothing that happens to outputs alone."""

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `perplexity:windows=...,window=...,seed=...`."""

        windows: int = 16
        window: int = 512  # tokens
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self._config = config

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult:
        knobs = self._config
        windows = text_windows(
            subject, environ, count=knobs.windows, size=knobs.window, seed=knobs.seed
        )
        measures, details = measure_texts(subject, [GivenText(ids, []) for ids in windows], store)
        return TaskResult(measures=measures, data=TEXT, sha256=digest(windows), details=details)
