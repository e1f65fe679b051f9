"""Poisson arrivals at the asynchronous engine, in process and without HTTP: every request leaves at its own time.

Before, the engine has some seconds without work, in which it records the sizes of its steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

from gpu_parts.engine import the_mix
from gpu_parts.job import Job, keep
from nonet.bench.arrivals import poisson
from nonet.bench.metrics import RequestTimes, summarise
from nonet.bench.workload import WorkItem, Workload
from nonet.core.sampling_params import SamplingParams
from nonet.engine.async_llm import AsyncLLM

__all__ = ["latency"]

ARRIVAL_SEED = 7


def latency(job: Job, model: str) -> None:
    """One row for each rate; written after each."""
    asyncio.run(_latency(job, model))


async def _latency(job: Job, model: str) -> None:
    limits = job.limits
    began = time.perf_counter()
    async with AsyncLLM(model, **job.engine_options(), seed=0) as llm:
        start_s = time.perf_counter() - began
        await asyncio.sleep(limits.latency_idle_s)
        work = the_mix(job, llm.spec.vocab_size)
        await _send(llm, _warm_up(work, limits.latency_warm_up), None)
        await _send(llm, work.items[: limits.latency_warm_up // 4], None)
        rows: dict[str, object] = {}
        for rate, count in limits.latency:
            first = Workload("latency", work.items[:count])
            requests = await _send(llm, first.items, poisson(first, rate, ARRIVAL_SEED))
            summary = msgspec.to_builtins(summarise(requests))
            rows[f"{rate:g}"] = summary | {"requests": msgspec.to_builtins(requests)}
            config = msgspec.to_builtins(llm.resolved)
            keep(job, "latency", {"start_s": start_s, "rows": rows}, config)


def _warm_up(work: Workload, count: int) -> list[WorkItem]:
    """All at once, each a token longer than the last: the batch passes through every size on its way down."""
    return [
        WorkItem(item.prompt_ids[:32], number + 2) for number, item in enumerate(work.items[:count])
    ]


async def _send(
    llm: AsyncLLM, items: Sequence[WorkItem], due_s: Sequence[float] | None
) -> list[RequestTimes]:
    """Each item at its time (all at once without times); a failure is recorded, never raised."""
    start = time.monotonic()
    times = due_s or [0.0] * len(items)
    return await asyncio.gather(
        *(_one(llm, number, item, times[number], start) for number, item in enumerate(items))
    )


async def _one(
    llm: AsyncLLM, index: int, item: WorkItem, due_s: float, start: float
) -> RequestTimes:
    await asyncio.sleep(max(0.0, start + due_s - time.monotonic()))
    params = SamplingParams(temperature=0.0, max_tokens=item.output_len, ignore_eos=True)
    sent_s = time.monotonic() - start
    deliveries: list[float] = []
    seen = 0
    error = reason = None
    try:
        async for output in llm.generate(list(item.prompt_ids), params):
            choice = output.outputs[0]
            if len(choice.token_ids) > seen:
                seen = len(choice.token_ids)
                deliveries.append(time.monotonic() - start)
            reason, error = choice.finish_reason, choice.error
    except Exception as failure:  # one request's failure is a result of the run
        error = str(failure) or type(failure).__name__
    if error is None and seen != item.output_len:
        error = f"{seen} of {item.output_len} tokens came"
    return RequestTimes(
        index=index, due_s=due_s, sent_s=sent_s, delivery_s=deliveries,
        prompt_tokens=len(item.prompt_ids), output_tokens=seen, finish_reason=reason, error=error,
    )  # fmt: skip
