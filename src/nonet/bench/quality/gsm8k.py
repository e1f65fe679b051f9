"""School mathematics: worked examples, then a question; the number after "####" must be right.

Idea: greedy completion after `shots` examples of the training set, cut where the next question would begin. "strict"
wants the marked number, "flexible" takes the last number there is.
Reference: GSM8K (arXiv 2110.14168). Models under a billion parameters get few right: compare configurations only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nonet.bench.quality.base import Measure, Subject, TaskResult
from nonet.bench.quality.data import digest, read_lines, sample
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.statistics import share_interval
from nonet.core.sampling_params import SamplingParams

__all__ = ["Gsm8k", "last_number", "marked_number"]

QUESTIONS, EXAMPLES = "gsm8k/test_half.jsonl", "gsm8k/train_800.jsonl"
NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"


class Gsm8k:
    """Exact match of one number."""

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `gsm8k:n=...,shots=...,max_tokens=...,seed=...`."""

        n: int = 50
        shots: int = 4
        max_tokens: int = 256
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self._config = config

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult:
        knobs = self._config
        items = sample(read_lines(environ, QUESTIONS), knobs.n, knobs.seed)
        examples = read_lines(environ, EXAMPLES)[: knobs.shots]
        shown = "".join(f"Question: {e['question']}\nAnswer: {e['answer']}\n\n" for e in examples)
        prompts = [
            subject.spelling.encode(f"{shown}Question: {item['question']}\nAnswer:")
            for item in items
        ]
        params = SamplingParams(
            temperature=0.0, max_tokens=knobs.max_tokens, stop=["\n\nQuestion:", "\nQuestion:"]
        )
        texts = [one.outputs[0].text for one in subject.generate(prompts, params)]
        truths = [marked_number(str(item["answer"])) for item in items]
        strict = [marked_number(text) == truth for text, truth in zip(texts, truths, strict=True)]
        flexible = [last_number(text) == truth for text, truth in zip(texts, truths, strict=True)]
        measures = [
            Measure(name=name, interval=share_interval(hits), items=[float(hit) for hit in hits])
            for name, hits in (("strict", strict), ("flexible", flexible))
        ]
        return TaskResult(
            measures=measures,
            data=QUESTIONS,
            sha256=digest([items, examples]),
            details={"answers": texts},
        )


def marked_number(text: str) -> str | None:
    """
    >>> marked_number("so 3 * 4 = 12\\n#### 1,200.00")
    '1200'
    """
    found = re.search(rf"####\s*({NUMBER})", text)
    return _plain(found.group(1)) if found else None


def last_number(text: str) -> str | None:
    """
    >>> last_number("she pays $18 for 2.50 each.")
    '2.5'
    """
    found = re.findall(NUMBER, text)
    return _plain(found[-1]) if found else None


def _plain(number: str) -> str:
    """Without signs of money, thousands and needless decimals."""
    cleaned = number.replace("$", "").replace(",", "")
    if "." in cleaned:
        cleaned = cleaned.rstrip("0").rstrip(".")
    return cleaned
