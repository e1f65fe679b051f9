"""Measurements made up for tests."""

from __future__ import annotations

from nonet.bench.ladder.result import BatchTier, Climb, Measured
from nonet.bench.ladder.telemetry import Telemetry
from nonet.bench.metrics import Quantiles, Summary


def summary(rate: float, latency_s: float = 0.1) -> Summary:
    quantiles = Quantiles(
        count=4, mean=2 * latency_s, p50=latency_s, p90=3 * latency_s, p99=4 * latency_s, max=5 * latency_s
    )  # fmt: skip
    return Summary(
        num_requests=4, num_failed=0, duration_s=100.0 / rate, prompt_tokens=50, cached_tokens=0, output_tokens=100,
        output_tokens_per_s=rate, total_tokens_per_s=1.5 * rate, requests_per_s=rate / 25, goodput_rps=0.5,
        ttft_s=quantiles, tpot_s=quantiles, itl_s=quantiles, e2e_s=quantiles, send_lag_s=quantiles,
    )  # fmt: skip


def measured(
    name: str,
    *rates: float,
    error: str | None = None,
    latency_s: float = 0.1,
    settings: dict[str, str] | None = None,
    **counters: float,
) -> Measured:
    return Measured(
        name=name,
        settings=settings or {},
        runs=[summary(rate) for rate in rates],
        latency=summary(rates[0], latency_s) if rates else None,
        telemetry=Telemetry(counters=counters),
        peak_memory_bytes=3 << 30,
        kv_tokens=4096,
        busy_share=0.75,
        error=error,
    )


def a_climb() -> Climb:
    return Climb(
        model="m", workload="w", workload_sha256="0" * 64, workload_facts={"scale": 0.25}, price_per_hour=3.6,
        latency_rate_rps=2.0, device={"cpu": "c <i>"}, commit=None, libraries={}, lossy=["lossy"],
        anchors=[measured("Hugging Face generate", 30.0)],
        rungs=[measured("naive", 20.0, 22.0, latency_s=0.4), measured("good", 60.0, 62.0),
               measured("nothing", 61.0, 63.0), measured("lossy", 90.0, latency_s=0.05),
               measured("broken", error="<script>alert(1)</script>"),
               Measured(name="late", settings={}, skipped="no time was left for it")],
        without=[measured("without good", 40.0), measured("without nothing", 90.0)],
        limits={"ttft_s": 5.0, "tpot_s": 0.2},
        batch_tier=BatchTier(
            settings={}, rate_rps=2.0, alone=summary(10.0), beside=summary(10.0, 0.2), tokens_per_s=40.0
        ),
    )  # fmt: skip
