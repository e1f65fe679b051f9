"""What every engine is asked to do, and the clock around it; standard library only, as it runs in every peer's venv.

An engine is a function `generate(prompts, output_tokens) -> tokens made`. Each case is timed twice per repeat: once for
all output tokens and once for a single one, which is the prefill. Then, over the medians:

    prefill = prompt tokens / time of one token each
    total   = output tokens / time of all
    decode  = output tokens but the first / (time of all - time of one)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case", "CaseResult", "Generate", "Job", "measure", "run_peer"]

Generate = Callable[[list[list[int]], int], int]


@dataclass(frozen=True)
class Case:
    """`num_prompts` prompts of `prompt_tokens` tokens at once, `output_tokens` from each."""

    name: str
    num_prompts: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Job:
    """One process: one engine with one model in one weight format, all cases."""

    model_path: str
    weights: str
    threads: int
    cases: list[Case]
    repeats: int
    seed: int
    lowest_id: int  # prompts are drawn from [lowest_id, highest_id): ordinary tokens of every model compared
    highest_id: int

    @property
    def max_model_len(self) -> int:
        """Room for the longest case, in whole blocks of any usual size."""
        longest = max(case.prompt_tokens + case.output_tokens for case in self.cases)
        return (longest + 8 + 127) // 128 * 128

    @property
    def max_num_seqs(self) -> int:
        return max(case.num_prompts for case in self.cases)


@dataclass(frozen=True)
class CaseResult:
    """Rates in tokens per second, from medians, with the times behind them."""

    name: str
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    total_tokens_per_s: float | None
    full_s: list[float]
    first_s: list[float]


def run_peer(start: Callable[[Job], tuple[Generate, str]]) -> None:
    """The main function of a peer's module: `start` loads the model and returns its `generate` and its version."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    args = parser.parse_args()
    fields = json.loads(args.job.read_text())
    job = Job(**{**fields, "cases": [Case(**case) for case in fields["cases"]]})
    began = time.perf_counter()
    generate, version = start(job)
    load_s = time.perf_counter() - began
    cases = [dataclasses.asdict(one) for one in measure(generate, job)]
    args.result.write_text(json.dumps({"version": version, "load_s": load_s, "cases": cases}))


def measure(generate: Generate, job: Job) -> list[CaseResult]:
    """Warm up with every shape, then time every case `repeats` times on fresh prompts."""
    for case in job.cases:
        _time(generate, _prompts(job, case, "warm-up"), case.output_tokens)
        _time(generate, _prompts(job, case, "warm-up one"), 1)
    return [_measure_case(generate, job, case) for case in job.cases]


def _measure_case(generate: Generate, job: Job, case: Case) -> CaseResult:
    first_s = []
    full_s = []
    for repeat in range(job.repeats):
        first_s.append(_time(generate, _prompts(job, case, f"{repeat} one"), 1))
        if case.output_tokens > 1:
            full_s.append(_time(generate, _prompts(job, case, f"{repeat} all"), case.output_tokens))
    first = statistics.median(first_s)
    prefill = case.num_prompts * case.prompt_tokens / first
    if not full_s:
        return CaseResult(case.name, prefill, None, None, full_s, first_s)
    full = statistics.median(full_s)
    total = case.num_prompts * case.output_tokens / full
    # A noisy machine can make one token look as slow as all of them; then there is no decode rate.
    decode = case.num_prompts * (case.output_tokens - 1) / (full - first) if full > first else None
    return CaseResult(case.name, prefill, decode, total, full_s, first_s)


def _prompts(job: Job, case: Case, part: str) -> list[list[int]]:
    """Random token ids, equal for every engine, new for every use, so that no cache can help."""
    stream = random.Random(f"{job.seed} {case.name} {part}")
    return [
        [stream.randrange(job.lowest_id, job.highest_id) for _ in range(case.prompt_tokens)]
        for _ in range(case.num_prompts)
    ]


def _time(generate: Generate, prompts: list[list[int]], output_tokens: int) -> float:
    began = time.perf_counter()
    made = generate(prompts, output_tokens)
    elapsed = time.perf_counter() - began
    if made != len(prompts) * output_tokens:
        raise RuntimeError(f"asked for {len(prompts) * output_tokens} tokens, got {made}")
    return elapsed
