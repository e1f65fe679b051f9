"""A roofline for people: a table of shares."""

from __future__ import annotations

from nonet.bench.roofline.result import Point, Roofline

__all__ = ["describe"]

HEADINGS = ("", "batch", "context", "ms", "tokens/s", "TFLOP/s", "compute", "GB/s", "bandwidth")


def describe(found: Roofline) -> str:
    """Compute: model operations over the measured peak. Bandwidth: bytes that must move over the measured copy rate."""
    peaks = found.peaks
    rows = [HEADINGS, *(_row(point) for point in found.points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    where = found.device.get("gpu") if found.config.get("device") == "cuda" else found.device["cpu"]
    limits = (
        f"{peaks.flops_per_s / 1e12:,.4g} TFLOP/s ({peaks.arithmetic}), "
        f"{peaks.bytes_per_s / 1e9:,.4g} GB/s (copy, read and write)"
    )
    left_out = [f"left out: {reason}" for reason in found.left_out]
    return "\n".join([f"{found.model} on {where}", f"measured peaks: {limits}", "", *lines, *left_out])  # fmt: skip


def _row(point: Point) -> tuple[str, ...]:
    return (
        point.phase,
        str(point.batch),
        str(point.context),
        f"{1e3 * point.seconds:,.2f}",
        f"{point.tokens_per_s:,.0f}",
        f"{point.flops / point.seconds / 1e12:,.4g}",
        f"{point.compute_share:.1%}",
        f"{point.num_bytes / point.seconds / 1e9:,.4g}",
        f"{point.bandwidth_share:.1%}",
    )
