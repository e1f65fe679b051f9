"""llama.cpp through its own benchmark programs, which make their own prompts and time prefill and decode apart.

Prefill of one prompt and decode of one sequence come from llama-bench, batches from llama-batched-bench.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

from peers.cases import Case, CaseResult, Job

__all__ = ["measure"]


def measure(
    job: Job, programs: Path, version: str, before_each: Callable[[], None]
) -> dict[str, object]:
    """All cases of `job`; `before_each` is called before every process (to wait for an idle machine)."""
    results = []
    for case in job.cases:
        measured = _measure_single if case.num_prompts == 1 else _measure_batch
        results.append(measured(job, case, programs, before_each))
    return {"version": version, "load_s": None, "cases": [_as_dict(one) for one in results]}


def _measure_single(
    job: Job, case: Case, programs: Path, before_each: Callable[[], None]
) -> CaseResult:
    """A case that makes one token is a prefill; another is a decode at the depth of its prompt."""
    is_prefill = case.output_tokens == 1
    shape = ["-p", str(case.prompt_tokens), "-n", "0"]
    if not is_prefill:
        shape = ["-p", "0", "-n", str(case.output_tokens), "-d", str(case.prompt_tokens)]
    before_each()
    command = [
        str(programs / "llama-bench"), "-m", job.model_path, "-t", str(job.threads),
        "-r", str(job.repeats), "-o", "json", *shape,
    ]  # fmt: skip
    (found,) = json.loads(_run(command))
    rate = statistics.median(found["samples_ts"])
    times = [nanoseconds / 1e9 for nanoseconds in found["samples_ns"]]
    if is_prefill:
        return CaseResult(case.name, rate, None, None, [], times)
    return CaseResult(case.name, None, rate, None, times, [])


def _measure_batch(
    job: Job, case: Case, programs: Path, before_each: Callable[[], None]
) -> CaseResult:
    context = case.num_prompts * (case.prompt_tokens + case.output_tokens) + 256
    command = [
        str(programs / "llama-batched-bench"), "-m", job.model_path, "-c", str(context),
        "-b", "2048", "-ub", "512", "-npp", str(case.prompt_tokens), "-ntg", str(case.output_tokens),
        "-npl", str(case.num_prompts), "-t", str(job.threads), "-tb", str(job.threads),
        "--output-format", "jsonl",
    ]  # fmt: skip
    prefill_s = []
    decode_s = []
    for _ in range(job.repeats):
        before_each()
        lines = _run(command).splitlines()
        (found,) = [json.loads(line) for line in lines if line.startswith("{")]
        prefill_s.append(found["t_pp"])
        decode_s.append(found["t_tg"])
    full_s = [first + rest for first, rest in zip(prefill_s, decode_s, strict=True)]
    made = case.num_prompts * case.output_tokens
    return CaseResult(
        case.name,
        case.num_prompts * case.prompt_tokens / statistics.median(prefill_s),
        made / statistics.median(decode_s),
        made / statistics.median(full_s),
        full_s,
        prefill_s,
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout


def _as_dict(result: CaseResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in result.__dataclass_fields__}
