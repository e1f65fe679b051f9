"""Throughput in process: all requests handed over at once, timed from the first step to the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from nonet.bench.metrics import RequestTimes, Summary, summarise
from nonet.bench.workload import Workload
from nonet.core.outputs import RequestOutput
from nonet.core.sampling_params import SamplingParams

__all__ = ["Generates", "run_offline"]


class Generates(Protocol):
    """What the benchmark needs of an LLM; `nonet.engine.llm.LLM` is the real one."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]: ...


def run_offline(
    llm: Generates, workload: Workload, now: Callable[[], float] = time.monotonic
) -> tuple[Summary, list[RequestTimes]]:
    """One run; end-of-sequence is ignored so that every request generates what the workload says.

    Only the ends of requests are seen from outside the engine, so the latencies in the summary are None; in the raw
    times the n-th entry ends when the n-th request to finish did.
    """
    prompts = [item.prompt_ids for item in workload.items]
    params = [
        SamplingParams(temperature=0.0, max_tokens=item.output_len, ignore_eos=True)
        for item in workload.items
    ]
    finished_s: list[float] = []
    start = now()

    def note_progress(finished: int, _total: int) -> None:
        while len(finished_s) < finished:
            finished_s.append(now() - start)

    outputs = llm.generate(prompts, params, on_progress=note_progress)
    end = now() - start
    finished_s += [end] * (len(outputs) - len(finished_s))
    times = [
        RequestTimes(
            index=index,
            due_s=0.0,
            sent_s=0.0,
            delivery_s=[finished_s[index]],
            prompt_tokens=len(output.prompt_ids),
            output_tokens=len(output.outputs[0].token_ids),
            cached_tokens=output.num_cached,
            finish_reason=output.outputs[0].finish_reason,
            error=None if output.outputs[0].finish_reason == "length" else "ended early",
        )
        for index, output in enumerate(outputs)
    ]
    return _without_latencies(summarise(times)), times


def _without_latencies(summary: Summary) -> Summary:
    unseen = {"ttft_s": None, "tpot_s": None, "itl_s": None, "e2e_s": None, "send_lag_s": None}
    return msgspec.structs.replace(summary, **unseen)
