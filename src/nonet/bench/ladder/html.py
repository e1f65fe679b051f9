"""The ladder as one page that needs no network: a waterfall of cost, latency bars, the quality column, all figures."""

from __future__ import annotations

from html import escape

from nonet.bench.ladder.report import Step, base, steps, within_spread
from nonet.bench.ladder.result import Climb

__all__ = ["page", "waterfall"]

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
table{border-collapse:collapse;width:100%;font-size:13px}th,td{text-align:left;padding:.35rem .6rem;
border-bottom:1px solid #ddd}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.err{color:#a40000}
svg{max-width:100%;height:auto}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}.dim{color:#666}
"""
BAR, GAP, LEFT, WIDTH = 26, 10, 270, 1040
COLOURS = {"anchor": "#8a8a8a", "rung": "#2b6cb0", "lossy": "#b7791f", "none": "#cbd5e0"}


def page(climb: Climb) -> str:
    """The whole document. Every figure stands in the table, to the digits that it was rounded to."""
    listed = steps(climb)
    title = f"nonet ladder: {climb.model}, {climb.workload}"
    device = ", ".join(f"{k} {v}" for k, v in climb.device.items() if v is not None)
    over = base(climb)
    quoted = "missing" if over is None else over.name
    rows = "\n".join(_row(step, climb) for step in listed)
    rate = (
        f"Latencies: open loop at {climb.latency_rate_rps:.2f} requests per second, the same for every rung."
        if climb.latency_rate_rps
        else "Latencies were not measured."
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p class="dim">{escape(device)} · commit {escape(climb.commit or "unknown")} · workload {climb.workload_sha256[:12]}</p>
<h2>Cost of a million output tokens at {climb.price_per_hour:g} per hour</h2>
{waterfall(climb)}
<h2>Rungs, each on top of those above it</h2>
<p class="dim">Throughput: all requests at once, medians. The base of factors is {escape(quoted)}; a factor over
the rung below is given only where the runs do not overlap. {rate}</p>
<table id="rungs"><thead><tr><th>rung</th><th class="n">tokens/s</th><th class="n">x base</th>
<th class="n">x below</th>
<th class="n">cost per M</th><th class="n">TTFT p50</th><th class="n">TTFT p99</th><th class="n">TPOT p50 ms</th>
<th class="n">TPOT p99 ms</th><th class="n">goodput/s</th><th class="n">busy</th><th class="n">KV tokens</th>
<th>what it did</th><th>quality</th></tr></thead><tbody>
{rows}
</tbody></table>
{_left_out(climb)}
</body></html>
"""


def waterfall(climb: Climb) -> str:
    """SVG: one bar for each configuration, as long as its cost."""
    listed = [step for step in steps(climb) if step.cost_per_million]
    if not listed:
        return "<p>No rung could be measured.</p>"
    most = max(step.cost_per_million or 0 for step in listed)
    height = len(listed) * (BAR + GAP) + GAP
    bars = []
    for number, step in enumerate(listed):
        cost = step.cost_per_million or 0.0
        y = GAP + number * (BAR + GAP)
        width = max(2.0, (WIDTH - LEFT - 170) * cost / most)
        label = f"{cost:.2f}" + (f" ({step.over_base:.1f}x)" if step.over_base else "")
        bars.append(
            f'<text x="{LEFT - 8}" y="{y + 18}" text-anchor="end" font-size="14">{escape(step.measured.name)}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="3" fill="{_colour(step, climb)}"/>'
            f'<text x="{LEFT + width + 8:.1f}" y="{y + 18}" font-size="14">{label}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>{"".join(bars)}</svg>'
    )


def _colour(step: Step, climb: Climb) -> str:
    if step.measured not in climb.rungs:
        return COLOURS["anchor"]
    if step.measured.name in climb.lossy:
        return COLOURS["lossy"]
    is_first = step.measured is climb.rungs[0]
    return COLOURS["rung" if is_first or step.over_below is not None else "none"]


def _row(step: Step, climb: Climb) -> str:
    one, seen = step.measured, step.measured.latency
    is_equal = step.over_below is None and one in climb.rungs[1:] and one.runs
    numbers = [
        f"{one.tokens_per_s:.1f}" if one.runs else "-",
        _number(step.over_base, 2),
        "none shown" if is_equal else _number(step.over_below, 2),
        _number(step.cost_per_million, 3),
        _number(seen.ttft_s.p50 if seen and seen.ttft_s else None, 3),
        _number(seen.ttft_s.p99 if seen and seen.ttft_s else None, 3),
        _number(1e3 * seen.tpot_s.p50 if seen and seen.tpot_s else None, 1),
        _number(1e3 * seen.tpot_s.p99 if seen and seen.tpot_s else None, 1),
        _number(seen.goodput_rps if seen else None, 2),
        f"{one.busy_share:.0%}" if one.telemetry else "-",
        f"{one.kv_tokens}" if one.kv_tokens else "-",
    ]  # fmt: skip
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    words = (
        f'<span class="err">{escape(one.error)}</span>' if one.error else escape(one.proof or "")
    )
    quality = ", ".join(f"{name} {value:.4g}" for name, value in (one.quality or {}).items())
    if one.name in climb.lossy and not quality:
        quality = "not measured"
    return f"<tr><td>{escape(one.name)}</td>{cells}<td>{words}</td><td>{escape(quality)}</td></tr>"


def _left_out(climb: Climb) -> str:
    if not climb.without:
        return ""
    full = climb.rungs[-1]
    rows = []
    for one in climb.without:
        share = one.tokens_per_s / full.tokens_per_s if full.tokens_per_s else 0.0
        shown = one.error or ("none shown" if within_spread(one, full) else f"{share:.2f}")
        rows.append(
            f'<tr><td>{escape(one.name)}</td><td class="n">{one.tokens_per_s:.1f}</td><td>{escape(shown)}</td></tr>'
        )
    return (
        "<h2>The full stack without one rung</h2><table><thead><tr><th>left out</th>"
        f'<th class="n">tokens/s</th><th>of the full stack</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
