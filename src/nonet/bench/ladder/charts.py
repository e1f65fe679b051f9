"""The ladder's pictures as SVG, without a script: the waterfall of cost, and latency from rung to rung.

Each mark carries its figure in a `data-` attribute, to the digits of the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from nonet.bench.ladder.report import Step, steps
from nonet.bench.ladder.result import Climb
from nonet.bench.metrics import Quantiles, Summary

__all__ = ["latency_curves", "waterfall", "waterfall_size"]

BAR, GAP, LEFT, WIDTH, RIGHT = 24, 9, 230, 1040, 190
COLOURS = {"anchor": "#8a8a8a", "rung": "#2b6cb0", "lossy": "#b7791f", "none": "#a3b3c2"}
LEGEND = (
    ("anchor", "outside anchor"),
    ("rung", "lossless"),
    ("lossy", "lossy, see the quality column"),
    ("none", "no difference shown"),
)
PANEL_HEIGHT, PANEL_TOP, PANEL_BOTTOM = 260, 34, 96


def waterfall_size(climb: Climb) -> tuple[int, int]:
    """Width and height of the waterfall in pixels."""
    return WIDTH, (len(_costed(climb)) + 1) * (BAR + GAP) + GAP


def waterfall(climb: Climb) -> str:
    """SVG: a bar as long as each configuration's cost, and in front of it, pale, what the rung took off."""
    listed = _costed(climb)
    if not listed:
        return "<p>No rung could be measured.</p>"
    most = max(cost for _, cost in listed)
    scale = (WIDTH - LEFT - RIGHT) / most
    width, height = waterfall_size(climb)
    parts = []
    for number, (step, cost) in enumerate(listed):
        y = GAP + number * (BAR + GAP)
        name = escape(step.measured.name)
        above = step.below.cost_per_million(climb.price_per_hour) if step.below else None
        parts.append(_text(LEFT - 8, y + 17, name, "end"))
        end = cost * scale
        if above is not None and above > cost:
            parts.append(
                f'<rect x="{LEFT + end:.1f}" y="{y + 7}" width="{(above - cost) * scale:.1f}" height="{BAR - 14}" '
                f'fill="#c9d8ea" class="saved" data-rung="{name}" data-saved="{above - cost!r}"/>'
            )
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{max(2.0, end):.1f}" height="{BAR}" rx="3" '
            f'fill="{COLOURS[_kind(step, climb)]}" class="cost" data-rung="{name}" data-cost="{cost!r}"/>'
        )
        label = f"{cost:.3g}" + (f"  ({step.over_base:.1f}x)" if step.over_base else "")
        at = LEFT + max(end, (above or 0) * scale) + 8
        parts.append(_text(at, y + 17, label, "start"))
    parts.append(_legend(height - GAP))
    return _svg(width, height, "".join(parts))


def latency_curves(climb: Climb) -> str:
    """SVG: time to first token and time per output token, p50 and p99, from rung to rung, on a logarithmic axis."""
    shown = [step for step in steps(climb) if step.measured in climb.rungs and _seen(step)]
    if len(shown) < 2:
        return "<p>Too few rungs have latencies.</p>"
    panels = [
        _panel(shown, 0, "time to first token, s", "ttft_s", lambda seen: seen.ttft_s, 1.0),
        _panel(shown, 1, "time per output token, ms", "tpot_s", lambda seen: seen.tpot_s, 1e3),
    ]
    return _svg(WIDTH, 2 * PANEL_HEIGHT, "".join(panels))


def _costed(climb: Climb) -> list[tuple[Step, float]]:
    return [(step, step.cost_per_million) for step in steps(climb) if step.cost_per_million]


def _kind(step: Step, climb: Climb) -> str:
    if step.measured not in climb.rungs:
        return "anchor"
    if step.measured.name in climb.lossy:
        return "lossy"
    return "none" if step.below is not None and step.over_below is None else "rung"


def _seen(step: Step) -> Summary | None:
    seen = step.measured.shown_latency if step.measured.is_shown else None
    return seen if seen is not None and seen.ttft_s and seen.tpot_s else None


def _panel(
    shown: Sequence[Step],
    number: int,
    title: str,
    field: str,
    pick: Callable[[Summary], Quantiles | None],
    unit: float,
) -> str:
    top, bottom = number * PANEL_HEIGHT + PANEL_TOP, (number + 1) * PANEL_HEIGHT - PANEL_BOTTOM
    pairs = [picked for step in shown if (seen := _seen(step)) and (picked := pick(seen))]
    values = [max(value, 1e-6) for pair in pairs for value in (pair.p50, pair.p99)]
    low, high = math.log10(min(values)), math.log10(max(values))
    spread = max(high - low, 0.3)
    left, step_x = 70, (WIDTH - 110) / max(1, len(pairs) - 1)

    def place(value: float) -> float:
        return bottom - (math.log10(max(value, 1e-6)) - low) / spread * (bottom - top)

    parts = [_text(left, top - 14, title, "start")]
    for value in (min(values), max(values)):
        y = place(value)
        parts.append(
            f'<line x1="{left}" x2="{WIDTH - 40}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(_text(left - 8, y + 4, f"{value * unit:.3g}", "end"))
    for label, colour in (("p99", "#b7791f"), ("p50", "#2b6cb0")):
        points = []
        for place_x, pair in enumerate(pairs):
            value = getattr(pair, label)
            x, y = left + place_x * step_x, place(value)
            points.append(f"{x:.1f},{y:.1f}")
            name = escape(shown[place_x].measured.name)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" data-rung="{name}" '
                f'data-figure="{field} {label}" data-value="{value!r}"><title>{value * unit:.4g}</title></circle>'
            )
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}"/>')
        parts.append(_text(WIDTH - 36, place(getattr(pairs[-1], label)) + 4, label, "start"))
    for place_x, step in enumerate(shown):
        x = left + place_x * step_x
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" font-size="12" text-anchor="end" '
            f'transform="rotate(-28 {x:.1f} {bottom + 16})">{escape(step.measured.name)}</text>'
        )
    return "".join(parts)


def _legend(y: int) -> str:
    parts, x = [], LEFT
    for kind, words in LEGEND:
        parts.append(f'<rect x="{x}" y="{y - 12}" width="12" height="12" fill="{COLOURS[kind]}"/>')
        parts.append(_text(x + 18, y - 2, words, "start", 12))
        x += 34 + 7 * len(words)
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str, size: int = 14) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{words}</text>'


def _svg(width: int, height: int, inside: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>{inside}</svg>'
    )
