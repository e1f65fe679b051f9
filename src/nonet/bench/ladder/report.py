"""The ladder as a table in the terminal, and the figures that table and page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nonet.bench.ladder.result import Climb, Measured
from nonet.config.memory import show_bytes

__all__ = [
    "Step",
    "base",
    "differs",
    "goodput_words",
    "quality_words",
    "share_of_full",
    "steps",
    "table",
]


@dataclass(frozen=True, slots=True)
class Step:
    """One line: a configuration beside the bases and the rung below it. Factors are of output tokens per second."""

    measured: Measured
    over_base: float | None  # over the faster of the first rung and the anchors
    over_naive: float | None  # over the first rung
    over_below: float | None  # None within the spread: no difference was shown
    cost_per_million: float | None
    below: Measured | None


def steps(climb: Climb) -> list[Step]:
    """The cumulative rungs, anchors first. What was not measured, or did not act, is below nobody."""
    first = base(climb)
    naive = next((one for one in climb.rungs[:1] if one.is_shown), None)
    found = []
    below: Measured | None = None
    for one in (*climb.anchors, *climb.rungs):
        is_rung = one in climb.rungs
        shown = is_rung and below is not None and differs(climb, one, below)
        found.append(
            Step(
                measured=one,
                over_base=_ratio(one, first),
                over_naive=_ratio(one, naive),
                over_below=_ratio(one, below) if shown else None,
                cost_per_million=one.cost_per_million(climb.price_per_hour)
                if one.is_shown
                else None,
                below=below if is_rung else None,
            )
        )
        below = one if is_rung and one.is_shown else below
    return found


def base(climb: Climb) -> Measured | None:
    """What factors are quoted over: the first rung, or an anchor that is faster, so that no baseline is a straw man."""
    candidates = [one for one in (*climb.rungs[:1], *climb.anchors) if one.is_shown]
    return max(candidates, key=lambda one: one.tokens_per_s, default=None)


def differs(climb: Climb, one: Measured, other: Measured) -> bool:
    """Whether the runs of the two do not overlap; else nothing is claimed.

    What ran once is given the largest spread of those that ran more often; where nothing did, nothing is known.
    """
    if not one.is_shown or not other.is_shown:
        return False
    known = [spread for each in (*climb.anchors, *climb.rungs, *climb.without)
             if (spread := each.spread) is not None]  # fmt: skip
    if not known:
        return False
    (low, high), (other_low, other_high) = (_range(each, max(known)) for each in (one, other))
    return low > other_high or other_low > high


def share_of_full(climb: Climb, one: Measured) -> str:
    """What the full stack keeps without a rung, in words."""
    full = climb.rungs[-1]
    if one.error or one.skipped:
        return one.error or one.skipped or ""
    if not full.is_shown:
        return "the full stack was not measured"
    return f"{_ratio(one, full) or 0:.2f}x" if differs(climb, one, full) else "none shown"


def quality_words(climb: Climb, one: Measured) -> str:
    """The quality column: empty for what is lossless."""
    if one.quality:
        return ", ".join(f"{name} {value:.4g}" for name, value in one.quality.items())
    return "not measured" if one.name in climb.lossy else ""


def goodput_words(climb: Climb) -> str:
    """What a request must keep to count as goodput; "" where nothing was promised."""
    names = {"ttft_s": "TTFT", "tpot_s": "TPOT"}
    given = {names.get(name, name): limit for name, limit in climb.limits.items() if limit}
    return (
        "within " + ", ".join(f"{name} {limit:g} s" for name, limit in given.items())
        if given
        else ""
    )


def table(climb: Climb) -> str:
    """Cumulative rungs, then what the full stack loses without each."""
    over = base(climb)
    rate, scale = climb.latency_rate_rps, climb.workload_facts.get("scale")
    head = [
        climb.model, climb.workload, *([f"lengths times {scale:g}"] if scale not in (None, 1) else []),
        f"{climb.price_per_hour:g} per hour",
        *([f"factors over {over.name}"] if over is not None else []),
        f"latencies at {rate:.2f} requests/s" if rate else "latencies with all requests at once",
        *([f"goodput {promise}"] if (promise := goodput_words(climb)) else []),
    ]  # fmt: skip
    header = ("rung", "tok/s", "req/s", "x base", "x naive", "x below", "per M tok", "TTFT p50/p99 s",
              "TPOT p50/p99 ms", "goodput", "busy", "memory", "KV tokens", "what it did")  # fmt: skip
    lines = [
        " · ".join(head),
        "",
        *_aligned([header, *(_row(step, climb) for step in steps(climb))]),
    ]
    if climb.without:
        lines += ["", "Full stack without one rung:", ""]
        left_out = [("left out", "tok/s", "of the full stack")]
        left_out += [
            (one.name, f"{one.tokens_per_s:,.0f}" if one.runs else "-", share_of_full(climb, one))
            for one in climb.without
        ]
        lines += _aligned(left_out)
    remarks = [*climb.notes]
    if climb.batch_tier is not None:
        remarks.insert(0, climb.batch_tier.words(climb.price_per_hour))
    return "\n".join([*lines, *(["", *remarks] if remarks else [])])


def _row(step: Step, climb: Climb) -> tuple[str, ...]:
    one = step.measured
    if not one.runs:
        return (one.name, *["-"] * 12, one.error or one.skipped or "")
    words = one.error or "; ".join(filter(None, (one.proof, one.note)))
    if quality := quality_words(climb, one):
        words += f"; quality {quality}"
    is_equal = step.below is not None and one.is_shown and step.over_below is None
    seen = one.shown_latency if one.telemetry is not None else None
    return (
        one.name,
        f"{one.tokens_per_s:,.0f}",
        f"{one.requests_per_s:.2f}",
        _factor(step.over_base),
        _factor(step.over_naive),
        "none shown" if is_equal else _factor(step.over_below),
        "-" if step.cost_per_million is None else f"{step.cost_per_million:.3f}",
        "-" if seen is None or seen.ttft_s is None else f"{seen.ttft_s.p50:.2f}/{seen.ttft_s.p99:.2f}",
        "-" if seen is None or seen.tpot_s is None else f"{1e3 * seen.tpot_s.p50:.0f}/{1e3 * seen.tpot_s.p99:.0f}",
        "-" if seen is None or seen.goodput_rps is None else f"{seen.goodput_rps:.2f}/s",
        f"{one.busy_share:.0%}" if one.telemetry is not None else "-",
        show_bytes(one.peak_memory_bytes) if one.peak_memory_bytes else "-",
        f"{one.kv_tokens:,}" if one.kv_tokens else "-",
        words,
    )  # fmt: skip


def _range(one: Measured, spread: float) -> tuple[float, float]:
    if len(one.runs) > 1:
        return min(one.rates), max(one.rates)
    return one.tokens_per_s * (1 - spread), one.tokens_per_s * (1 + spread)


def _ratio(one: Measured, other: Measured | None) -> float | None:
    if other is None or not one.is_shown or not other.is_shown or not other.tokens_per_s:
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
