"""What every engine is asked to do, and the clock around it; standard library only, as it runs in every peer's venv.

An engine is a function `generate(prompts, output_tokens) -> tokens made`, behind a process that answers one request at
a time (`serve_peer`). In its turn it is timed twice: for a single token each, which is the prefill, and for all. Then

    prefill = prompt tokens / time of one token each
    total   = output tokens / time of all
    decode  = output tokens but the first / (time of all - time of one)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Case", "Generate", "Job", "Turn", "prompts_of", "serve_peer"]

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
    """One engine with one model in one weight format, all cases."""

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
class Turn:
    """One engine's time at one case: `first_s` for one token of each sequence, `full_s` for all tokens.

    None where it was not measured. `full_s` without `first_s` is decode alone (llama.cpp times it so).
    """

    first_s: float | None
    full_s: float | None

    def prefill(self, case: Case) -> float | None:
        """Prompt tokens per second."""
        return None if not self.first_s else case.num_prompts * case.prompt_tokens / self.first_s

    def total(self, case: Case) -> float | None:
        """Output tokens per second, prefill included."""
        if self.first_s is None or self.full_s is None:
            return None
        return case.num_prompts * case.output_tokens / self.full_s

    def decode(self, case: Case) -> float | None:
        """Output tokens per second after the first."""
        if self.full_s is None:
            return None
        if self.first_s is None:
            return case.num_prompts * case.output_tokens / self.full_s
        # A noisy machine can make one token look as slow as all of them; then there is no decode rate.
        rest_s = self.full_s - self.first_s
        return case.num_prompts * (case.output_tokens - 1) / rest_s if rest_s > 0 else None


def serve_peer(start: Callable[[Job], tuple[Generate, str]]) -> None:
    """The main function of a peer's module: load the model, then time what is asked for until nothing more comes.

    Requests and answers are lines of JSON on two pipes, as a library may write to standard output.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    parser.add_argument("requests", type=int, help="file descriptor to read")
    parser.add_argument("answers", type=int, help="file descriptor to write")
    args = parser.parse_args()
    fields = json.loads(args.job.read_text())
    job = Job(**{**fields, "cases": [Case(**case) for case in fields["cases"]]})
    cases = {case.name: case for case in job.cases}
    began = time.perf_counter()
    generate, version = start(job)
    with os.fdopen(args.requests) as requests, os.fdopen(args.answers, "w", 1) as answers:
        load_s = time.perf_counter() - began
        answers.write(json.dumps({"version": version, "load_s": load_s}) + "\n")
        for line in requests:
            asked = json.loads(line)
            prompts = prompts_of(job, cases[asked["case"]], asked["part"])
            elapsed = _time(generate, prompts, asked["output_tokens"])
            answers.write(json.dumps({"seconds": elapsed}) + "\n")


def prompts_of(job: Job, case: Case, part: str) -> list[list[int]]:
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
