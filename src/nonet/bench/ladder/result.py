"""What a climb brought, rung by rung, kept on disk so that an interrupted climb goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nonet.bench.ladder.telemetry import Telemetry
from nonet.bench.metrics import Summary

__all__ = ["Climb", "Measured", "Store", "key_of"]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration, measured. `runs` had all requests at once, `latency` had them at their own times."""

    name: str
    settings: dict[str, str]
    runs: list[Summary] = []
    latency: Summary | None = None
    latency_rate_rps: float | None = None
    telemetry: Telemetry | None = None
    peak_memory_bytes: int = 0
    kv_tokens: int = 0
    busy_share: float = 0.0
    proof: str | None = None
    quality: dict[str, float] | None = None
    error: str | None = None

    @property
    def rates(self) -> list[float]:
        """Output tokens per second of each run."""
        return [run.output_tokens_per_s for run in self.runs]

    @property
    def tokens_per_s(self) -> float:
        """Median over the runs; 0 when there is none."""
        ordered = sorted(self.rates)
        if not ordered:
            return 0.0
        middle = len(ordered) // 2
        return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

    def cost_per_million(self, price_per_hour: float) -> float | None:
        """Money for a million output tokens at the machine's price."""
        rate = self.tokens_per_s
        return price_per_hour / 3600 / rate * 1e6 if rate else None


class Climb(msgspec.Struct, frozen=True, kw_only=True):
    """A whole ladder: `anchors` stand outside, `rungs` are cumulative, `without` leave one rung out of the last."""

    model: str
    workload: str
    workload_sha256: str
    workload_facts: dict[str, int | float | str]
    price_per_hour: float
    latency_rate_rps: float | None
    device: dict[str, str | int | None]
    commit: str | None
    libraries: dict[str, str]
    lossy: list[str]
    anchors: list[Measured]
    rungs: list[Measured]
    without: list[Measured]


class Store:
    """One file for each finished measurement, named by a digest of all that decides it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> Measured | None:
        """None when there is none, or only one that failed."""
        path = self._folder / f"{key}.json"
        if not path.exists():
            return None
        found = msgspec.json.decode(path.read_bytes(), type=Measured)
        return None if found.error else found

    def put(self, key: str, measured: Measured) -> None:
        """Whole or not at all."""
        path = self._folder / f"{key}.json"
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n")
        os.replace(part, path)


def key_of(parts: Mapping[str, object]) -> str:
    """Equal for equal parts."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
