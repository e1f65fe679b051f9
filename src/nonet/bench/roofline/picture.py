"""The roofline as one SVG that needs nothing else: operations per second over operations per byte, and both shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from nonet.bench.roofline.result import Point, Roofline

__all__ = ["draw"]

COLOURS = {"prefill": "#b7791f", "decode": "#2b6cb0"}
COMPUTE, BANDWIDTH, FAINT = "#718096", "#38a169", "#e2e8f0"
# The plot's frame, then the bars beside it.
LEFT, TOP, WIDTH, HEIGHT = 80, 60, 560, 380
BARS_LEFT, BAR_WIDTH, LINE = 820, 260, 26


def draw(found: Roofline) -> str:
    """The whole picture. Points on the slanted roof are bound by memory, on the flat one by arithmetic."""
    height = max(TOP + HEIGHT + 70, TOP + 40 + LINE * len(found.points))
    total = BARS_LEFT + BAR_WIDTH + 90
    where = found.device.get("gpu") or found.device.get("cpu") or ""
    title = f"{found.model} on {where}"
    parts = [
        f'<text x="{LEFT}" y="28" font-size="18" font-weight="600">{escape(title)}</text>',
        *_plot(found),
        *_bars(found.points),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _plot(found: Roofline) -> list[str]:
    peaks = found.peaks
    ridge = peaks.flops_per_s / peaks.bytes_per_s
    across = _Axis(
        [ridge / 4, ridge * 4, *(point.intensity for point in found.points)], LEFT, LEFT + WIDTH
    )
    rates = [point.flops / point.seconds for point in found.points]
    up = _Axis([peaks.flops_per_s * 1.5, *rates], TOP + HEIGHT, TOP)
    parts = [
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#a0aec0"/>'
    ]
    for value in across.decades():
        x = across(value)
        parts += [
            f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + HEIGHT}" stroke="{FAINT}"/>',
            f'<text x="{x:.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{value:g}</text>',
        ]
    for value in up.decades():
        y = up(value)
        parts += [
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + WIDTH}" y2="{y:.1f}" stroke="{FAINT}"/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value / 1e12:g}</text>',
        ]
    low = max(across.low, up.low / peaks.bytes_per_s)
    corners = [
        (low, low * peaks.bytes_per_s),
        (ridge, peaks.flops_per_s),
        (across.high, peaks.flops_per_s),
    ]
    line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in corners)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1a202c" stroke-width="2"/>')
    parts += [_dot(point, across, up) for point in found.points]
    limits = (
        f"measured: {peaks.flops_per_s / 1e12:,.4g} TFLOP/s {peaks.arithmetic}, "
        f"{peaks.bytes_per_s / 1e9:,.4g} GB/s"
    )
    parts += [
        f'<text x="{LEFT}" y="48" fill="#4a5568">{escape(limits)}</text>',
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle">operations per byte</text>',
        f'<text x="{LEFT - 8}" y="{TOP - 8}" text-anchor="end">TFLOP/s</text>',
    ]  # fmt: skip
    return parts


def _dot(point: Point, across: _Axis, up: _Axis) -> str:
    label = f"{point.phase}, batch {point.batch}, context {point.context}"
    return (
        f'<circle cx="{across(point.intensity):.1f}" cy="{up(point.flops / point.seconds):.1f}" r="5" '
        f'fill="{COLOURS[point.phase]}" fill-opacity="0.8"><title>{label}</title></circle>'
    )


def _bars(points: Sequence[Point]) -> list[str]:
    parts = [
        f'<text x="{BARS_LEFT}" y="28" fill="{COMPUTE}">compute, share of peak</text>',
        f'<text x="{BARS_LEFT}" y="46" fill="{BANDWIDTH}">bandwidth, share of copy rate</text>',
        *(
            f'<circle cx="{BARS_LEFT - 150}" cy="{24 + 18 * row}" r="5" fill="{colour}"/>'
            f'<text x="{BARS_LEFT - 138}" y="{28 + 18 * row}">{phase}</text>'
            for row, (phase, colour) in enumerate(COLOURS.items())
        ),
    ]
    for row, point in enumerate(points):
        y = TOP + row * LINE
        parts.append(
            f'<text x="{BARS_LEFT - 8}" y="{y + 15}" text-anchor="end" fill="{COLOURS[point.phase]}">'
            f"{point.phase} {point.batch} x {point.context}</text>"
        )
        for offset, share, colour in (
            (2, point.compute_share, COMPUTE),
            (12, point.bandwidth_share, BANDWIDTH),
        ):
            width = BAR_WIDTH * min(1.0, share)
            parts.append(
                f'<rect x="{BARS_LEFT}" y="{y + offset}" width="{width:.1f}" height="9" fill="{colour}"/>'
                f'<text x="{BARS_LEFT + width + 4:.1f}" y="{y + offset + 9}" font-size="10">{share:.0%}</text>'
            )
    return parts


class _Axis:
    """Logarithmic, from a little below the least value to a little above the largest."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = min(values) / 1.5, max(values) * 1.5
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self._start + (self._end - self._start) * share

    def decades(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]
