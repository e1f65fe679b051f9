"""One configuration behind a server of its own: all requests at once, repeated, then at their own times."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import psutil

from nonet.bench.arrivals import all_at_once, poisson, recorded
from nonet.bench.client import Target
from nonet.bench.http import get_text
from nonet.bench.ladder.result import Measured
from nonet.bench.ladder.telemetry import Telemetry, counters_between, parse_metrics
from nonet.bench.metrics import Limits, RequestTimes, Summary, summarise
from nonet.bench.serving import ask_model, measure, running_server
from nonet.bench.workload import WorkItem, Workload
from nonet.config.load import as_environment, load
from nonet.config.options import options
from nonet.config.resolved import Resolved
from nonet.config.schema import Config
from nonet.core.errors import ConfigError, NonetError

__all__ = [
    "Plan",
    "fresh_metrics",
    "latency_items",
    "measure_rung",
    "nonce",
    "refusal_of",
    "settled_metrics",
    "starting_server",
    "warm_up_items",
]

# The latency pass is a Poisson process at this share of what the first rung can serve, so that it overloads no rung.
LATENCY_LOAD = 0.7
ARRIVAL_SEED = 7
WARM_UP_OUTPUT = 16
# Longer than the engine waits between two reports, and how often to look before taking what is there.
SETTLING_S, SETTLING_READS = 0.3, 100
FRESH_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every rung is put through."""

    workload: Workload
    options: dict[str, str]  # of every rung: model, memory, context
    resolve: Callable[[Config], Resolved]  # finds the model and settles every automatic choice
    repeats: int
    limits: Limits
    latency_rate_rps: float | None = None  # None: this measurement sets it
    latency_requests: int = 0
    file: Path | None = None  # the user's configuration, below the options
    timeout_s: float = 1800.0
    rung_s: float | None = None  # no run is repeated once a rung's runs have taken that long


def refusal_of(settings: Mapping[str, str], plan: Plan) -> str | None:
    """Why no engine can have these settings; None when one can."""
    try:
        _resolved(settings, plan)
    except ConfigError as error:
        return str(error)
    return None


def measure_rung(name: str, settings: dict[str, str], plan: Plan) -> Measured:
    """A failure is in the result, never raised."""
    try:
        return _measure(name, settings, plan)
    except (NonetError, OSError) as error:
        return Measured(name=name, settings=settings, error=str(error) or type(error).__name__)


def _measure(name: str, settings: dict[str, str], plan: Plan) -> Measured:
    config, resolved = _resolved(settings, plan)
    with running_server(as_environment(config)) as url:
        target = _target(url, plan)
        with _PeakMemory(resolved.device) as memory:
            warm = warm_up_items(plan.workload, resolved.device)
            runs, requests, telemetry = _capacity(target, plan, warm)
        rate = plan.latency_rate_rps or LATENCY_LOAD * runs[0].requests_per_s
        latency = _latency(target, plan, rate) if plan.latency_requests and rate else None
    telemetry = msgspec.structs.replace(
        telemetry,
        config={
            key: value
            for key, value in msgspec.to_builtins(resolved).items()
            if key not in ("memory", "reasons", "groups")
        },
        memory=msgspec.to_builtins(resolved.memory),
        answers=dict(Counter(one.cache for one in requests if one.cache is not None)),
    )
    errors = sorted({one.error for one in requests if one.error is not None})
    duration_s = sum(run.duration_s for run in runs)
    return Measured(
        name=name,
        settings=settings,
        runs=runs,
        latency=latency,
        latency_rate_rps=rate if latency is not None else None,
        telemetry=telemetry,
        peak_memory_bytes=memory.peak_bytes,
        kv_tokens=resolved.num_blocks * resolved.block_size // len(resolved.groups),
        busy_share=telemetry.counters.get("nonet_busy_seconds", 0.0) / duration_s,
        error=_failures(errors),
    )


def _failures(errors: Sequence[str]) -> str | None:
    if not errors:
        return None
    more = f" (and {len(errors) - 1} other errors)" if len(errors) > 1 else ""
    return f"requests failed: {errors[0]}{more}"


@contextmanager
def starting_server(settings: dict[str, str], plan: Plan) -> Iterator[Target]:
    """A server with these settings, warm."""
    config, resolved = _resolved(settings, plan)
    with running_server(as_environment(config)) as url:
        target = _target(url, plan)
        warm = warm_up_items(plan.workload, resolved.device)
        _scrape(target, [nonce(item, "warm-up") for item in warm])
        yield target


def _resolved(settings: Mapping[str, str], plan: Plan) -> tuple[Config, Resolved]:
    config = load(environ=_environment({**plan.options, **settings}), file=plan.file).config
    return config, plan.resolve(config)


def _target(url: str, plan: Plan) -> Target:
    served = asyncio.run(ask_model(url))
    return Target(url, served.name, timeout_s=plan.timeout_s)


def _environment(given: dict[str, str]) -> dict[str, str]:
    """The process's environment with these options on top."""
    rows = options()
    return {**os.environ, **{rows[name].variable: value for name, value in given.items()}}


def _capacity(
    target: Target, plan: Plan, warm: Sequence[WorkItem]
) -> tuple[list[Summary], list[RequestTimes], Telemetry]:
    """All requests at once, `repeats` times; each run's texts differ, so that none can be answered from the last."""
    items = plan.workload.items
    before = _scrape(target, [nonce(item, "warm-up") for item in warm])
    runs: list[Summary] = []
    seen: list[RequestTimes] = []
    start = time.monotonic()
    for repeat in range(plan.repeats):
        if runs and plan.rung_s is not None and time.monotonic() - start > plan.rung_s:
            break
        fresh = Workload(plan.workload.name, tuple(nonce(item, f"run {repeat}") for item in items))
        requests = measure(target, fresh, all_at_once(fresh))
        runs.append(summarise(requests, plan.limits))
        seen += requests
    after = asyncio.run(settled_metrics(target))
    return runs, seen, Telemetry(counters=counters_between(before, after), gauges=after)


def warm_up_items(workload: Workload, device: str) -> list[WorkItem]:
    """Two requests where kernels are compiled; on a GPU all of them with short outputs.

    There a kernel is compiled, and a step recorded, when its size is first met; outputs end one after another, so that
    small batches are met too.
    """
    if device == "cpu":
        return list(workload.items[:2])
    return [
        replace(item, output_len=min(item.output_len, 1 + number % WARM_UP_OUTPUT))
        for number, item in enumerate(workload.items)
    ]


def _latency(target: Target, plan: Plan, rate_rps: float) -> Summary:
    """The first requests, at a rate that is the same for every rung."""
    items, due_s = latency_items(plan, rate_rps, "latency")
    return summarise(measure(target, Workload("latency", tuple(items)), due_s), plan.limits)


def latency_items(plan: Plan, rate_rps: float, run: str) -> tuple[list[WorkItem], list[float]]:
    """The first requests and when they are sent.

    Where the workload knows when its requests came, their gaps are kept and stretched to the rate.
    """
    items = [nonce(item, run) for item in plan.workload.items[: plan.latency_requests]]
    first = Workload("latency", tuple(items))
    span = items[-1].arrival_s - items[0].arrival_s
    if span <= 0:
        return items, poisson(first, rate_rps, ARRIVAL_SEED)
    stretch = len(items) / rate_rps / span
    return items, [at * stretch for at in recorded(first)]


def _scrape(target: Target, warm: Sequence[WorkItem]) -> dict[str, float]:
    first = Workload("warm-up", tuple(warm))
    measure(target, first, all_at_once(first))
    return asyncio.run(settled_metrics(target))


async def _metrics(target: Target) -> dict[str, float]:
    return parse_metrics(await get_text(target.url, "/metrics", target.api_key))


async def settled_metrics(
    target: Target, read: Callable[[Target], Awaitable[dict[str, float]]] = _metrics
) -> dict[str, float]:
    """The metrics once nothing runs: the engine tells them now and then, and a last time after the last answer."""
    before = await read(target)
    for _ in range(SETTLING_READS):
        await asyncio.sleep(SETTLING_S)
        now = await read(target)
        is_idle = not (now.get("nonet_running_sequences") or now.get("nonet_waiting_requests"))
        if is_idle and _engine_counts(now) == _engine_counts(before):
            break
        before = now
    return before


async def fresh_metrics(
    target: Target, read: Callable[[Target], Awaitable[dict[str, float]]] = _metrics
) -> dict[str, float]:
    """The metrics of the engine's next report, while it may go on; the last one's where no other comes: it is idle."""
    before = await read(target)
    for _ in range(round(SETTLING_S / FRESH_S)):
        await asyncio.sleep(FRESH_S)
        now = await read(target)
        if _engine_counts(now) != _engine_counts(before):
            return now
    return before


def _engine_counts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what reading the metrics changes."""
    return {name: value for name, value in metrics.items() if name != "nonet_http_responses"}


def nonce(item: WorkItem, run: str) -> WorkItem:
    """The same request in another run: sharing within a run stays, sharing between runs goes."""
    if not item.messages:
        return replace(item, extra={**item.extra, "cache_salt": run})
    first, *others = item.messages
    return replace(
        item,
        messages=({**first, "content": f"[{run}] {first['content']}"}, *others),
    )


class _PeakMemory:
    """Memory of the device while a server runs, sampled.

    On a CPU the resident memory of this process's descendants, where shared pages count once for each; of a GPU what
    its driver says is in use.
    """

    INTERVAL_S = 0.25

    def __init__(self, device: str) -> None:
        self.peak_bytes = 0
        self._read = _gpu_bytes if device == "cuda" else _resident_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._read())
            if self._stop.wait(self.INTERVAL_S):
                return


def _resident_bytes() -> int:
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _gpu_bytes() -> int:
    """0 where nvidia-smi does not answer."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return int(float(said.stdout.split()[0]) * 2**20)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0
