"""The ladder as one page that needs no network: waterfall of cost, latency curves, quality, and all figures."""

from __future__ import annotations

from html import escape

from nonet.bench.ladder.charts import latency_curves, waterfall
from nonet.bench.ladder.report import (
    Step,
    base,
    goodput_words,
    quality_words,
    share_of_full,
    steps,
)
from nonet.bench.ladder.result import Climb
from nonet.config.memory import show_bytes

__all__ = ["page", "picture_page"]

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;width:100%;font-size:13px}th,td{text-align:left;padding:.35rem .5rem;vertical-align:top;
border-bottom:1px solid #ddd}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.err{color:#a40000}
svg{max-width:1040px;width:100%;height:auto}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}.dim{color:#666}
"""
PICTURE_STYLE = """
body{margin:12px;background:#fff;font:600 17px system-ui,sans-serif}svg{width:1040px;display:block}p{margin:4px 0 8px}
"""
COLUMNS = ("tokens/s", "spread", "requests/s", "x base", "x naive", "x below", "cost per M", "TTFT p50 s", "TTFT p99 s",
           "TPOT p50 ms", "TPOT p99 ms", "goodput/s", "busy", "peak memory", "KV tokens")  # fmt: skip


def page(climb: Climb) -> str:
    """The whole document. Every figure stands in the table, to the digits that it was rounded to."""
    title = f"nonet ladder: {climb.model}, {climb.workload}"
    device = ", ".join(
        f"{name} {value}" for name, value in climb.device.items() if value is not None
    )
    facts = ", ".join(f"{name} {value}" for name, value in climb.workload_facts.items())
    over = base(climb)
    heads = "".join(f'<th class="n">{column}</th>' for column in COLUMNS)
    rows = "\n".join(_row(step, climb) for step in steps(climb))
    notes = "".join(f"<p>{escape(text)}</p>" for text in climb.notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="dim">{escape(device)} · commit {escape(climb.commit or "unknown")} · workload {climb.workload_sha256[:12]}
({escape(facts)})</p>
{notes}
<h2>Cost of a million output tokens at {climb.price_per_hour:g} per hour</h2>
{waterfall(climb)}
<h2>Latency, rung by rung</h2>
<p class="dim">{_rate(climb)}</p>
{latency_curves(climb)}
<h2>Rungs, each on top of those above it</h2>
<p class="dim">Throughput: all requests at once, medians; spread: half the range of the runs. The base of factors
is {escape("missing" if over is None else over.name)}; a factor over the rung below is given only where the runs do not
overlap.{_promise(climb)}</p>
<table id="rungs"><thead><tr><th>rung</th>{heads}<th>what it did</th><th>quality</th></tr></thead><tbody>
{rows}
</tbody></table>
{_left_out(climb)}
{_batch_tier(climb)}
</body></html>
"""


def picture_page(climb: Climb) -> str:
    """The waterfall alone, with a line of words: what a README shows."""
    title = f"{climb.model}: cost of a million output tokens at {climb.price_per_hour:g} per hour"
    return f"""<!doctype html><meta charset="utf-8"><style>{PICTURE_STYLE}</style>
<p>{escape(title)}</p>{waterfall(climb)}
"""


def _rate(climb: Climb) -> str:
    if climb.latency_rate_rps:
        return f"Open loop at {climb.latency_rate_rps:.2f} requests per second, the same for every rung."
    return "With all requests at once: the time to the first token is mostly waiting."


def _promise(climb: Climb) -> str:
    words = goodput_words(climb)
    return f" Goodput: requests per second {escape(words)}." if words else ""


def _row(step: Step, climb: Climb) -> str:
    one = step.measured
    seen = one.shown_latency if one.telemetry is not None else None
    ttft, tpot = (seen.ttft_s, seen.tpot_s) if seen is not None else (None, None)
    is_equal = step.below is not None and one.is_shown and step.over_below is None
    numbers = (
        f"{one.tokens_per_s:.1f}" if one.runs else "-",
        "-" if one.spread is None else f"{one.spread:.1%}",
        f"{one.requests_per_s:.3f}" if one.runs else "-",
        _number(step.over_base, 2),
        _number(step.over_naive, 2),
        "none shown" if is_equal else _number(step.over_below, 2),
        _number(step.cost_per_million, 4),
        _number(ttft.p50 if ttft else None, 3),
        _number(ttft.p99 if ttft else None, 3),
        _number(1e3 * tpot.p50 if tpot else None, 1),
        _number(1e3 * tpot.p99 if tpot else None, 1),
        _number(seen.goodput_rps if seen else None, 2),
        f"{one.busy_share:.0%}" if one.telemetry else "-",
        show_bytes(one.peak_memory_bytes) if one.peak_memory_bytes else "-",
        f"{one.kv_tokens}" if one.kv_tokens else "-",
    )
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    wrong = one.error or one.skipped
    words = escape("; ".join(filter(None, (one.proof, one.note))))
    if wrong:
        words = f'<span class="err">{escape(wrong)}</span>'
    quality = escape(quality_words(climb, one))
    return f"<tr><td>{escape(one.name)}</td>{cells}<td>{words}</td><td>{quality}</td></tr>"


def _left_out(climb: Climb) -> str:
    if not climb.without:
        return ""
    rows = "".join(
        f'<tr><td>{escape(one.name)}</td><td class="n">{f"{one.tokens_per_s:.1f}" if one.runs else "-"}</td>'
        f"<td>{escape(share_of_full(climb, one))}</td><td>{escape(one.proof or '')}</td></tr>"
        for one in climb.without
    )
    return (
        '<h2>The full stack without one rung</h2><table id="without"><thead><tr><th>left out</th>'
        '<th class="n">tokens/s</th><th>of the full stack</th><th>what it did there</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _batch_tier(climb: Climb) -> str:
    if climb.batch_tier is None:
        return ""
    words = escape(climb.batch_tier.words(climb.price_per_hour))
    return f'<h2>Work that may wait</h2><p id="batch-tier">{words}</p>'


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
