"""Flags that both benchmarks share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from nonet.bench.plan import WorkloadName, WorkloadPlan, make_workload
from nonet.bench.report import Report, describe, write_report
from nonet.bench.workload import Workload
from nonet.cli.terminal import note

__all__ = ["JsonFile", "WorkloadFlags", "publish"]

_GROUP = Group("Workload", sort_key=50)

JsonFile = Annotated[Path | None, Parameter(help="write the whole result to this file")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFlags:
    """Which requests are sent."""

    workload: Annotated[
        WorkloadName,
        Parameter(help="mix of lengths by seed, or a trace from NONET_DATA", group=_GROUP),
    ] = "mix"
    num_requests: Annotated[int, Parameter(help="requests in a run", group=_GROUP)] = 64
    prompt_len: Annotated[
        str, Parameter(help="prompt tokens of the mix: a number, or least-most", group=_GROUP)
    ] = "128"
    output_len: Annotated[
        str, Parameter(help="output tokens of the mix: a number, or least-most", group=_GROUP)
    ] = "128"
    workload_seed: Annotated[int, Parameter(help="seed of lengths and ids", group=_GROUP)] = 0
    speed: Annotated[float, Parameter(help="a trace's times are divided by it", group=_GROUP)] = 1.0
    length_scale: Annotated[
        float, Parameter(help="a trace's lengths are multiplied by it", group=_GROUP)
    ] = 1.0

    def make(self, *, max_model_len: int, vocab_size: int) -> Workload:
        """The requests that these flags stand for, fitted to the model."""
        plan = WorkloadPlan(
            workload=self.workload,
            num_requests=self.num_requests,
            prompt_len=self.prompt_len,
            output_len=self.output_len,
            seed=self.workload_seed,
            speed=self.speed,
            length_scale=self.length_scale,
        )
        return make_workload(plan, os.environ, max_model_len=max_model_len, vocab_size=vocab_size)


def publish(report: Report, file: Path | None) -> None:
    """Print the report, and write it where asked."""
    print(describe(report))
    if file is not None:
        write_report(report, file)
        note(f"written to {file}")
