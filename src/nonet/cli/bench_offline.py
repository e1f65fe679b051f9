"""`nonet bench offline`: throughput in this process, all requests handed over at once."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated

import msgspec
from cyclopts import Parameter

from nonet.cli.bench_flags import JsonFile, WorkloadFlags, publish
from nonet.cli.flags import ENGINE, configured
from nonet.cli.terminal import progress
from nonet.config.load import Loaded
from nonet.config.machine import Machine
from nonet.config.schema import Config
from nonet.core.errors import ConfigError

__all__ = ["command"]


def bench_offline(
    loaded: Loaded,
    *,
    work: WorkloadFlags | None = None,
    repeats: Annotated[int, Parameter(help="measured runs")] = 3,
    warm_up: Annotated[
        int, Parameter(help="requests of the workload to run first, unmeasured")
    ] = 4,
    json: JsonFile = None,
) -> int:
    """Throughput in process, all requests at once."""
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; give at least 1")
    from nonet.bench.offline import run_offline
    from nonet.bench.report import make_report
    from nonet.bench.workload import Workload
    from nonet.engine.llm import LLM

    config, notes = _for_measuring(loaded)
    with progress("loading", "layers") as show:
        llm = LLM(config=config, load_progress=show)
    with llm:
        resolved = llm.resolved
        workload = (work or WorkloadFlags()).make(
            max_model_len=resolved.max_model_len, vocab_size=llm.spec.vocab_size
        )
        warm = Workload("warm-up", workload.items[:warm_up])
        if warm.items:
            run_offline(llm, warm)
        measured = [run_offline(llm, workload) for _ in range(repeats)]
    report = make_report(
        kind="offline",
        command=sys.argv,
        machine=Machine.detect(),
        config=msgspec.to_builtins(resolved),
        workload=workload,
        arrivals="all at once",
        limits=None,
        warm_up_requests=len(warm.items),
        runs=[summary for summary, _ in measured],
        requests=[times for _, times in measured],
        notes=notes,
    )
    publish(report, json)
    return 0


command = configured(bench_offline, *ENGINE, model_first=True)


def _for_measuring(loaded: Loaded) -> tuple[Config, list[str]]:
    """Repeats send the same prompts, so the prefix cache would answer for the model; off unless it was asked for."""
    if "cache.prefix_cache" in loaded.sources:
        reuse = loaded.config.cache.prefix_cache
        return loaded.config, ["prefix cache on: repeats reuse the KV of earlier ones"] * reuse
    cache = replace(loaded.config.cache, prefix_cache=False)
    return replace(loaded.config, cache=cache), [
        "prefix cache off, as repeats send the same prompts"
    ]
