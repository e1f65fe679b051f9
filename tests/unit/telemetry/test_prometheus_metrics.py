"""Names, twins and values on /metrics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from nonet.core.messages import EngineStats
from nonet.telemetry.metrics import METRIC_NAMES, Metrics

VLLM_NAMES = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total", "vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_sum", "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count", "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_count", "vllm:spec_decode_num_drafts_total",
    "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total",
}  # fmt: skip


def rendered(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Sample name -> sorted labels -> value."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[str(sorted(sample.labels.items()))] = sample.value
    return found


def test_all_names_and_their_twins_agree() -> None:
    stats = EngineStats(num_running=3, kv_usage=0.25, prefix_hit_tokens=7, generation_tokens=11)
    metrics = Metrics("m", lambda: stats, lambda: 2)
    metrics.ttft(0.2)
    metrics.itl(0.02)
    metrics.e2e(1.0)
    metrics.finished("stop")
    metrics.responded(200)
    metrics.stream_cut("slow_reader_time")
    found = rendered(metrics)
    assert set(found) >= VLLM_NAMES
    label = "[('model_name', 'm')]"
    assert found["vllm:num_requests_running"] == found["nonet_running_sequences"] == {label: 3}
    assert found["vllm:kv_cache_usage_perc"][label] == 0.25
    assert found["vllm:prefix_cache_hits_total"][label] == 7
    assert found["vllm:time_to_first_token_seconds_sum"][label] == 0.2
    assert found["vllm:inter_token_latency_seconds_count"] == found["nonet_itl_seconds_count"]
    stop = "[('finished_reason', 'stop'), ('model_name', 'm')]"
    assert found["vllm:request_success_total"][stop] == 1
    assert found["nonet_engine_deaths_total"] == {"[]": 2}
    assert not [name for name in found if name.endswith("_created")]


def test_accepted_drafts_by_their_place() -> None:
    stats = EngineStats(
        num_drafts=4, num_draft_tokens=8, num_accepted_tokens=3, accepted_per_position=[2, 1]
    )
    found = rendered(Metrics("m", lambda: stats, lambda: 0))
    assert found["nonet_draft_tokens_total"] == found["vllm:spec_decode_num_draft_tokens_total"]
    places = found["vllm:spec_decode_num_accepted_tokens_per_pos_total"]
    assert [places[f"[('model_name', 'm'), ('position', '{p}')]"] for p in (0, 1)] == [2, 1]
    assert (
        sum(places.values())
        == found["vllm:spec_decode_num_accepted_tokens_total"]["[('model_name', 'm')]"]
    )


def test_listed_names_are_the_exposed_families() -> None:
    metrics = Metrics("m", EngineStats, lambda: 0)
    metrics.responded(200)
    metrics.stream_cut("slow_reader_time")
    families = {f.name for f in text_string_to_metric_families(metrics.render().decode())}
    assert families == METRIC_NAMES


def test_two_servers_share_nothing() -> None:
    one, two = (Metrics("m", EngineStats, lambda: 0) for _ in range(2))
    one.finished("stop")
    stop = "[('finished_reason', 'stop'), ('model_name', 'm')]"
    assert rendered(one)["nonet_requests_total"][stop] == 1
    assert rendered(two)["nonet_requests_total"][stop] == 0
