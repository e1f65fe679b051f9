"""A roofline as data: the measured points, the ceilings they are held to, and all that is needed to judge them."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Peaks", "Point", "Roofline"]


class Peaks(msgspec.Struct, frozen=True, kw_only=True):
    """Measured on this device just before. `arithmetic` names the product whose rate counts for this model."""

    arithmetic: str
    flops_per_s: float
    bytes_per_s: float  # of a copy, read and written bytes together


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Decode: one step, `seconds` the median of many. Prefill: all prompts of the batch, from the first step on."""

    phase: Literal["prefill", "decode"]
    batch: int
    context: int
    seconds: float
    least_s: float
    tokens_per_s: float
    flops: float
    num_bytes: float
    compute_share: float  # of the measured peak
    bandwidth_share: float

    @property
    def intensity(self) -> float:
        """Operations for each byte that must move."""
        return self.flops / self.num_bytes


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """What `nonet bench roofline` writes."""

    model: str
    command: list[str]
    created: str
    commit: str | None
    device: dict[str, str | int | None]
    libraries: dict[str, str]
    config: dict[str, object]
    peaks: Peaks
    all_peaks: dict[str, object]
    points: list[Point]
    left_out: list[str]  # points that were asked for and not measured, each with its reason
