"""How likely a model finds given texts, and how far its distributions are from the reference's.

Figures are means over a text's tokens first, so that the interval counts texts: tokens of one text are not independent.
Shapes: T scored tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nonet.bench.quality.base import Measure, Subject
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.statistics import mean_interval
from nonet.core.given_text import GivenText

__all__ = ["divergence", "log_softmax", "measure_texts"]

Floats = npt.NDArray[np.float32]

ROWS = 64  # taken at a time: what a step makes stays in the processor's cache longer


def measure_texts(
    subject: Subject, texts: Sequence[GivenText], store: DistributionStore
) -> tuple[list[Measure], dict[str, object]]:
    """Perplexity; with a reference also KL(reference || this) in nats a token and the share of equal best tokens."""
    found = _Found()
    for number, logits in enumerate(subject.distributions(texts)):
        reference = store.load(number) if store.has_reference else None
        kept = np.empty_like(logits) if store.is_recording else None
        targets = np.array(texts[number].targets)
        found.open_text()
        for start in range(0, len(targets), ROWS):
            here = slice(start, start + ROWS)
            logprobs = log_softmax(logits[here])
            found.losses[-1].append(-logprobs[np.arange(len(logprobs)), targets[here]])
            if kept is not None:
                kept[here] = logprobs
            if reference is not None:
                expected = np.asarray(reference[here])
                found.divergences[-1].append(divergence(expected, logprobs))
                found.agreements[-1].append(expected.argmax(1) == logprobs.argmax(1))
        if kept is not None:
            store.save(number, kept)
    return found.measures(store.has_reference), found.details(store.has_reference)


def log_softmax(logits: Floats) -> Floats:
    """[T, V] in float32, the sum in float64."""
    shifted = logits - logits.max(1, keepdims=True)
    total = np.exp(shifted).sum(1, dtype=np.float64, keepdims=True)
    result: Floats = shifted - np.log(total).astype(np.float32)
    return result


def divergence(expected: Floats, found: Floats) -> npt.NDArray[np.float64]:
    """KL(expected || found) [T] of log probabilities [T, V], in nats."""
    terms = np.exp(expected) * (expected - found)
    summed: npt.NDArray[np.float64] = terms.sum(1, dtype=np.float64)
    return summed


Parts = list[list[npt.NDArray[np.floating]]]


@dataclass(slots=True)
class _Found:
    """One list of pieces for each text."""

    losses: Parts = field(default_factory=list)
    divergences: Parts = field(default_factory=list)
    agreements: Parts = field(default_factory=list)

    def open_text(self) -> None:
        for parts in (self.losses, self.divergences, self.agreements):
            parts.append([])

    def measures(self, has_reference: bool) -> list[Measure]:
        losses = _means(self.losses)
        rows = [
            Measure(
                name="perplexity",
                interval=mean_interval(losses).exponent(),
                items=losses,
                is_exponent=True,
            )
        ]
        if has_reference:
            for name, parts in (("KL", self.divergences), ("top-1 agreement", self.agreements)):
                items = _means(parts)
                rows.append(Measure(name=name, interval=mean_interval(items), items=items))
        return rows

    def details(self, has_reference: bool) -> dict[str, object]:
        found: dict[str, object] = {"tokens": int(sum(len(p) for t in self.losses for p in t))}
        if has_reference:
            every = np.concatenate([part for text in self.divergences for part in text])
            found["KL p99"] = float(np.quantile(every, 0.99))
            found["KL max"] = float(every.max())
        return found


def _means(parts: Parts) -> list[float]:
    return [float(np.concatenate(text).astype(np.float64).mean()) for text in parts]
