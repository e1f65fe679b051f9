"""The ladder as a table in the terminal, and the figures that table and page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nonet.bench.ladder.result import Climb, Measured

__all__ = ["Step", "base", "steps", "table", "within_spread"]


@dataclass(frozen=True, slots=True)
class Step:
    """One line: a configuration beside the base and the rung below it. Factors are of output tokens per second."""

    measured: Measured
    over_base: float | None
    over_below: float | None  # None within the spread: no difference was shown
    cost_per_million: float | None


def steps(climb: Climb) -> list[Step]:
    """The cumulative rungs, anchors first."""
    first = base(climb)
    found = []
    below: Measured | None = None
    for one in (*climb.anchors, *climb.rungs):
        is_rung = one in climb.rungs
        found.append(
            Step(
                one,
                _ratio(one, first),
                _shown(one, below) if is_rung else None,
                one.cost_per_million(climb.price_per_hour),
            )
        )
        below = one if is_rung else below
    return found


def base(climb: Climb) -> Measured | None:
    """What factors are quoted over: the first rung, or an anchor that is faster, so that no baseline is a straw man."""
    candidates = [one for one in (*climb.rungs[:1], *climb.anchors) if one.runs]
    return max(candidates, key=lambda one: one.tokens_per_s, default=None)


def within_spread(one: Measured, other: Measured) -> bool:
    """Whether the runs of both overlap: then nothing is claimed."""
    if not one.rates or not other.rates:
        return True
    return max(min(one.rates), min(other.rates)) <= min(max(one.rates), max(other.rates))


def table(climb: Climb) -> str:
    """Cumulative rungs, then what the full stack loses without each."""
    lines = [
        f"{climb.model} · {climb.workload} · {climb.price_per_hour:g} per hour"
        + (f" · factors over {over.name}" if (over := base(climb)) is not None else "")
        + (f" · latencies at {climb.latency_rate_rps:.2f} requests/s" if climb.latency_rate_rps else ""),
        "",
    ]  # fmt: skip
    header = ("rung", "tok/s", "x base", "x below", "per M tok", "TTFT p50/p99 s", "TPOT p50/p99 ms",
              "goodput", "busy", "memory", "what it did")  # fmt: skip
    rows = [header, *(_row(step, climb) for step in steps(climb))]
    lines += _aligned(rows)
    if climb.without:
        full = climb.rungs[-1]
        lines += ["", "Full stack without one rung:", ""]
        left_out = [("left out", "tok/s", "of the full stack")]
        for one in climb.without:
            share = "none shown" if within_spread(one, full) else f"{_ratio(one, full) or 0:.2f}x"
            left_out.append((one.name, f"{one.tokens_per_s:,.0f}", one.error or share))
        lines += _aligned(left_out)
    return "\n".join(lines)


def _row(step: Step, climb: Climb) -> tuple[str, ...]:
    one = step.measured
    if not one.runs:
        return (one.name, "-", "-", "-", "-", "-", "-", "-", "-", "-", one.error or "")
    seen = one.latency
    words = one.error or one.proof or ""
    if one.quality:
        words += "; " + ", ".join(f"{name} {value:.4g}" for name, value in one.quality.items())
    elif one.name in climb.lossy:
        words += "; quality not measured"
    return (
        one.name,
        f"{one.tokens_per_s:,.0f}",
        _factor(step.over_base),
        "none shown" if step.over_below is None and one in climb.rungs[1:] else _factor(step.over_below),
        "-" if step.cost_per_million is None else f"{step.cost_per_million:.2f}",
        "-" if seen is None or seen.ttft_s is None else f"{seen.ttft_s.p50:.2f}/{seen.ttft_s.p99:.2f}",
        "-" if seen is None or seen.tpot_s is None else f"{1e3 * seen.tpot_s.p50:.0f}/{1e3 * seen.tpot_s.p99:.0f}",
        "-" if seen is None or seen.goodput_rps is None else f"{seen.goodput_rps:.2f}/s",
        f"{one.busy_share:.0%}",
        f"{one.peak_memory_bytes / 2**30:.2f} GiB",
        words,
    )  # fmt: skip


def _shown(one: Measured, below: Measured | None) -> float | None:
    if below is None or within_spread(one, below):
        return None
    return _ratio(one, below)


def _ratio(one: Measured, other: Measured | None) -> float | None:
    if other is None or not other.tokens_per_s or not one.tokens_per_s:
        return None
    return one.tokens_per_s / other.tokens_per_s


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
