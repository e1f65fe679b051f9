"""What `nonet ladder` can be told besides the engine's own options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from nonet.bench.ladder.recorded import read_jsonl
from nonet.bench.ladder.workload import mixed, sample, synthetic
from nonet.bench.workload import Workload, data_folder
from nonet.core.errors import ConfigError

__all__ = ["LadderFlags"]

_WHAT = Group("Ladder", sort_key=50)
_HOW = Group("Measuring", sort_key=51)
WORKLOADS = ("sample", "mixed", "synthetic")


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class LadderFlags:
    """What is climbed, and how often each rung is measured."""

    price: Annotated[float, Parameter(help="of the machine per hour", group=_WHAT)] = 1.0
    workload: Annotated[
        str,
        Parameter(
            help="sample, mixed (from NONET_DATA), synthetic (token ids), or a JSONL file; auto: synthetic for dummy "
            "weights, else mixed where NONET_DATA is set, else sample",
            group=_WHAT,
        ),
    ] = "auto"
    num_requests: Annotated[int, Parameter(help="of the workloads made here", group=_WHAT)] = 64
    workload_seed: Annotated[int, Parameter(help="of the workloads made here", group=_WHAT)] = 0
    scale: Annotated[
        float,
        Parameter(help="lengths of the workloads made here are multiplied by it", group=_WHAT),
    ] = 1.0
    rungs: Annotated[
        tuple[str, ...], Parameter(help="only these, besides the first", group=_WHAT)
    ] = ()
    leave_out: Annotated[
        bool, Parameter(help="also the full stack without each rung", group=_WHAT)
    ] = True
    quality: Annotated[
        bool, Parameter(help="measure what lossy rungs cost in quality", group=_WHAT)
    ] = True
    batch_tier: Annotated[
        bool,
        Parameter(help="also what work that may wait saves beside online traffic", group=_WHAT),
    ] = True
    anchor: Annotated[
        Literal["huggingface", "none"], Parameter(help="what stands outside", group=_WHAT)
    ] = "huggingface"
    repeats: Annotated[int, Parameter(help="most runs of each rung", group=_HOW)] = 3
    rung_s: Annotated[
        float | None,
        Parameter(help="seconds after which a rung's runs are not repeated", group=_HOW),
    ] = None
    budget_s: Annotated[
        float | None,
        Parameter(
            help="seconds for the whole climb; both ends come first, and what does not fit waits for the next run",
            group=_HOW,
        ),
    ] = None
    anchor_requests: Annotated[
        int | None, Parameter(help="the first requests only, for the anchor", group=_HOW)
    ] = None
    latency_requests: Annotated[
        int, Parameter(help="requests of the latency pass; 0 leaves it out", group=_HOW)
    ] = 16
    max_ttft: Annotated[float, Parameter(help="seconds, for goodput", group=_HOW)] = 5.0
    max_tpot: Annotated[float, Parameter(help="seconds, for goodput", group=_HOW)] = 0.2
    out: Annotated[Path, Parameter(help="folder of the results", group=_HOW)] = Path("ladder")

    def check(self) -> None:
        """ConfigError for a number that no ladder can be climbed with."""
        for name in ("price", "scale", "max_ttft", "max_tpot", "rung_s", "budget_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value:g}; give a number above 0")
        for name in ("num_requests", "repeats", "anchor_requests"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; give at least 1")
        if self.latency_requests < 0:
            raise ConfigError(f"latency_requests is {self.latency_requests}; give 0 or more")

    def make(self, *, dummy_weights: bool, vocab_size: int) -> Workload:
        """The requests that these flags stand for."""
        kind = self.workload
        if kind == "auto":
            is_here = bool(os.environ.get("NONET_DATA"))
            kind = "synthetic" if dummy_weights else "mixed" if is_here else "sample"
        count, seed, scale = self.num_requests, self.workload_seed, self.scale
        if kind == "synthetic":
            return synthetic(count, seed=seed, scale=scale, vocab_size=vocab_size)
        if kind == "sample":
            return sample(count, seed=seed, scale=scale)
        if kind == "mixed":
            folder = data_folder(os.environ, "the data sets that the README of benchmarks names")
            return mixed(folder, count, seed=seed, scale=scale)
        if not Path(kind).exists():
            raise ConfigError(
                f"no workload {kind!r}; give {', '.join(WORKLOADS)}, or a JSONL file that exists"
            )
        return read_jsonl(Path(kind))
