"""`nonet bench roofline`: how near to the limits of this device a model runs, in prefill and decode."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Group, Parameter

from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.bench.roofline.measure import Cases, measure_points
from nonet.bench.roofline.picture import draw
from nonet.bench.roofline.report import describe
from nonet.bench.roofline.result import Peaks, Point, Roofline
from nonet.bench.roofline.work import ModelWork
from nonet.cli.bench_flags import JsonFile
from nonet.cli.flags import ENGINE, configured
from nonet.cli.terminal import note, progress
from nonet.config.load import Loaded
from nonet.config.machine import Machine
from nonet.config.resolved import Resolved
from nonet.config.schema import Config
from nonet.core.errors import ConfigError

__all__ = ["command"]

_GROUP = Group("Points", sort_key=50)

# Prompt tokens held at once, and contexts, where none are asked for.
MOST_TOKENS = {"cuda": 300_000, "cpu": 8_000}
CONTEXTS = {"cuda": "512,2048,8192", "cpu": "128,512"}


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineFlags:
    """Which points are measured."""

    batches: Annotated[str, Parameter(help="sequences in a step, as in 1,8,32", group=_GROUP)] = (
        "1,8,32,64,128,256"
    )
    contexts: Annotated[
        str | None,
        Parameter(help="prompt lengths, as in 512,2048; by device when unset", group=_GROUP),
    ] = None
    steps: Annotated[int, Parameter(help="decode steps timed for each point", group=_GROUP)] = 32
    most_tokens: Annotated[
        int | None,
        Parameter(help="prompt tokens held at once; larger points are left out", group=_GROUP),
    ] = None
    budget_s: Annotated[
        float, Parameter(help="seconds after which no point is begun", group=_GROUP)
    ] = 300.0

    def cases(self, device: str) -> Cases:
        """What they stand for on this device; ConfigError for what cannot be."""
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; give at least 1")
        return Cases(
            batches=parse_counts("batches", self.batches),
            contexts=parse_counts("contexts", self.contexts or CONTEXTS[device]),
            steps=self.steps,
            most_tokens=self.most_tokens or MOST_TOKENS[device],
            budget_s=self.budget_s,
        )


def bench_roofline(
    loaded: Loaded,
    *,
    points: RooflineFlags | None = None,
    json: JsonFile = None,
    svg: Annotated[Path | None, Parameter(help="draw the roofline into this file")] = None,
) -> int:
    """Prefill and decode against the measured peaks of the device."""
    import torch

    from nonet.bench.device.ceilings import measure_ceilings
    from nonet.engine.llm import LLM
    from nonet.engine.prepare import resolve_config

    flags = points or RooflineFlags()
    config = _for_measuring(loaded, flags)
    device = resolve_config(config)[0].device
    cases = flags.cases(device)
    ceilings = measure_ceilings(torch.device(device))
    with progress("loading", "layers") as show:
        llm = LLM(config=config, load_progress=show)
    with llm:
        peaks = _peaks(llm.resolved, ceilings.flops_per_s, ceilings.copy_bytes_per_s)
        work = ModelWork(llm.spec, llm.resolved)
        measured, left_out = measure_points(llm.engine, work, peaks, cases, show=_note)
    found = Roofline(
        model=llm.resolved.served_name,
        command=sys.argv,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=source_commit(),
        device=device_facts(Machine.detect()),
        libraries=library_versions(),
        config=msgspec.to_builtins(llm.resolved),
        peaks=peaks,
        all_peaks=msgspec.to_builtins(ceilings),
        points=measured,
        left_out=left_out,
    )
    print(describe(found))
    for file, text in ((json, _text(found)), (svg, draw(found))):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            note(f"written to {file}")
    return 0


command = configured(bench_roofline, *ENGINE, model_first=True)


def parse_counts(what: str, text: str) -> list[int]:
    """
    >>> parse_counts("batches", "1,8")
    [1, 8]
    """
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"{what} is {text!r}; give whole numbers with commas, as in 1,8,32"
        ) from None
    if min(counts) < 1:
        raise ConfigError(f"{what} is {text!r}; every number must be at least 1")
    return counts


def _for_measuring(loaded: Loaded, flags: RooflineFlags) -> Config:
    """Nothing shared between prompts, and seats for the largest batch, unless they were asked for otherwise."""
    config = loaded.config
    if "cache.prefix_cache" not in loaded.sources:
        config = replace(config, cache=replace(config.cache, prefix_cache=False))
    if "scheduler.max_num_seqs" not in loaded.sources:
        seats = max(parse_counts("batches", flags.batches))
        config = replace(config, scheduler=replace(config.scheduler, max_num_seqs=seats))
    return config


def _peaks(resolved: Resolved, measured: dict[str, float], copy_bytes_per_s: float) -> Peaks:
    """A GPU is held to the product of the model's own numbers, a CPU to the fastest: its kernels choose freely."""
    arithmetic = "float8" if resolved.weight_format.startswith("fp8") else resolved.dtype
    if resolved.device == "cpu" or arithmetic not in measured:
        arithmetic = max(measured, key=lambda name: measured[name])
    return Peaks(
        arithmetic=arithmetic,
        flops_per_s=measured[arithmetic],
        bytes_per_s=copy_bytes_per_s,
    )


def _note(point: Point) -> None:
    note(f"{point.phase} {point.batch} x {point.context}: {1e3 * point.seconds:.2f} ms")


def _text(found: object) -> str:
    return msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n"
