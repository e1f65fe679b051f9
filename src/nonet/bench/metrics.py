"""From the times of each request to the figures of a run; the definitions are the glossary's, seen from the client.

ttft_s: sent to first token. itl_s: gap between two successive deliveries (one delivery may carry several tokens).
tpot_s: (end to end - ttft) / (output tokens - 1), of requests with at least two tokens. e2e_s: sent to last token.
Throughput counts the whole run, from the first request sent to the last token received. goodput_rps: requests per
second that met all limits; a failed request meets none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

__all__ = ["Limits", "Quantiles", "RequestTimes", "Summary", "percentile", "summarise"]


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the client saw it; times in seconds from the start of the run."""

    index: int
    due_s: float  # when the arrival plan wanted it sent
    sent_s: float
    delivery_s: list[float] = []  # one entry per event that carried output
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None
    cache: str | None = None  # what the server says: exact, semantic, miss, bypass

    @property
    def ttft_s(self) -> float:
        return self.delivery_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.delivery_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """None for fewer than two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        return [b - a for a, b in zip(self.delivery_s, self.delivery_s[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Limits:
    """The promise that goodput is measured against; None is no promise. `itl_s` bounds a request's longest gap."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    def met_by(self, request: RequestTimes) -> bool:
        if request.error is not None or not request.delivery_s:
            return False
        seen = (
            (self.ttft_s, request.ttft_s),
            (self.tpot_s, request.tpot_s),
            (self.itl_s, max(request.itl_s, default=0.0)),
            (self.e2e_s, request.e2e_s),
        )
        return all(limit is None or value is None or value <= limit for limit, value in seen)


class Quantiles(msgspec.Struct, frozen=True):
    """Of one latency over all that have it."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run."""

    num_requests: int
    num_failed: int
    duration_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float  # prompt tokens included
    requests_per_s: float
    goodput_rps: float | None  # None when no limits were given
    ttft_s: Quantiles | None
    tpot_s: Quantiles | None
    itl_s: Quantiles | None
    e2e_s: Quantiles | None
    send_lag_s: Quantiles | None  # how late the client itself was; large values spoil the run


def summarise(requests: Sequence[RequestTimes], limits: Limits | None = None) -> Summary:
    """Failed requests count in `num_failed` and in no latency."""
    good = [r for r in requests if r.error is None and r.delivery_s]
    start = min((r.sent_s for r in requests), default=0.0)
    end = max((r.delivery_s[-1] for r in requests if r.delivery_s), default=start)
    duration = end - start
    output = sum(r.output_tokens for r in good)
    prompt = sum(r.prompt_tokens for r in good)
    met = None if limits is None else sum(limits.met_by(r) for r in requests)
    return Summary(
        num_requests=len(requests),
        num_failed=len(requests) - len(good),
        duration_s=duration,
        prompt_tokens=prompt,
        cached_tokens=sum(r.cached_tokens for r in good),
        output_tokens=output,
        output_tokens_per_s=_rate(output, duration),
        total_tokens_per_s=_rate(output + prompt, duration),
        requests_per_s=_rate(len(good), duration),
        goodput_rps=None if met is None else _rate(met, duration),
        ttft_s=_quantiles(r.ttft_s for r in good),
        tpot_s=_quantiles(r.tpot_s for r in good if r.tpot_s is not None),
        itl_s=_quantiles(gap for r in good for gap in r.itl_s),
        e2e_s=_quantiles(r.e2e_s for r in good),
        send_lag_s=_quantiles(r.sent_s - r.due_s for r in requests),
    )


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Linear between the two nearest ranks of sorted values.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 0.5)
    2.5
    """
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _quantiles(values: Iterable[float]) -> Quantiles | None:
    ordered = sorted(values)
    if not ordered:
        return None
    return Quantiles(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def _rate(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
