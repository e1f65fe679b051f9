"""Figures of hand-made timelines, and a wrong reading of each definition that must differ."""

from __future__ import annotations

import pytest

from nonet.bench.metrics import Limits, RequestTimes, percentile, summarise

# Sent at 1.0; deliveries at 1.5, 1.7, 2.3 that carry 1, 3 and 1 tokens.
FIRST = RequestTimes(
    index=0, due_s=0.9, sent_s=1.0, delivery_s=[1.5, 1.7, 2.3], prompt_tokens=10, output_tokens=5
)
# One token only: it has a TTFT and an end, but no TPOT and no gap.
SECOND = RequestTimes(
    index=1, due_s=2.0, sent_s=2.0, delivery_s=[3.0], prompt_tokens=4, output_tokens=1
)
FAILED = RequestTimes(index=2, due_s=2.0, sent_s=2.5, error="HTTP 500")


def test_one_request() -> None:
    assert FIRST.ttft_s == pytest.approx(0.5)
    assert FIRST.e2e_s == pytest.approx(1.3)
    # (end to end - TTFT) / (output tokens - 1), not per delivery
    assert FIRST.tpot_s == pytest.approx((1.3 - 0.5) / 4)
    assert FIRST.tpot_s != pytest.approx((1.3 - 0.5) / 2)
    assert FIRST.itl_s == pytest.approx([0.2, 0.6])
    assert SECOND.tpot_s is None
    assert SECOND.itl_s == []


def test_a_run() -> None:
    summary = summarise([FIRST, SECOND, FAILED])
    assert (summary.num_requests, summary.num_failed) == (3, 1)
    # first sent at 1.0, last token at 3.0
    assert summary.duration_s == pytest.approx(2.0)
    assert summary.output_tokens_per_s == pytest.approx(6 / 2.0)
    assert summary.total_tokens_per_s == pytest.approx((6 + 14) / 2.0)
    assert summary.requests_per_s == pytest.approx(2 / 2.0)
    assert summary.goodput_rps is None
    assert summary.ttft_s is not None
    assert summary.ttft_s.p50 == pytest.approx(0.75)
    assert summary.tpot_s is not None
    assert summary.tpot_s.count == 1
    assert summary.itl_s is not None
    assert summary.itl_s.max == pytest.approx(0.6)
    assert summary.e2e_s is not None
    assert summary.e2e_s.mean == pytest.approx((1.3 + 1.0) / 2)
    assert summary.send_lag_s is not None
    assert summary.send_lag_s.max == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        (Limits(ttft_s=1.0), 2),
        (Limits(ttft_s=0.5), 1),
        (Limits(ttft_s=1.0, tpot_s=0.1), 1),  # SECOND has no TPOT to break
        (Limits(itl_s=0.6), 2),
        (Limits(itl_s=0.5), 1),
        (Limits(e2e_s=1.0), 1),
        (Limits(ttft_s=0.9, e2e_s=1.2), 0),  # each is met by one request, both by none
    ],
)
def test_goodput_needs_all_limits(limits: Limits, met: int) -> None:
    assert summarise([FIRST, SECOND, FAILED], limits).goodput_rps == pytest.approx(met / 2.0)


def test_nothing_sent() -> None:
    summary = summarise([], Limits(ttft_s=1.0))
    assert summary.output_tokens_per_s == 0.0
    assert summary.ttft_s is None


def test_all_failed() -> None:
    summary = summarise([FAILED])
    assert summary.num_failed == 1
    assert summary.e2e_s is None


@pytest.mark.parametrize(
    ("fraction", "value"), [(0.0, 1.0), (0.5, 3.0), (0.9, 4.6), (0.99, 4.96), (1.0, 5.0)]
)
def test_percentile(fraction: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], fraction) == pytest.approx(value)
    assert percentile([7.0], fraction) == 7.0
