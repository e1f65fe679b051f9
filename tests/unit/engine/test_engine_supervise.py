"""The supervision rules on a clock of the test's own."""

from __future__ import annotations

import pytest

from nonet.core.messages import EngineStats
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.engine.supervise import (
    HangWatch,
    Quarantine,
    RestartPolicy,
    Supervision,
    content_hash,
)

LIMITS = Supervision(tick_s=0.25, hang_s=1.0, step_limit_s=10.0, stall_s=3.0)
IDLE = EngineStats()
BUSY = EngineStats(num_running=1, step_tokens=10)


def first_verdict(
    watch: HangWatch, *, seconds: float, cpu_per_tick_s: float, disk: bool = False
) -> tuple[float, str] | None:
    """Tick until the watch speaks."""
    cpu_s = 1.0
    for tick in range(1, int(seconds / LIMITS.tick_s) + 1):
        now = tick * LIMITS.tick_s
        cpu_s += cpu_per_tick_s
        reason = watch.tick(now, cpu_s=cpu_s, waits_for_disk=disk)
        if reason is not None:
            return now, reason
        if watch.wants_ping(now):
            watch.pinged(now)
    return None


@pytest.mark.parametrize("limits", [LIMITS, Supervision()], ids=["given", "defaults"])
def test_stopped_process_is_hung_soon(limits: Supervision) -> None:
    verdict = first_verdict(HangWatch(limits, 0.0), seconds=5, cpu_per_tick_s=0.0)
    assert verdict is not None
    at_s, reason = verdict
    assert at_s <= limits.hang_s + 2 * limits.tick_s < 2
    assert "no CPU time" in reason


def test_computing_process_is_not_hung_until_the_step_limit() -> None:
    verdict = first_verdict(HangWatch(LIMITS, 0.0), seconds=20, cpu_per_tick_s=0.2)
    assert verdict is not None
    assert verdict[0] >= LIMITS.step_limit_s
    assert "no answer for 10.0 s" in verdict[1]


def test_waiting_for_the_disk_is_life() -> None:
    assert first_verdict(HangWatch(LIMITS, 0.0), seconds=9, cpu_per_tick_s=0.0, disk=True) is None


def test_cpu_noise_below_a_kernel_tick_is_no_life() -> None:
    assert first_verdict(HangWatch(LIMITS, 0.0), seconds=3, cpu_per_tick_s=0.0001) is not None


def test_answers_keep_it_alive_and_a_plain_frame_does_not_answer_a_ping() -> None:
    watch = HangWatch(LIMITS, 0.0)
    watch.pinged(0.0)
    watch.heard(0.1, None)
    assert not watch.wants_ping(5.0)
    watch.heard(0.2, IDLE)
    assert not watch.wants_ping(0.3)
    assert watch.wants_ping(0.5)


def test_late_tick_of_ours_is_not_held_against_the_engine() -> None:
    watch = HangWatch(LIMITS, 0.0)
    watch.pinged(0.0)
    assert watch.tick(0.25, cpu_s=1.0, waits_for_disk=False) is None
    assert watch.tick(60.0, cpu_s=1.0, waits_for_disk=False) is None
    later = [watch.tick(60.0 + 0.25 * i, cpu_s=1.0, waits_for_disk=False) for i in range(1, 6)]
    assert later[-1] is not None


def test_stall_is_work_without_tokens() -> None:
    watch = HangWatch(LIMITS, 0.0)
    spoke = None
    for tick in range(1, 40):
        now = 0.25 * tick
        watch.heard(now, BUSY)
        spoke = spoke or watch.tick(now, cpu_s=float(tick), waits_for_disk=False)
    assert spoke is not None
    assert "no token" in spoke


@pytest.mark.parametrize("is_idle", [True, False])
def test_progress_or_idleness_is_no_stall(is_idle: bool) -> None:
    watch = HangWatch(LIMITS, 0.0)
    for tick in range(1, 40):
        now = 0.25 * tick
        stats = IDLE if is_idle else EngineStats(num_running=1, step_tokens=tick)
        watch.heard(now, stats)
        assert watch.tick(now, cpu_s=1.0, waits_for_disk=False) is None


def test_backoff_doubles_then_the_breaker_pauses_then_forgets() -> None:
    limits = Supervision(
        backoff_s=0.1, backoff_max_s=0.5, breaker_deaths=5, breaker_window_s=60, breaker_pause_s=30
    )
    policy = RestartPolicy(limits)
    delays = [policy.delay_after_death(float(second)) for second in range(6)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.5, 30.0, 30.0])
    assert policy.delay_after_death(1000.0) == pytest.approx(0.1)


def request(name: str, prompt: list[int], **params: object) -> Request:
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(**params))


def test_content_hash_is_of_everything_but_the_id() -> None:
    base = request("a", [1, 2], seed=1, logit_bias={1: 1.0, 2: 2.0})
    assert content_hash(base) == content_hash(
        request("b", [1, 2], seed=1, logit_bias={2: 2.0, 1: 1.0})
    )
    others = [request("a", [1, 3], seed=1), request("a", [1, 2], seed=2), request("a", [1, 2])]
    assert len({content_hash(one) for one in (base, *others)}) == 4


def test_quarantine_counts_deaths_clears_on_success_and_expires() -> None:
    quarantine = Quarantine(Supervision(quarantine_deaths=2, quarantine_s=100.0))
    bad, good = request("1", [1]), request("2", [2])
    quarantine.on_death([bad, good], 0.0)
    assert not quarantine.refuses(bad, 1.0)
    quarantine.on_success(good)
    quarantine.on_death([bad, good], 2.0)
    assert quarantine.refuses(bad, 3.0)
    assert not quarantine.refuses(good, 3.0)
    assert not quarantine.refuses(bad, 200.0)


def test_equal_requests_in_one_death_count_once() -> None:
    quarantine = Quarantine(Supervision(quarantine_deaths=2))
    quarantine.on_death([request("1", [1]), request("2", [1])], 0.0)
    assert not quarantine.refuses(request("3", [1]), 1.0)


def test_quarantine_is_bounded() -> None:
    quarantine = Quarantine(Supervision(quarantine_deaths=1))
    quarantine.on_death([request("1", [i]) for i in range(Quarantine.MAX_SUSPECTS)], 0.0)
    quarantine.on_death([request("1", [-1])], 1.0)
    refused = sum(
        quarantine.refuses(request("1", [i]), 2.0) for i in range(Quarantine.MAX_SUSPECTS)
    )
    assert refused == Quarantine.MAX_SUSPECTS - 1
