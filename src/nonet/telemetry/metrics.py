"""Prometheus metrics of one server: under nonet's names, and the same values under vLLM's.

Everything here is computed in the server process. Gauges and token counters come from the engine's latest stats when
somebody scrapes; histograms are observed once per request or delivery. Each app has its own registry.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from nonet.core.messages import EngineStats

__all__ = ["CONTENT_TYPE", "METRIC_NAMES", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FINISH_REASONS = ("stop", "length", "abort", "error")

LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip
BOUNDS = (*map(str, LATENCY_BUCKETS_S), "+Inf")

# nonet's name, vLLM's name or None, help; counters get "_total" when exposed
GAUGES = (
    ("nonet_running_sequences", "vllm:num_requests_running", "Sequences in the running batch"),
    ("nonet_waiting_requests", "vllm:num_requests_waiting", "Requests that wait to run"),
    ("nonet_waiting_tokens", None, "Prompt tokens of waiting requests"),
    ("nonet_kv_usage", "vllm:kv_cache_usage_perc", "Fraction of KV blocks in use, 0 to 1"),
    ("nonet_kv_blocks_free", None, "KV blocks that nobody holds"),
    ("nonet_kv_blocks", None, "KV blocks in all"),
    ("nonet_kv_blocks_leased", None, "KV blocks that prompt caching keeps"),
    ("nonet_kv_blocks_peak", None, "Most KV blocks held at once"),
)
COUNTERS = (
    ("nonet_steps", None, "Steps of the engine"),
    ("nonet_step_tokens", None, "Tokens computed in steps"),
    ("nonet_preemptions", "vllm:num_preemptions", "Sequences whose blocks were taken away"),
    (
        "nonet_prefix_query_tokens",
        "vllm:prefix_cache_queries",
        "Tokens looked up in the prefix cache",
    ),
    ("nonet_prefix_hit_tokens", "vllm:prefix_cache_hits", "Tokens found in the prefix cache"),
    ("nonet_prompt_tokens", "vllm:prompt_tokens", "Prompt tokens processed"),
    ("nonet_generation_tokens", "vllm:generation_tokens", "Output tokens generated"),
    ("nonet_late_joins", None, "Sequences that began while others were under way"),
    ("nonet_partial_prefills", None, "Rows that computed a prompt in part"),
    ("nonet_compactions", None, "Caches of live sequences that were pruned"),
    ("nonet_busy_seconds", None, "Seconds in which a step ran"),
    ("nonet_recorded_steps", None, "Steps that replayed a recording"),
    ("nonet_overlapped_steps", None, "Steps planned while another ran"),
    ("nonet_drafts", "vllm:spec_decode_num_drafts", "Runs of drafted tokens that were verified"),
    (
        "nonet_draft_tokens",
        "vllm:spec_decode_num_draft_tokens",
        "Drafted tokens that were verified",
    ),
    ("nonet_accepted_tokens", "vllm:spec_decode_num_accepted_tokens", "Drafted tokens that stood"),
)
HISTOGRAMS = (
    ("nonet_ttft_seconds", "vllm:time_to_first_token_seconds", "Request received to first token"),
    ("nonet_itl_seconds", "vllm:inter_token_latency_seconds", "Gap between two deliveries"),
    ("nonet_e2e_seconds", "vllm:e2e_request_latency_seconds", "Request received to last token"),
    ("nonet_queue_seconds", "vllm:request_queue_time_seconds", "Received to handed to the engine"),
    ("nonet_prefill_seconds", "vllm:request_prefill_time_seconds", "In the engine to first token"),
    ("nonet_decode_seconds", "vllm:request_decode_time_seconds", "First token to last token"),
)
EVENT_COUNTERS = (
    ("nonet_requests", "vllm:request_success", "finished_reason", "Choices finished, by reason"),
    ("nonet_http_responses", None, "status", "HTTP responses, by status"),
    ("nonet_streams_cut", None, "reason", "Streams that the server ended early"),
    ("nonet_engine_deaths", None, "", "Engine processes that ended unasked"),
)
ACCEPTED_PER_POSITION = (
    "nonet_accepted_tokens_per_pos",
    "vllm:spec_decode_num_accepted_tokens_per_pos",
    "position",
    "Drafted tokens that stood, by their place in the run",
)

METRIC_NAMES = frozenset(
    name
    for row in (*GAUGES, *COUNTERS, *HISTOGRAMS, *EVENT_COUNTERS, ACCEPTED_PER_POSITION)
    for name in row[:2]
    if name is not None
)


class Metrics:
    """Observers for the server, and the text that /metrics returns.

    `read_stats` and `read_deaths` are called on each scrape.
    """

    def __init__(
        self,
        model_name: str,
        read_stats: Callable[[], EngineStats],
        read_deaths: Callable[[], int],
    ) -> None:
        histograms = {name: _Histogram() for name, _, _ in HISTOGRAMS}
        self.ttft = histograms["nonet_ttft_seconds"].observe
        self.itl = histograms["nonet_itl_seconds"].observe
        self.e2e = histograms["nonet_e2e_seconds"].observe
        self.queue = histograms["nonet_queue_seconds"].observe
        self.prefill = histograms["nonet_prefill_seconds"].observe
        self.decode = histograms["nonet_decode_seconds"].observe
        self._finished = dict.fromkeys(FINISH_REASONS, 0)
        self._responses: Counter[int] = Counter()
        self._cut: Counter[str] = Counter()
        events: dict[str, _Counts] = {
            "nonet_requests": ([model_name], self._finished),
            "nonet_http_responses": ([], self._responses),
            "nonet_streams_cut": ([], self._cut),
        }
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Observed(model_name, histograms, events))
        self._registry.register(_EngineReadings(model_name, read_stats, read_deaths))

    def finished(self, reason: str) -> None:
        self._finished[reason] += 1

    def responded(self, status: int) -> None:
        self._responses[status] += 1

    def stream_cut(self, reason: str) -> None:
        self._cut[reason] += 1

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)


class _Histogram:
    """How many observations lie under each bound, and their sum.

    Plain numbers, as one event loop writes and reads them: prometheus_client's own take a lock and walk through the
    bounds each time, and streams observe at every event.
    """

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._sum += seconds

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        buckets = list(zip(BOUNDS, accumulate(self._counts), strict=True))
        family.add_metric(labels, buckets, self._sum)


# The values of further labels that all of a kind's counts have, and the counts by its own label.
_Counts = tuple[list[str], Mapping[Any, int]]


class _Observed(Collector):
    """Histograms and counters of the server, each under its own name and its twin's."""

    def __init__(
        self, model_name: str, histograms: dict[str, _Histogram], events: dict[str, _Counts]
    ) -> None:
        self._model_name = model_name
        self._histograms = histograms
        self._events = events

    def collect(self) -> Iterator[Metric]:
        for name, twin, text in HISTOGRAMS:
            for shown in (name, twin):
                histogram = HistogramMetricFamily(shown, text, labels=["model_name"])
                self._histograms[name].add_to(histogram, [self._model_name])
                yield histogram
        for name, vllm_name, label, text in EVENT_COUNTERS:
            if name not in self._events:
                continue
            given, counts = self._events[name]
            labels = [*["model_name"][: len(given)], label]
            for shown in (name, vllm_name) if vllm_name else (name,):
                counter = CounterMetricFamily(shown, text, labels=labels)
                for value, count in counts.items():
                    counter.add_metric([*given, str(value)], count)
                yield counter


class _EngineReadings(Collector):
    """The engine's latest stats as gauges and counters."""

    def __init__(
        self,
        model_name: str,
        read_stats: Callable[[], EngineStats],
        read_deaths: Callable[[], int],
    ) -> None:
        self._labels = [model_name]
        self._read_stats = read_stats
        self._read_deaths = read_deaths

    def collect(self) -> Iterator[Metric]:
        stats = self._read_stats()
        values = {
            "nonet_running_sequences": stats.num_running,
            "nonet_waiting_requests": stats.num_waiting,
            "nonet_waiting_tokens": stats.waiting_tokens,
            "nonet_kv_usage": stats.kv_usage,
            "nonet_kv_blocks_free": stats.blocks_free,
            "nonet_kv_blocks": stats.blocks_total,
            "nonet_kv_blocks_leased": stats.blocks_leased,
            "nonet_steps": stats.steps,
            "nonet_step_tokens": stats.step_tokens,
            "nonet_preemptions": stats.preemptions,
            "nonet_prefix_query_tokens": stats.prefix_query_tokens,
            "nonet_prefix_hit_tokens": stats.prefix_hit_tokens,
            "nonet_prompt_tokens": stats.prompt_tokens,
            "nonet_generation_tokens": stats.generation_tokens,
            "nonet_kv_blocks_peak": stats.peak_blocks,
            "nonet_late_joins": stats.late_joins,
            "nonet_partial_prefills": stats.partial_prefills,
            "nonet_compactions": stats.compactions,
            "nonet_busy_seconds": stats.busy_s,
            "nonet_recorded_steps": stats.recorded_steps,
            "nonet_overlapped_steps": stats.overlapped_steps,
            "nonet_drafts": stats.num_drafts,
            "nonet_draft_tokens": stats.num_draft_tokens,
            "nonet_accepted_tokens": stats.num_accepted_tokens,
        }
        for rows, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for name, twin, text in rows:
                for shown in (name, twin) if twin else (name,):
                    metric = family(shown, text, labels=["model_name"])
                    metric.add_metric(self._labels, values[name])
                    yield metric
        *names, label, text = ACCEPTED_PER_POSITION
        for shown in names:
            places = CounterMetricFamily(shown, text, labels=["model_name", label])
            for place, count in enumerate(stats.accepted_per_position):
                places.add_metric([*self._labels, str(place)], count)
            yield places
        deaths = CounterMetricFamily("nonet_engine_deaths", EVENT_COUNTERS[3][3])
        deaths.add_metric([], self._read_deaths())
        yield deaths
