"""Two-choice questions about everyday physics, answered by which ending the model finds more likely.

Idea: log likelihood of " solution" after "Question: goal\nAnswer:", as it is and divided by the solution's length in
characters. Reference: PIQA (arXiv 1911.11641), scored as EleutherAI's evaluation harness does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nonet.bench.quality.base import Measure, Spelling, Subject, TaskResult
from nonet.bench.quality.data import digest, read_lines, sample
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.statistics import share_interval
from nonet.core.outputs import RequestOutput
from nonet.core.sampling_params import SamplingParams

__all__ = ["Piqa", "choose"]

DATA = "piqa/valid.jsonl"


class Piqa:
    """Accuracy of the likelier and of the likelier per character."""

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `piqa:n=...,seed=...`."""

        n: int = 200
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self._config = config

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult:
        items = sample(read_lines(environ, DATA), self._config.n, self._config.seed)
        contexts = [f"Question: {item['goal']}\nAnswer:" for item in items]
        choices = [[f"{item['sol1']}", f"{item['sol2']}"] for item in items]
        scores = _scores(subject, contexts, choices)
        labels = [item["label"] for item in items]
        raw, by_length = [], []
        for two, ends, label in zip(scores, choices, labels, strict=True):
            raw.append(choose(two) == label)
            per_character = [s / len(end) for s, end in zip(two, ends, strict=True)]
            by_length.append(choose(per_character) == label)
        measures = [
            Measure(name=name, interval=share_interval(hits), items=[float(hit) for hit in hits])
            for name, hits in (("accuracy", raw), ("accuracy by length", by_length))
        ]
        return TaskResult(
            measures=measures, data=DATA, sha256=digest(items), details={"scores": scores}
        )


def choose(scores: Sequence[float]) -> int:
    """The best one, the first of equals."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def _scores(
    subject: Subject, contexts: Sequence[str], choices: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Log likelihood of each ending after its context."""
    prompts: list[list[int]] = []
    starts: list[int] = []
    for context, ends in zip(contexts, choices, strict=True):
        for end in ends:
            ids, start = _joined(subject.spelling, context, f" {end}")
            prompts.append(ids)
            starts.append(start)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    outputs = subject.generate(prompts, params)
    sums = [_sum_from(one, start) for one, start in zip(outputs, starts, strict=True)]
    width = len(choices[0])
    return [sums[at : at + width] for at in range(0, len(sums), width)]


def _joined(spelling: Spelling, context: str, end: str) -> tuple[list[int], int]:
    """Ids of both together, and where the ending begins: after as many ids as the context alone has."""
    whole = spelling.encode(context + end)
    return whole, len(spelling.encode(context))


def _sum_from(output: RequestOutput, start: int) -> float:
    rows = output.prompt_logprobs
    assert rows is not None, "prompt log probabilities were asked for"
    return sum(row.logprob for row in rows[start:] if row is not None)
