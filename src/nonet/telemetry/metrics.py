"""Prometheus metrics of one server: under nonet's names, and the same values under vLLM's.

Everything here is computed in the server process. Gauges and token counters come from the engine's latest stats when
somebody scrapes; histograms are observed once per request or delivery. Each app has its own registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nonet.core.messages import EngineStats

__all__ = ["CONTENT_TYPE", "METRIC_NAMES", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FINISH_REASONS = ("stop", "length", "abort", "error")

LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)  # fmt: skip

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
        self._registry = CollectorRegistry(auto_describe=False)
        histograms = {
            name: Histogram(name, text, ["model_name"], registry=None, buckets=LATENCY_BUCKETS_S)
            for name, _, text in HISTOGRAMS
        }
        bound = {name: family.labels(model_name) for name, family in histograms.items()}
        self.ttft = bound["nonet_ttft_seconds"].observe
        self.itl = bound["nonet_itl_seconds"].observe
        self.e2e = bound["nonet_e2e_seconds"].observe
        self.queue = bound["nonet_queue_seconds"].observe
        self.prefill = bound["nonet_prefill_seconds"].observe
        self.decode = bound["nonet_decode_seconds"].observe
        finished = Counter(
            "nonet_requests", EVENT_COUNTERS[0][3], ["model_name", "finished_reason"], registry=None
        )
        self._finished = {reason: finished.labels(model_name, reason) for reason in FINISH_REASONS}
        self._responses = Counter(
            "nonet_http_responses", EVENT_COUNTERS[1][3], ["status"], registry=None
        )
        self._by_status: dict[int, Counter] = {}
        self._cut = Counter("nonet_streams_cut", EVENT_COUNTERS[2][3], ["reason"], registry=None)
        twins = {name: twin for name, twin, *_ in (*HISTOGRAMS, *EVENT_COUNTERS)}
        self._registry.register(
            _Observed([*histograms.values(), finished, self._responses, self._cut], twins)
        )
        self._registry.register(_EngineReadings(model_name, read_stats, read_deaths))

    def finished(self, reason: str) -> None:
        self._finished[reason].inc()

    def responded(self, status: int) -> None:
        counter = self._by_status.get(status)
        if counter is None:
            counter = self._by_status[status] = self._responses.labels(str(status))
        counter.inc()

    def stream_cut(self, reason: str) -> None:
        self._cut.labels(reason).inc()

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)


class _Observed(Collector):
    """Histograms and counters of the server, each under its own name and its twin's."""

    def __init__(self, families: list[Histogram | Counter], twins: dict[str, str | None]) -> None:
        self._families = families
        self._twins = twins

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            for metric in family.collect():
                twin = self._twins[metric.name]
                yield _renamed(metric, metric.name)
                if twin is not None:
                    yield _renamed(metric, twin)


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


def _renamed(metric: Metric, name: str) -> Metric:
    """A copy under another name, without the creation times that nobody asked for."""
    copy = Metric(name, metric.documentation, metric.type)
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            shown = name + sample.name[len(metric.name) :]
            copy.add_sample(shown, sample.labels, sample.value)
    return copy
