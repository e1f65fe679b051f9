"""Perplexity and KL of a text's end that the model is made to say, after it has read the beginning.

Idea: as for running text, but the scored tokens are taken one step at a time, so they see a cache as a running
sequence has it: pruned, quantised, partly offloaded. Reference: teacher forcing on WikiText-2 (Merity et al. 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nonet.bench.quality.base import Subject, TaskResult
from nonet.bench.quality.data import digest
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.likelihood import measure_texts
from nonet.bench.quality.windows import TEXT, text_windows
from nonet.core.errors import ConfigError
from nonet.core.given_text import GivenText

__all__ = ["Continuation"]


class Continuation:
    """Sees everything that a running sequence sees."""

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `continuation:texts=...,prompt=...,output=...,seed=...`."""

        texts: int = 16
        prompt: int = 448  # tokens read
        output: int = 64  # tokens said and scored
        seed: int = 0

    def __init__(self, config: Config) -> None:
        if config.prompt < 1 or config.output < 1:
            raise ConfigError(
                f"continuation reads {config.prompt} and says {config.output} tokens; give at least 1 of each"
            )
        self._config = config

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult:
        knobs = self._config
        size = knobs.prompt + knobs.output
        windows = text_windows(subject, environ, count=knobs.texts, size=size, seed=knobs.seed)
        texts = [GivenText(ids[: knobs.prompt], ids[knobs.prompt :]) for ids in windows]
        measures, details = measure_texts(subject, texts, store)
        return TaskResult(measures=measures, data=TEXT, sha256=digest(windows), details=details)
