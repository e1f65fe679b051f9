"""The real scheduler on a fake clock: requests arrive, steps cost what a line says, and nothing is computed.

For comparing policies and limits on hours of traffic within seconds. What it cannot show is how well a policy's
predictions hold on a machine whose steps vary.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from nonet.core.clock import FakeClock
from nonet.core.errors import OverloadedError
from nonet.core.request import Request
from nonet.core.step import RowResult, StepPlan, StepResult
from nonet.kv.cache import KVCache
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.policy.base import Policy
from nonet.scheduler.scheduler import Scheduler

__all__ = ["Arrival", "Journey", "MachineModel", "simulate"]

# Any token will do: requests of a simulation end by max_tokens.
TOKEN = 1


@dataclass(frozen=True, slots=True)
class MachineModel:
    """Seconds of a step: `step_s`, and more for each token computed and for each KV entry read."""

    step_s: float
    token_s: float
    context_s: float = 0.0

    def seconds(self, plan: StepPlan) -> float:
        context = sum(row.start + row.num_tokens for row in plan.rows)
        return self.step_s + self.token_s * plan.num_tokens + self.context_s * context


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes. Its sampling parameters must ignore the end of sequence and give max_tokens."""

    at_s: float
    request: Request


@dataclass(slots=True)
class Journey:
    """What became of one arrival; `token_s` holds the time of each output token."""

    arrival: Arrival
    token_s: list[float] = field(default_factory=list)
    finished: bool = False
    retry_after_s: float | None = None  # refused

    @property
    def ttft_s(self) -> float | None:
        return self.token_s[0] - self.arrival.at_s if self.token_s else None

    @property
    def tpot_s(self) -> float | None:
        """None for fewer than two tokens."""
        if len(self.token_s) < 2:
            return None
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1)


def simulate(
    arrivals: Sequence[Arrival],
    *,
    limits: SchedulerLimits,
    kv: KVCache,
    policy: Policy,
    machine: MachineModel,
    until_s: float | None = None,
) -> list[Journey]:
    """Every arrival's journey, in the order given; stops when all are done, or at `until_s`."""
    clock = FakeClock()
    scheduler = Scheduler(limits, kv, policy, clock)
    journeys = [Journey(arrival) for arrival in arrivals]
    by_id = {journey.arrival.request.request_id: journey for journey in journeys}
    assert len(by_id) == len(journeys), "request ids must differ"
    coming = [(journey.arrival.at_s, number) for number, journey in enumerate(journeys)]
    heapq.heapify(coming)
    while (coming or scheduler.has_work) and (until_s is None or clock.now() < until_s):
        if not scheduler.has_work and coming[0][0] > clock.now():
            clock.advance(coming[0][0] - clock.now())
        while coming and coming[0][0] <= clock.now():
            journey = journeys[heapq.heappop(coming)[1]]
            try:
                scheduler.add(journey.arrival.request)
            except OverloadedError as error:
                journey.retry_after_s = error.retry_after_s
        plan = scheduler.plan(clock.now())
        if plan is not None:
            clock.advance(machine.seconds(plan))
            scheduler.apply(_result(plan))
        for delta in scheduler.drain_deltas():
            journey = by_id[delta.request_id]
            journey.token_s += [clock.now()] * len(delta.token_ids)
            journey.finished = delta.finish_reason is not None
    return journeys


def _result(plan: StepPlan) -> StepResult:
    rows = [
        RowResult(seq_id=row.seq_id, token_ids=[TOKEN] if row.num_samples else [])
        for row in plan.rows
    ]
    return StepResult(step_id=plan.step_id, rows=rows)
