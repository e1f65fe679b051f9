"""Times prefill and decode in an engine of this process, at chosen batches and contexts.

Each context is filled once, for the largest batch that fits; sequences leave until the next smaller batch remains, so
a context costs one prefill of its own. Prompts are random and nothing is shared between them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from nonet.bench.roofline.result import Peaks, Point
from nonet.bench.roofline.work import ModelWork, Work
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams

__all__ = ["Cases", "Steps", "measure_points"]

# Steps before timing: graphs are captured and kernels compiled when a batch is first met.
WARM_UP_STEPS = 4

# Prefills of up to this many tokens run once untimed; larger ones meet nothing that those have not.
WARM_UP_TOKENS = 16_384


class Steps(Protocol):
    """What is needed of an engine; `nonet.engine.engine.Engine` is the real one."""

    @property
    def has_work(self) -> bool: ...

    def add(self, request: Request) -> None: ...

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def step(self) -> list[SequenceDelta]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cases:
    """Every batch at every context, as far as `most_tokens` of prompts and the engine's KV hold them."""

    batches: Sequence[int]
    contexts: Sequence[int]
    steps: int = 32  # timed for each decode point
    most_tokens: int = 300_000
    budget_s: float = 300.0  # no point is begun later


@dataclass(slots=True)
class _Run:
    engine: Steps
    work: ModelWork
    peaks: Peaks
    cases: Cases
    show: Callable[[Point], None]
    now: Callable[[], float]
    points: list[Point] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    requests_made: int = 0

    @property
    def last_position(self) -> int:
        """Tokens that a sequence must have room for besides its prompt, whatever else happens."""
        return (self.cases.steps + WARM_UP_STEPS + 2) * len(self.cases.batches) + 2

    def fits(self, batch: int, context: int) -> str | None:
        """Why a point cannot be measured; None when it can."""
        resolved, tokens = self.work.resolved, batch * context
        if context + self.last_position > resolved.max_model_len:
            return f"max_model_len is {resolved.max_model_len}"
        if batch > resolved.max_num_seqs:
            return f"max_num_seqs is {resolved.max_num_seqs}"
        if tokens > self.cases.most_tokens:
            return f"{tokens} prompt tokens are above the limit of {self.cases.most_tokens}"
        each = -(-(context + self.last_position) // resolved.block_size) + 1
        if batch * each * len(resolved.groups) > resolved.num_blocks:
            return f"there are {resolved.num_blocks} KV blocks"
        return None

    def add(self, batch: int, context: int, max_tokens: int) -> list[str]:
        names = []
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        rng = random.Random(f"{batch} {context} {self.requests_made}")
        high = min(120_000, self.work.spec.vocab_size)
        for _ in range(batch):
            self.requests_made += 1
            name = f"roofline-{self.requests_made}"
            prompt = [rng.randrange(high // 100, high) for _ in range(context)]
            self.engine.add(Request(request_id=name, prompt_ids=prompt, params=params))
            names.append(name)
        return names

    def first_tokens(self, batch: int, context: int) -> list[str]:
        """Untimed: the requests, each with its first token."""
        names = self.add(batch, context, 2)
        self.until_first_tokens(names)
        return names

    def until_first_tokens(self, names: Sequence[str]) -> float:
        waiting, began = set(names), self.now()
        while waiting:
            for delta in self.engine.step():
                if delta.error is not None:
                    raise RuntimeError(f"a sequence of the benchmark failed: {delta.error}")
                if delta.token_ids:
                    waiting.discard(delta.request_id)
        return self.now() - began

    def drain(self, names: Sequence[str]) -> None:
        self.engine.abort(names)
        while self.engine.has_work:
            self.engine.step()

    def keep(
        self,
        phase: Literal["prefill", "decode"],
        batch: int,
        context: int,
        times: Sequence[float],
        work: Work,
    ) -> None:
        seconds = statistics.median(times)
        tokens = batch * context if phase == "prefill" else batch
        point = Point(
            phase=phase,
            batch=batch,
            context=context,
            seconds=seconds,
            least_s=min(times),
            tokens_per_s=tokens / seconds,
            flops=work.flops,
            num_bytes=work.num_bytes,
            compute_share=work.flops / seconds / self.peaks.flops_per_s,
            bandwidth_share=work.num_bytes / seconds / self.peaks.bytes_per_s,
        )
        self.points.append(point)
        self.show(point)


def measure_points(
    engine: Steps,
    work: ModelWork,
    peaks: Peaks,
    cases: Cases,
    *,
    show: Callable[[Point], None] = lambda _: None,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[list[Point], list[str]]:
    """The points, and what was left out and why. `show` gets each point when it is there."""
    run = _Run(engine, work, peaks, cases, show, now)
    deadline = now() + cases.budget_s
    for context in cases.contexts:
        batches = []
        for batch in sorted(set(cases.batches), reverse=True):
            reason = run.fits(batch, context)
            if reason is None:
                batches.append(batch)
            else:
                run.left_out.append(f"batch {batch} at {context} tokens: {reason}")
        if batches and now() > deadline:
            run.left_out.append(f"{context} tokens: the time for this benchmark was up")
        elif batches:
            _one_context(run, context, batches, deadline)
    return run.points, run.left_out


def _one_context(run: _Run, context: int, batches: list[int], deadline: float) -> None:
    run.drain(run.first_tokens(1, context))
    for batch in batches[:0:-1]:  # the largest is timed where it is filled for decoding
        if _is_late(run, deadline, f"prefill of batch {batch} at {context} tokens"):
            continue
        if batch * context <= WARM_UP_TOKENS:
            run.drain(run.first_tokens(batch, context))
        names = run.add(batch, context, 1)
        seconds = run.until_first_tokens(names)
        run.keep("prefill", batch, context, [seconds], run.work.prefill(batch, context))
        run.drain(names)
    names = run.add(batches[0], context, run.work.resolved.max_model_len - context)
    filled_s = run.until_first_tokens(names)
    run.keep("prefill", batches[0], context, [filled_s], run.work.prefill(batches[0], context))
    done = 0
    for batch in batches:
        run.engine.abort(names[batch:])
        for _ in range(WARM_UP_STEPS):
            run.engine.step()
        times = [_timed_step(run) for _ in range(run.cases.steps)]
        # Sequences that waited for others' prompts have run on since their own first token; this is the least.
        middle = context + done + WARM_UP_STEPS + run.cases.steps / 2
        run.keep("decode", batch, context, times, run.work.decode(batch, middle))
        done += WARM_UP_STEPS + run.cases.steps
    run.drain(names)


def _is_late(run: _Run, deadline: float, what: str) -> bool:
    """Notes what is left out, if so."""
    if run.now() <= deadline:
        return False
    run.left_out.append(f"{what}: the time for this benchmark was up")
    return True


def _timed_step(run: _Run) -> float:
    began = run.now()
    run.engine.step()
    return run.now() - began
