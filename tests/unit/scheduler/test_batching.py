"""When newcomers may join, and what worst-case reservation takes."""

from __future__ import annotations

import pytest

from nonet.config.resolved import CacheGroup
from nonet.core.clock import FakeClock
from nonet.core.errors import ConfigError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import RowResult, StepResult
from nonet.kv.cache import KVCache
from nonet.scheduler.batching import BATCHINGS
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.policy.fcfs import FcfsPolicy
from nonet.scheduler.scheduler import Scheduler


def make(batching: str = "continuous", *, reserve_whole: bool = False) -> tuple[Scheduler, KVCache]:
    limits = SchedulerLimits(
        max_num_seqs=8,
        max_tokens_per_step=64,
        chunked_prefill=True,
        max_waiting=100,
        max_model_len=256,
        reserve_whole=reserve_whole,
    )
    kv = KVCache((CacheGroup((0,), None),), 32, 16, prefix_cache=False)
    return Scheduler(limits, kv, FcfsPolicy(), FakeClock(), batching=BATCHINGS.build(batching)), kv


def request(name: str, max_tokens: int) -> Request:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id=name, prompt_ids=[1, 2, 3], params=params)


def step(scheduler: Scheduler) -> list[int]:
    """Run one step; who had a row in it."""
    plan = scheduler.plan(0.0)
    assert plan is not None
    rows = [RowResult(seq_id=row.seq_id, token_ids=[7] * row.num_samples) for row in plan.rows]
    scheduler.apply(StepResult(step_id=plan.step_id, rows=rows))
    return [row.seq_id for row in plan.rows]


@pytest.mark.parametrize(
    ("batching", "expected"),
    [
        # 0 ends after one token, 1 after three; two may run at a time
        ("continuous", [[0, 1, 2, 3, 4]] * 1 + [[1, 2, 3, 4]] * 2),
        ("static:size=2", [[0, 1], [1], [1], [2, 3], [2, 3], [2, 3], [4], [4], [4]]),
    ],
)
def test_who_runs_beside_whom(batching: str, expected: list[list[int]]) -> None:
    scheduler, _ = make(batching)
    for number, length in enumerate((1, 3, 3, 3, 3)):
        scheduler.add(request(f"r{number}", length))
    ran = []
    while scheduler.has_work:
        ran.append(step(scheduler))
    assert ran == expected


def test_a_static_batch_has_at_least_one_member() -> None:
    with pytest.raises(ConfigError, match="size is 0"):
        BATCHINGS.build("static:size=0")


def test_worst_case_reservation_admits_fewer_and_never_preempts() -> None:
    """32 blocks of 16 tokens: paged, eight short beginnings fit; with room for 200 tokens each, only two do."""
    running = {}
    for reserve_whole in (False, True):
        scheduler, kv = make(reserve_whole=reserve_whole)
        for number in range(8):
            scheduler.add(request(f"r{number}", 200))
        step(scheduler)
        running[reserve_whole] = scheduler.stats().num_running
        free = kv.num_free
        while scheduler.has_work:
            step(scheduler)
            if reserve_whole:
                assert kv.num_free >= free
        assert kv.num_free == 32
        assert (scheduler.stats().preemptions > 0) is not reserve_whole
    assert running == {False: 8, True: 2}
