"""A result that can be judged later: figures with the command, commit, configuration, device and versions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from nonet.bench.metrics import Limits, Quantiles, RequestTimes, Summary, percentile
from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.bench.workload import Workload
from nonet.config.machine import Machine
from nonet.core.errors import ConfigError

__all__ = ["Report", "Spread", "describe", "make_report", "spread", "write_report"]

SECRET_FLAGS = ("--api-key", "--api-keys")


class WorkloadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Enough to make the same requests again, and to see that they are the same."""

    name: str
    sha256: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    made_with: dict[str, int | float | str]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """One figure over repeated runs."""

    median: float
    least: float
    most: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    kind: str  # "offline" or "serve"
    started_at: str
    command: list[str]
    commit: str | None
    device: dict[str, str | int | None]
    libraries: dict[str, str]
    config: dict[str, object]  # resolved, or what a server told of itself
    workload: WorkloadFacts
    arrivals: str
    limits: dict[str, float | None] | None
    warm_up_requests: int
    runs: list[Summary]
    output_tokens_per_s: Spread
    requests: list[list[RequestTimes]]  # per run
    notes: list[str] = []


def make_report(
    *,
    kind: str,
    command: Sequence[str],
    machine: Machine,
    config: dict[str, object],
    workload: Workload,
    arrivals: str,
    limits: Limits | None,
    warm_up_requests: int,
    runs: list[Summary],
    requests: list[list[RequestTimes]],
    notes: list[str],
) -> Report:
    """The report of finished runs; commit and versions are looked up here."""
    return Report(
        kind=kind,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_without_secrets(command),
        commit=source_commit(),
        device=device_facts(machine),
        libraries=library_versions(),
        config=config,
        workload=WorkloadFacts(
            name=workload.name,
            sha256=workload.digest(),
            num_requests=len(workload.items),
            prompt_tokens=workload.prompt_tokens,
            output_tokens=workload.output_tokens,
            made_with=workload.facts,
        ),
        arrivals=arrivals,
        limits=None if limits is None else msgspec.to_builtins(limits),
        warm_up_requests=warm_up_requests,
        runs=runs,
        output_tokens_per_s=spread([run.output_tokens_per_s for run in runs]),
        requests=requests,
        notes=notes,
    )


def spread(values: Sequence[float]) -> Spread:
    """
    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, least=1.0, most=3.0)
    """
    ordered = sorted(values)
    return Spread(median=percentile(ordered, 0.5), least=ordered[0], most=ordered[-1])


def write_report(report: msgspec.Struct, file: Path) -> None:
    """JSON, indented but for the raw times."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None


def describe(report: Report) -> str:
    """The report for a terminal."""
    work = report.workload
    lines = [
        f"workload   {work.name}, {work.num_requests} requests, {work.prompt_tokens} prompt and "
        f"{work.output_tokens} output tokens, sha256 {work.sha256[:12]}",
        f"made with  {', '.join(f'{name} {value}' for name, value in work.made_with.items())}",
        f"arrivals   {report.arrivals}; {report.warm_up_requests} requests to warm up",
    ]
    lines += [f"note       {note}" for note in report.notes]
    for number, run in enumerate(report.runs, start=1):
        lines.append(f"run {number}")
        lines += [f"  {line}" for line in _run_lines(run)]
    if len(report.runs) > 1:
        over = report.output_tokens_per_s
        lines.append(
            f"output tokens/s over {len(report.runs)} runs: median {over.median:.1f}, "
            f"{over.least:.1f} to {over.most:.1f}"
        )
    return "\n".join(lines)


def _run_lines(run: Summary) -> list[str]:
    lines = [
        f"{run.num_requests - run.num_failed} of {run.num_requests} requests in {run.duration_s:.2f} s, "
        f"{run.requests_per_s:.2f} requests/s",
        f"{run.output_tokens_per_s:.1f} output tokens/s, {run.total_tokens_per_s:.1f} with prompt tokens",
    ]
    if run.cached_tokens:
        lines.append(
            f"{run.cached_tokens} of {run.prompt_tokens} prompt tokens from the prefix cache"
        )
    if run.goodput_rps is not None:
        lines.append(f"goodput {run.goodput_rps:.2f} requests/s within the limits")
    rows = (
        ("TTFT", run.ttft_s), ("TPOT", run.tpot_s), ("ITL", run.itl_s), ("E2E", run.e2e_s),
        ("send lag", run.send_lag_s),
    )  # fmt: skip
    shown = [(name, row) for name, row in rows if row is not None]
    if shown:
        lines.append(f"{'ms':<10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}{'mean':>10}")
        lines += [f"{name:<10}{_quantile_cells(row)}" for name, row in shown]
    return lines


def _quantile_cells(row: Quantiles) -> str:
    cells = (row.p50, row.p90, row.p99, row.max, row.mean)
    return "".join(f"{1000 * value:>10.1f}" for value in cells)


def _without_secrets(command: Sequence[str]) -> list[str]:
    shown: list[str] = []
    hide = False
    for word in command:
        flag, equals, _ = word.partition("=")
        shown.append("***" if hide else f"{flag}=***" if equals and flag in SECRET_FLAGS else word)
        hide = word in SECRET_FLAGS
    return shown
