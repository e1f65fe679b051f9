"""What the batch tier is worth: work that may wait fills what online traffic leaves idle, on a machine paid for anyway.

Online requests come at the ladder's common rate, first alone, then with a backlog of batch requests behind them that
does not run dry, under the policy that puts deadlines first. The machine's price is divided by the tokens of both.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from nonet.bench.client import Target, send_all
from nonet.bench.ladder.measure import Plan, fresh_metrics, latency_items, nonce, starting_server
from nonet.bench.ladder.result import BatchTier
from nonet.bench.metrics import RequestTimes, summarise
from nonet.bench.workload import WorkItem
from nonet.core.errors import NonetError

__all__ = ["measure_batch_tier"]

# The class of requests that may wait, as clients name it, and the policy that knows it.
TIER = "flex"
POLICY = {"policy": "slo"}


def measure_batch_tier(settings: dict[str, str], plan: Plan) -> BatchTier:
    """On top of `settings`; a failure is in the result, never raised."""
    given = {**settings, **POLICY}
    rate = plan.latency_rate_rps
    assert rate, "the ladder's common rate is known by now"
    try:
        with starting_server(given, plan) as target:
            alone, _, _ = asyncio.run(_online(target, plan, rate, "alone", ()))
            backlog = [replace(item, service_tier=TIER) for item in plan.workload.items]
            beside, tokens, seconds = asyncio.run(_online(target, plan, rate, "beside", backlog))
    except (NonetError, OSError) as error:
        return BatchTier(settings=given, rate_rps=rate, error=str(error) or type(error).__name__)
    found = BatchTier(
        settings=given,
        rate_rps=rate,
        alone=summarise(alone, plan.limits),
        beside=summarise(beside, plan.limits),
        tokens_per_s=tokens / seconds,
    )
    online_tokens = sum(one.output_tokens for one in beside)
    if tokens <= online_tokens:
        gone = "no batch request made a token beside the online ones: the tier did not act"
        return msgspec.structs.replace(found, error=gone)
    return found


async def _online(
    target: Target, plan: Plan, rate_rps: float, run: str, backlog: Sequence[WorkItem]
) -> tuple[list[RequestTimes], float, float]:
    """The online requests, tokens of all classes up to a report after their last one, and how long that was."""
    items, due_s = latency_items(plan, rate_rps, f"batch tier {run}")
    before = await _tokens(target)
    behind = [asyncio.create_task(_again_and_again(target, item)) for item in backlog]
    before = await _once_at_work(target, behind, before)
    start = time.monotonic()
    online = await send_all(target, items, due_s)
    own = sum(one.output_tokens for one in online)
    # A few short requests leave the others no turn, or end within one long step: the first turn after them counts then.
    while (tokens := await _tokens(target) - before) <= own and not _ended(behind):
        pass
    seconds = time.monotonic() - start
    for one in behind:
        one.cancel()
    await asyncio.gather(*behind, return_exceptions=True)
    return online, tokens, seconds


async def _once_at_work(
    target: Target, backlog: Sequence[asyncio.Task[None]], before: float
) -> float:
    """The tokens made once the backlog runs: a static batch of the online requests alone would end before it."""
    while (now := await _tokens(target)) <= before and not _ended(backlog):
        pass
    return now


def _ended(backlog: Sequence[asyncio.Task[None]]) -> bool:
    """Nothing waits, or all that did has failed."""
    return all(one.done() for one in backlog)


async def _again_and_again(target: Target, item: WorkItem) -> None:
    """Until cancelled, or until it fails; every turn's text is another, so that no cache answers it."""
    for turn in itertools.count():
        seen = await send_all(target, [nonce(item, f"batch tier turn {turn}")], [0.0])
        if seen[0].error is not None:
            return


async def _tokens(target: Target) -> float:
    return (await fresh_metrics(target)).get("nonet_generation_tokens", 0.0)
