"""One line among hundreds: the number in a register that was named at the end of a long record.

Idea: greedy answer to the data set's own prompt; right when it holds the number. Lengths beyond the context are left
out and named. Reference: LongEval of LongChat (LMSYS 2023), lines of 200 to 1,100, about 5k to 26k tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nonet.bench.quality.base import Measure, Subject, TaskResult
from nonet.bench.quality.data import digest, read_lines, sample
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.statistics import share_interval
from nonet.core.errors import ConfigError
from nonet.core.sampling_params import SamplingParams

__all__ = ["LongEval"]

SIZES = (200, 400, 680, 1100)


class LongEval:
    """The share of numbers found, in all and by length."""

    @dataclass(frozen=True, slots=True)
    class Config:
        """Knobs of `longeval:n=...,max_tokens=...,seed=...`."""

        n: int = 10  # of each length
        max_tokens: int = 48
        seed: int = 0

    def __init__(self, config: Config) -> None:
        self._config = config

    def measure(
        self, subject: Subject, environ: Mapping[str, str], store: DistributionStore
    ) -> TaskResult:
        knobs = self._config
        found: dict[str, list[bool]] = {}
        left_out: list[str] = []
        used: list[dict[str, object]] = []
        for size in SIZES:
            items = sample(read_lines(environ, f"longeval/lines_{size}.jsonl"), knobs.n, knobs.seed)
            prompts = [str(item["prompt"]) for item in items]
            longest = max(len(subject.spelling.encode(prompt)) for prompt in prompts)
            # A chat template adds a few dozen tokens around the message.
            if longest + knobs.max_tokens + 64 > subject.max_model_len:
                left_out.append(f"{size} lines, up to {longest} tokens")
                continue
            params = SamplingParams(temperature=0.0, max_tokens=knobs.max_tokens)
            answers = subject.ask(prompts, [params] * len(prompts))
            found[str(size)] = [
                str(item["expected_number"]) in answer.text
                for item, answer in zip(items, answers, strict=True)
            ]
            used += items
        if not found:
            raise ConfigError(
                f"longeval: the context of {subject.max_model_len} holds none of: {'; '.join(left_out)}; raise "
                "max_model_len, or measure passkey"
            )
        rows = [("found", [hit for hits in found.values() for hit in hits])]
        rows += [(f"found in {size} lines", hits) for size, hits in found.items() if len(found) > 1]
        return TaskResult(
            measures=[
                Measure(
                    name=name, interval=share_interval(hits), items=[float(hit) for hit in hits]
                )
                for name, hits in rows
            ],
            data="longeval/lines_*.jsonl",
            sha256=digest(used),
            notes=[f"beyond the context, left out: {'; '.join(left_out)}"] if left_out else [],
        )
