"""A scheduler whose every answer is written by hand: a token for each row that samples, and nothing checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nonet.config.resolved import CacheGroup
from nonet.core.clock import FakeClock
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import RowResult, StepPlan, StepResult
from nonet.kv.cache import KVCache
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.policy import POLICIES
from nonet.scheduler.scheduler import Scheduler


def make_scheduler(
    num_blocks: int = 64,
    policy: str = "fcfs",
    *,
    prefix_cache: bool = True,
    seed: int = 0,
    awaits_tokens: Callable[[int], bool] | None = None,
    **limits: Any,
) -> tuple[Scheduler, FakeClock]:
    given = {
        "max_num_seqs": 4, "max_tokens_per_step": 16, "chunked_prefill": True, "max_waiting": 8, "max_model_len": 128,
    }  # fmt: skip
    kv = KVCache((CacheGroup((0,), None),), num_blocks, 4, prefix_cache)
    clock = FakeClock()
    scheduler = Scheduler(
        SchedulerLimits(**{**given, **limits}),
        kv,
        POLICIES.build(policy),
        clock,
        seed=seed,
        awaits_tokens=awaits_tokens,
    )
    return scheduler, clock


def request(
    name: str,
    prompt: int | list[int] = 4,
    *,
    priority: int = 0,
    eos_ids: tuple[int, ...] = (),
    **params: Any,
) -> Request:
    """A prompt of so many tokens, different for each name, or of the given ones."""
    ids = prompt if isinstance(prompt, list) else [sum(name.encode())] * prompt
    return Request(
        request_id=name,
        prompt_ids=ids,
        params=SamplingParams(**{"max_tokens": 8, **params}),
        eos_ids=eos_ids,
        priority=priority,
    )


def result(plan: StepPlan, token: int = 7, **fields: Any) -> StepResult:
    """The same token for every row that samples."""
    rows = [
        RowResult(seq_id=row.seq_id, token_ids=[token] if row.num_samples else [], **fields)
        for row in plan.rows
    ]
    return StepResult(step_id=plan.step_id, rows=rows)


def planned(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan(0.0)
    assert plan is not None
    return plan


def step(scheduler: Scheduler, token: int = 7) -> StepPlan:
    plan = planned(scheduler)
    scheduler.apply(result(plan, token))
    assert scheduler.check_integrity() == []
    return plan


def shape(plan: StepPlan) -> list[tuple[int, int, int, int]]:
    return [(row.seq_id, row.start, row.num_tokens, row.num_samples) for row in plan.rows]
