"""Up the ladder: each rung on top of those below, then each left out of the full stack, because order matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from nonet.bench.ladder.measure import Plan, measure_rung
from nonet.bench.ladder.result import BatchTier, Measured, Store, key_of
from nonet.bench.ladder.rungs import Rung
from nonet.config.techniques import LISTS
from nonet.core.errors import UnavailableError

__all__ = ["Ascent", "Budget", "Quality", "climb"]

Quality = Callable[[dict[str, str]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Ascent:
    """Rungs from the bottom, and the full stack without each of them."""

    rungs: list[Measured]
    without: list[Measured]
    latency_rate_rps: float | None
    batch_tier: BatchTier | None = None


@dataclass(slots=True)
class Budget:
    """How long the whole climb may take; what would not fit is left for the next run."""

    seconds: float | None = None
    now: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _latest: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._began = self.now()

    def is_over(self) -> bool:
        """Whether another measurement, half as long again as the latest one, would not fit: a lower rung is slower."""
        left = self.left_s
        return left is not None and left < 1.5 * self._latest

    @property
    def left_s(self) -> float | None:
        return None if self.seconds is None else self._began + self.seconds - self.now()

    def took(self, seconds: float) -> None:
        self._latest = seconds


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    settings: dict[str, str]


@dataclass(slots=True)
class _Climber:
    """Measures jobs that the store does not hold yet."""

    plan: Plan
    store: Store
    identity: dict[str, object]
    budget: Budget
    began: Callable[[str, int, int], None]
    run: Callable[[str, dict[str, str], Plan], Measured]
    count: int
    done: int = 0

    def measure(self, job: _Job) -> Measured:
        key = self.key(job)
        found = self.store.get(key)
        if found is not None:
            self.done += 1
            return found
        if self.budget.is_over():
            return Measured(name=job.name, settings=job.settings, skipped="no time was left for it")
        self.began(job.name, self.done, self.count)
        start = time.monotonic()
        found = self.run(job.name, job.settings, self.plan)
        if self.done:  # the first rung is the slowest by far
            self.budget.took(time.monotonic() - start)
        self.done += 1
        self.store.put(key, found)
        return found

    def measure_tier(
        self, full: _Job, tier: Callable[[dict[str, str], Plan], BatchTier]
    ) -> BatchTier | None:
        """The batch tier beside the full stack; None where there is no common rate, or no time."""
        key = self.key(_Job("batch tier", full.settings))
        found = self.store.get_tier(key)
        if found is not None or self.plan.latency_rate_rps is None or self.budget.is_over():
            return found
        self.began("batch tier", self.done, self.count)
        found = tier(full.settings, self.plan)
        self.store.put(key, found)
        return found

    def keep(self, job: _Job, found: Measured) -> None:
        self.store.put(self.key(job), found)

    def key(self, job: _Job) -> str:
        plan = self.plan
        return key_of({**self.identity, "settings": job.settings, "options": plan.options, "repeats": plan.repeats,
                       "rate": plan.latency_rate_rps, "name": job.name})  # fmt: skip


def climb(
    rungs: Sequence[Rung],
    plan: Plan,
    store: Store,
    identity: dict[str, object],
    *,
    leave_out: bool,
    quality: Quality | None = None,
    budget: Budget | None = None,
    began: Callable[[str, int, int], None] = lambda name, number, count: None,
    run: Callable[[str, dict[str, str], Plan], Measured] = measure_rung,
    tier: Callable[[dict[str, str], Plan], BatchTier] | None = None,
) -> Ascent:
    """Measure what `store` does not hold yet. `identity` is all else that decides a result: commit, model, workload.

    The full stack comes right after the first rung, so that a climb which is cut short has both ends, and then one rung
    after the other from there down: the lower, the slower. A rung whose technique left no trace in the telemetry gets
    an error: a switch that does nothing is not a saving.
    """
    lines = [rung for rung in rungs if not rung.is_base]
    jobs: list[_Job] = []
    below: dict[str, str] = {}
    for rung in lines:
        below = rung.on_top_of(below)
        jobs.append(_Job(rung.name, below))
    left_out = _left_out(rungs, jobs) if leave_out else []
    climber = _Climber(
        plan, store, identity, budget or Budget(), began, run, len(jobs) + len(left_out)
    )
    seen = [climber.measure(jobs[0])]
    if plan.latency_rate_rps is None:  # the first rung sets it for all
        climber.plan = replace(plan, latency_rate_rps=seen[0].latency_rate_rps)
    seen += [climber.measure(job) for job in jobs[:0:-1]][::-1]
    measured = _proven(lines, seen)
    if quality is not None:
        for number, rung in enumerate(lines):
            if rung.is_lossy and _wants_quality(measured[number]) and not climber.budget.is_over():
                began(f"quality of {rung.name}", climber.done, climber.count)
                measured[number] = _with_quality(measured[number], quality)
                # The first rung was kept under a plan without a rate, but it is never lossy.
                climber.keep(jobs[number], measured[number])
    found = climber.measure_tier(jobs[-1], tier) if tier is not None else None
    without = [_missed(rung, measured[-1], climber.measure(job)) for rung, job in left_out]
    return Ascent(measured, without, climber.plan.latency_rate_rps, found)


def _left_out(rungs: Sequence[Rung], jobs: Sequence[_Job]) -> list[tuple[Rung, _Job]]:
    """The full stack with what a rung changed as it was below; not where a later rung changes the same options."""
    full, found = jobs[-1].settings, []
    below: dict[str, str] = jobs[0].settings
    number = 0
    for place, rung in enumerate(rungs[1:], start=1):
        later = {name for other in rungs[place + 1 :] for name in other.settings} - LISTS
        if not later.issuperset(rung.settings):
            shared = set() if rung.is_base else (rung.settings.keys() & below.keys()) - LISTS
            before = {**rung.restores, **{name: below[name] for name in shared}}
            given = replace(rung, restores=before).left_out_of(full)
            found.append((rung, _Job(f"without {rung.name}", given)))
        if not rung.is_base:
            number += 1
            below = jobs[number].settings
    return found


def _proven(lines: Sequence[Rung], seen: Sequence[Measured]) -> list[Measured]:
    """Each beside the nearest rung below that was measured."""
    below: Measured | None = None
    proven = []
    for rung, one in zip(lines, seen, strict=True):
        found = one
        if one.error is None and one.telemetry is not None:
            proof = rung.proof(one.telemetry, below.telemetry if below is not None else None)
            gone = f"the telemetry shows no trace of {rung.name}: it did not act"
            found = msgspec.structs.replace(one, proof=proof, error=gone if proof is None else None)
            below = one
        proven.append(found)
    return proven


def _missed(rung: Rung, full: Measured, without: Measured) -> Measured:
    """`without`, if the full stack shows the technique and it does not."""
    if without.error is not None or without.telemetry is None or full.telemetry is None:
        return without
    proof = rung.proof(full.telemetry, without.telemetry)
    if proof is None:
        gone = f"with and without {rung.name} the telemetry is the same: it did not act in the full stack"
        return msgspec.structs.replace(without, error=gone)
    return msgspec.structs.replace(without, proof=f"in the full stack: {proof}")


def _wants_quality(found: Measured) -> bool:
    return bool(found.runs) and not (found.error or found.quality)


def _with_quality(found: Measured, quality: Quality) -> Measured:
    try:
        return msgspec.structs.replace(found, quality=quality(found.settings))
    except UnavailableError as error:
        return msgspec.structs.replace(found, proof=f"{found.proof}; quality: {error}")
