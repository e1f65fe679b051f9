"""The options of a benchmark, and the workload and arrival times that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nonet.bench.arrivals import all_at_once, poisson, recorded
from nonet.bench.workload import Workload, azure_trace, data_folder, mix, mooncake_trace
from nonet.core.errors import ConfigError

__all__ = ["WorkloadName", "WorkloadPlan", "arrival_times", "make_workload", "parse_range"]

WorkloadName = Literal[
    "mix", "azure-conv", "azure-code", "mooncake-conversation", "mooncake-synthetic"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadPlan:
    """Which requests: a mix of lengths by seed, or the first rows of a recorded trace."""

    workload: WorkloadName = "mix"
    num_requests: int = 64
    prompt_len: str = "128"  # one length, or least-most; for the mix
    output_len: str = "128"
    seed: int = 0
    speed: float = 1.0  # trace times are divided by it
    length_scale: float = 1.0  # trace lengths are multiplied by it


def make_workload(
    plan: WorkloadPlan, environ: Mapping[str, str], *, max_model_len: int, vocab_size: int
) -> Workload:
    """The requests of a plan, fitted to the model. ConfigError when the mix does not fit its context."""
    if plan.num_requests < 1:
        raise ConfigError(f"num_requests is {plan.num_requests}; give at least 1")
    if plan.workload == "mix":
        prompt, output = parse_range(plan.prompt_len), parse_range(plan.output_len)
        if prompt[1] + output[1] > max_model_len:
            raise ConfigError(
                f"prompts of {prompt[1]} and outputs of {output[1]} tokens exceed the context of "
                f"{max_model_len}; shorten them or raise max_model_len"
            )
        return mix(
            plan.num_requests, prompt=prompt, output=output, seed=plan.seed, vocab_size=vocab_size
        )
    trace, _, kind = plan.workload.partition("-")
    read = azure_trace if trace == "azure" else mooncake_trace
    return read(
        data_folder(environ),
        kind,
        num_requests=plan.num_requests,
        max_model_len=max_model_len,
        speed=plan.speed,
        length_scale=plan.length_scale,
        seed=plan.seed,
        vocab_size=vocab_size,
    )


def arrival_times(workload: Workload, rate: str, seed: int) -> tuple[str, list[float]]:
    """What `rate` stands for: a number is Poisson arrivals per second, "inf" all at once, "trace" the trace's own.

    Returns the description that goes into the report, and the times.
    """
    if rate == "trace":
        if "span_s" not in workload.facts:  # what traces state, even when all rows come at time 0
            raise ConfigError(f"workload {workload.name} has no times of its own; give a rate")
        return "recorded times", recorded(workload)
    if rate == "inf":
        return "all at once", all_at_once(workload)
    try:
        per_s = float(rate)
    except ValueError:
        raise ConfigError(f"rate is {rate!r}; give requests per second, inf or trace") from None
    return f"Poisson, {per_s:g} requests/s, seed {seed}", poisson(workload, per_s, seed)


def parse_range(text: str) -> tuple[int, int]:
    """
    >>> parse_range("32-1024"), parse_range("128")
    ((32, 1024), (128, 128))
    """
    least, dash, most = text.partition("-")
    try:
        return int(least), int(most) if dash else int(least)
    except ValueError:
        raise ConfigError(
            f"a length is {text!r}; give a number, or least-most as in 32-1024"
        ) from None
