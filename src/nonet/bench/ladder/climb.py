"""Up the ladder: each rung on top of those below, then each left out of the full stack, because order matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from nonet.bench.ladder.measure import Plan, measure_rung
from nonet.bench.ladder.result import Measured, Store, key_of
from nonet.bench.ladder.rungs import Rung
from nonet.core.errors import UnavailableError

__all__ = ["Ascent", "Quality", "climb"]

Quality = Callable[[dict[str, str]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Ascent:
    """Rungs from the bottom, and the full stack without each of them."""

    rungs: list[Measured]
    without: list[Measured]
    latency_rate_rps: float | None


def climb(
    rungs: Sequence[Rung],
    plan: Plan,
    store: Store,
    identity: dict[str, object],
    *,
    leave_out: bool,
    quality: Quality | None = None,
    began: Callable[[str, int, int], None] = lambda name, number, count: None,
    run: Callable[[str, dict[str, str], Plan], Measured] = measure_rung,
) -> Ascent:
    """Measure what `store` does not hold yet. `identity` is all else that decides a result: commit, model, workload.

    A rung whose technique left no trace in the telemetry gets an error: a switch that does nothing is not a saving.
    """
    count = len(rungs) + (len(rungs) - 1 if leave_out else 0)
    settings: dict[str, str] = {}
    measured: list[Measured] = []

    def key(name: str, given: dict[str, str], plan: Plan) -> str:
        return key_of({**identity, "settings": given, "options": plan.options, "repeats": plan.repeats,
                       "rate": plan.latency_rate_rps, "name": name})  # fmt: skip

    def one(name: str, given: dict[str, str], number: int, plan: Plan) -> Measured:
        began(name, number, count)
        found = store.get(key(name, given, plan))
        if found is None:
            found = run(name, given, plan)
            store.put(key(name, given, plan), found)
        return found

    for number, rung in enumerate(rungs):
        settings = {**settings, **rung.settings}
        below = measured[-1] if measured else None
        found = _proven(rung, one(rung.name, settings, number, plan), below)
        if rung.is_lossy and quality is not None and not (found.error or found.quality):
            found = _with_quality(found, quality)
            store.put(key(rung.name, settings, plan), found)
        measured.append(found)
        if plan.latency_rate_rps is None:  # the first rung sets it for all
            plan = replace(plan, latency_rate_rps=found.latency_rate_rps)
    without = []
    if leave_out:
        for number, rung in enumerate(rungs[1:], start=len(rungs)):
            given = {**settings, **rung.restores}
            without.append(one(f"without {rung.name}", given, number, plan))
    return Ascent(measured, without, plan.latency_rate_rps)


def _proven(rung: Rung, found: Measured, below: Measured | None) -> Measured:
    if found.error is not None or found.telemetry is None:
        return found
    proof = rung.proof(found.telemetry, below.telemetry if below is not None else None)
    if proof is None:
        return msgspec.structs.replace(
            found, error=f"the telemetry shows no trace of {rung.name}: it did not act"
        )
    return msgspec.structs.replace(found, proof=proof)


def _with_quality(found: Measured, quality: Quality) -> Measured:
    try:
        return msgspec.structs.replace(found, quality=quality(found.settings))
    except UnavailableError as error:
        return msgspec.structs.replace(found, proof=f"{found.proof}; quality: {error}")
