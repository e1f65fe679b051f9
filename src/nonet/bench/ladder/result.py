"""What a climb brought, rung by rung, kept on disk so that an interrupted climb goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

from nonet.bench.ladder.telemetry import Telemetry
from nonet.bench.metrics import Quantiles, Summary

__all__ = ["BatchTier", "Climb", "Measured", "Store", "key_of"]


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
    skipped: str | None = None  # why it was not measured this time
    note: str | None = None  # how it was measured, where that is not as the others

    @property
    def is_shown(self) -> bool:
        """Whether its figures may be quoted: it ran, and its technique acted."""
        return bool(self.runs) and self.error is None

    @property
    def shown_latency(self) -> Summary | None:
        """At the common rate where that was measured, else of the first run, with all requests at once."""
        return self.latency or next(iter(self.runs), None)

    @property
    def spread(self) -> float | None:
        """Half the range of the runs over their median; None for fewer than two runs."""
        if len(self.runs) < 2 or not self.tokens_per_s:
            return None
        return (max(self.rates) - min(self.rates)) / 2 / self.tokens_per_s

    @property
    def requests_per_s(self) -> float:
        """Median over the runs; 0 when there is none."""
        return _median([run.requests_per_s for run in self.runs])

    @property
    def rates(self) -> list[float]:
        """Output tokens per second of each run."""
        return [run.output_tokens_per_s for run in self.runs]

    @property
    def tokens_per_s(self) -> float:
        """Median over the runs; 0 when there is none."""
        return _median(self.rates)

    def cost_per_million(self, price_per_hour: float) -> float | None:
        """Money for a million output tokens at the machine's price."""
        rate = self.tokens_per_s
        return price_per_hour / 3600 / rate * 1e6 if rate else None


def _median(values: Sequence[float]) -> float:
    return median(values) if values else 0.0


class BatchTier(msgspec.Struct, frozen=True, kw_only=True):
    """Online traffic at `rate_rps`, alone and with a backlog behind it."""

    settings: dict[str, str]
    rate_rps: float
    alone: Summary | None = None
    beside: Summary | None = None  # the same online requests with the backlog behind them
    tokens_per_s: float = 0.0  # of both classes while online requests ran
    error: str | None = None

    def costs(self, price_per_hour: float) -> tuple[float, float] | None:
        """Money for a million output tokens: online alone, and both; None when nothing could be measured."""
        online = self.alone.output_tokens_per_s if self.alone is not None else 0.0
        if not online or not self.tokens_per_s:
            return None
        each = price_per_hour / 3600 * 1e6
        return each / online, each / self.tokens_per_s

    def words(self, price_per_hour: float) -> str:
        """One sentence with the figures."""
        costs = self.costs(price_per_hour)
        if self.error is not None or costs is None:
            return f"Batch tier: {self.error or 'nothing was measured'}."
        return (
            f"Batch tier, beside online traffic at {self.rate_rps:.2f} requests/s: a million output tokens cost "
            f"{costs[1]:.4f} instead of {costs[0]:.4f} ({costs[0] / costs[1]:.2f}x), online TTFT p50/p99 "
            f"{_pair(self.beside, 'ttft_s')} s instead of {_pair(self.alone, 'ttft_s')} s, TPOT "
            f"{_pair(self.beside, 'tpot_s')} s instead of {_pair(self.alone, 'tpot_s')} s."
        )


def _pair(summary: Summary | None, name: str) -> str:
    found: Quantiles | None = getattr(summary, name, None)
    return "-" if found is None else f"{found.p50:.3f}/{found.p99:.3f}"


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
    batch_tier: BatchTier | None = None
    options: dict[str, str] = {}  # of every rung, below its own settings
    limits: dict[str, float | None] = {}  # of goodput, in seconds
    notes: list[str] = []  # what a reader of the figures must know


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
        return None if found.error or found.skipped else found

    def get_tier(self, key: str) -> BatchTier | None:
        """As `get` does."""
        path = self._folder / f"{key}.json"
        if not path.exists():
            return None
        found = msgspec.json.decode(path.read_bytes(), type=BatchTier)
        return None if found.error else found

    def put(self, key: str, measured: Measured | BatchTier) -> None:
        """Whole or not at all."""
        path = self._folder / f"{key}.json"
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=1) + b"\n")
        os.replace(part, path)


def key_of(parts: Mapping[str, object]) -> str:
    """Equal for equal parts."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
