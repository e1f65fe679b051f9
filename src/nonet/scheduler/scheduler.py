"""Continuous batching: each step, the tokens computed catch up with the tokens known, within a token budget.

There is no prefill phase and no decode phase. `plan` says which sequences run in the next step and how many tokens of
each; `apply` takes in what the step brought. Plans may run one step ahead of results: then a row can begin at a token
that was sampled and not yet read. Its `start` equals the number of tokens the host knows, and the runner, which sampled
the token, puts its id in on the device.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nonet.core.clock import Clock
from nonet.core.errors import ContextLengthError, InvalidRequestError, OverloadedError
from nonet.core.messages import EngineStats
from nonet.core.outputs import FinishReason, SequenceDelta, TokenLogprob
from nonet.core.request import Request
from nonet.core.step import Row, RowResult, StepPlan, StepResult
from nonet.kv.cache import KVCache
from nonet.scheduler.batching import BATCHINGS, USUAL
from nonet.scheduler.batching.base import Batching
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.load import Load, StepCost
from nonet.scheduler.planner import Planner
from nonet.scheduler.policy.base import Policy
from nonet.scheduler.resources import Nothing, Resources
from nonet.scheduler.roster import Roster
from nonet.scheduler.sequence import RequestState, Sequence, Status
from nonet.scheduler.stop import extend, stop_ids_of
from nonet.scheduler.tally import Tally

__all__ = ["Scheduler"]

# Nobody is told to stay away longer: the prediction is not worth more.
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step whose result has not come yet."""

    step_id: int
    planned_s: float
    rows: list[Row]
    sequences: list[Sequence]


class Scheduler:
    """Owner of all sequences.

    >>> from nonet.config.resolved import CacheGroup
    >>> from nonet.core.clock import FakeClock
    >>> from nonet.core.sampling_params import SamplingParams
    >>> from nonet.scheduler.policy.fcfs import FcfsPolicy
    >>> limits = SchedulerLimits(
    ...     max_num_seqs=4, max_tokens_per_step=64, chunked_prefill=True, max_waiting=8, max_model_len=512
    ... )
    >>> kv = KVCache((CacheGroup((0,), None),), num_blocks=32, block_size=16, prefix_cache=True)
    >>> scheduler = Scheduler(limits, kv, FcfsPolicy(), FakeClock())
    >>> scheduler.add(Request(request_id="r", prompt_ids=[1, 2, 3], params=SamplingParams(max_tokens=1)))
    >>> plan = scheduler.plan(now=0.0)
    >>> plan.rows[0].num_tokens, plan.tables[0].block_ids
    (3, [1])
    >>> scheduler.apply(StepResult(step_id=plan.step_id, rows=[RowResult(seq_id=plan.rows[0].seq_id, token_ids=[7])]))
    >>> [(delta.token_ids, delta.finish_reason) for delta in scheduler.drain_deltas()]
    [([7], 'length')]
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        kv: KVCache,
        policy: Policy,
        clock: Clock,
        *,
        batching: Batching | None = None,
        seed: int = 0,
        resources: Resources | None = None,
        awaits_tokens: Callable[[int], bool] | None = None,
    ) -> None:
        self._limits = limits
        self._kv = kv
        self._clock = clock
        self._seed = seed
        limits.check_compaction(kv.compaction)
        self._resources = resources if resources is not None else Nothing()
        self._roster = Roster(kv, self._resources)
        self._planner = Planner(
            limits, kv, policy, batching or BATCHINGS.build(USUAL), self._roster, awaits_tokens
        )
        self._policy = policy
        self._load = Load(
            self._roster.waiting, self._roster.running, StepCost(limits.max_tokens_per_step)
        )
        policy.watch(self._load)
        self._last_apply_s = clock.now()
        # The last token of a sequence never needs its KV.
        self._max_len = min(limits.max_model_len, kv.max_sequence_tokens() + 1)
        self._next_seq_id = 0
        self._next_step_id = 0
        self._flying: deque[_Flight] = deque()
        self._deltas: list[SequenceDelta] = []
        self._tally = Tally()

    @property
    def has_work(self) -> bool:
        """A sequence waits or runs, or a step is in flight."""
        return bool(self._roster.waiting or self._roster.running or self._flying)

    @property
    def max_len(self) -> int:
        """Most tokens, prompt and output together, that one sequence can have here."""
        return self._max_len

    def add(self, request: Request, blockers: Iterable[str] = ()) -> None:
        """Queue a request: `params.n` sequences, which wait until `unblock` has taken each of the `blockers` away.

        Raises OverloadedError when the queue is full, InvalidRequestError or ContextLengthError for what can never run.
        """
        self._check(request)
        now = self._clock.now()
        self._refuse_excess(request, now)
        self._resources.enter(request)
        state = RequestState(request=request)
        for index in range(request.params.n):
            state.sequences.append(self._new_sequence(request, index, now))
            state.sequences[-1].blockers.update(blockers)
        self._roster.enter(state)

    def unblock(self, request_id: str, blocker: str, error: str | None = None) -> None:
        """What the request waited for is there, or with an `error` cannot be had; an unknown request is passed over."""
        state = self._roster.requests.get(request_id)
        for seq in state.sequences if state is not None else ():
            seq.blockers.discard(blocker)
            if error is not None and seq.status is not Status.FINISHED:
                self._finish(seq, "error", error=error)

    def abort(self, request_ids: Iterable[str], index: int | None = None) -> None:
        """End these requests, or one choice of each; ids that are unknown or done are passed over.

        Blocks are free at once, or when the step in flight that uses them has landed.
        """
        for request_id in request_ids:
            state = self._roster.requests.get(request_id)
            if state is None:
                continue
            for seq in state.sequences:
                if seq.status is not Status.FINISHED and index in (None, seq.index):
                    self._finish(seq, "abort")

    def plan(self, now: float) -> StepPlan | None:
        """The next step, or None when there is nothing to run before a result comes in or a request."""
        self._kv.end_leases(now)
        step = self._planner.fill(self._next_step_id, now)
        self._tally.preemptions += step.num_preempted + step.num_displaced
        if not step.rows:
            return None
        self._next_step_id += 1
        self._tally.planned(step, self._kv)
        self._flying.append(_Flight(step.step_id, now, step.rows, step.sequences))
        gone, self._roster.gone = self._roster.gone, []
        return StepPlan(
            step_id=step.step_id,
            rows=step.rows,
            new=step.new,
            tables=self._kv.drain_updates(),
            gone=gone,
            compactions=step.compactions,
        )

    def apply(self, result: StepResult) -> None:
        """Take in the oldest step in flight: tokens, endings, blocks that are now full."""
        flight = self._flying.popleft()
        assert result.step_id == flight.step_id, (
            f"result {result.step_id} came for step {flight.step_id}"
        )
        self._tally.steps += 1
        before = self._tally.step_tokens
        for row, seq, outcome in zip(flight.rows, flight.sequences, result.rows, strict=True):
            assert outcome.seq_id == row.seq_id, "results are in another order than rows"
            seq.num_in_flight -= 1
            seq.num_unread -= row.num_samples
            self._tally.step_tokens += row.num_tokens + len(row.drafts)
            if seq.status is not Status.FINISHED:
                if outcome.error is not None:
                    self._finish(seq, "error", error=outcome.error)
                else:
                    self._advance(seq, row, outcome)
            if seq.status is not Status.RUNNING:
                self._roster.landed(seq)
        now = self._clock.now()
        # With a step in flight before it, this one began when that one had landed.
        seconds = now - max(flight.planned_s, self._last_apply_s)
        self._load.cost.observe(self._tally.step_tokens - before, seconds)
        self._last_apply_s = now

    def drain_deltas(self) -> list[SequenceDelta]:
        """What happened since the last call, in order."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def stats(self) -> EngineStats:
        return self._tally.stats(self._roster, self._kv)

    def check_integrity(self) -> list[str]:
        """What is wrong with queues, tables, pool and prefix index; empty when all is well."""
        problems = self._roster.check_integrity() + self._kv.check_integrity()
        return problems + self._resources.check_integrity()

    def _refuse_excess(self, request: Request, now: float) -> None:
        """OverloadedError when the queue is full, or when the policy wants the request later."""
        queued, limit = self._roster.num_queued, self._limits.max_waiting
        if queued >= limit:
            wait_s = min(max(1.0, self._load.drain_s()), MAX_RETRY_AFTER_S)
            raise OverloadedError(
                f"{queued} requests are waiting and {limit} may; try again in {wait_s:.0f} s",
                wait_s,
            )
        retry_s = self._policy.retry_after(request, now)
        if retry_s is not None:
            wait_s = min(max(1.0, retry_s), MAX_RETRY_AFTER_S)
            raise OverloadedError(
                f"the queue is too long for a {request.service_class} request to begin in time; "
                f"try again in {wait_s:.0f} s, or send it in a class that can wait",
                wait_s,
            )

    def _check(self, request: Request) -> None:
        params, num_prompt = request.params, len(request.prompt_ids)
        if request.request_id in self._roster.requests:
            raise InvalidRequestError(
                f"request id {request.request_id!r} is already running; give each request its own",
                "request_id",
            )
        if not num_prompt:
            raise InvalidRequestError("the prompt has no tokens; give at least one", "prompt_ids")
        if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= 2**32:
            raise InvalidRequestError(
                "the prompt holds a number that is no token id; ids are 0 or more and below the vocabulary's size",
                "prompt_ids",
            )
        limit = self._max_len
        because = (
            f"the model's context is {limit} tokens"
            if limit == self._limits.max_model_len
            else f"the KV cache of {self._kv.num_blocks} blocks holds one sequence of {limit} tokens"
        )
        if num_prompt >= limit:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens and {because}, of which the output needs at least one; "
                "shorten the prompt",
                "prompt_ids",
            )
        if params.max_tokens is not None and num_prompt + params.max_tokens > limit:
            raise ContextLengthError(
                f"the prompt has {num_prompt} tokens, max_tokens is {params.max_tokens}, and {because}; "
                f"lower max_tokens to {limit - num_prompt} or shorten the prompt",
                "max_tokens",
            )

    def _new_sequence(self, request: Request, index: int, now: float) -> Sequence:
        params, num_prompt = request.params, len(request.prompt_ids)
        seq_id = self._next_seq_id
        self._next_seq_id += 1
        max_len = self._max_len
        if params.max_tokens is not None:
            max_len = num_prompt + params.max_tokens
        rule = self._kv.compaction
        asks_prompt = params.prompt_logprobs is not None and index == 0
        return Sequence(
            request=request,
            index=index,
            seq_id=seq_id,
            seed=self._draw_seed(seq_id) if params.seed is None else _as_seed(params.seed + index),
            arrival_s=now,
            token_ids=list(request.prompt_ids),
            num_prompt=num_prompt,
            min_len=num_prompt + params.min_tokens,
            max_len=max_len,
            stop_ids=stop_ids_of(request),
            compact_at=None if rule is None else rule.point(num_prompt, max_len),
            prompt_logprobs=[None] if asks_prompt else None,
        )

    def _draw_seed(self, counter: int) -> int:
        digest = hashlib.sha256(struct.pack("<QQ", self._seed % 2**64, counter)).digest()
        return _as_seed(int.from_bytes(digest[:8], "little"))

    def _advance(self, seq: Sequence, row: Row, outcome: RowResult) -> None:
        """A row of an unfinished sequence was computed."""
        assert len(outcome.token_ids) == (outcome.num_accepted + 1 if row.num_samples else 0)
        if row.prompt_logprobs:
            self._gather_prompt_logprobs(seq, row, outcome)
        if outcome.pooled is not None:
            seq.pooled = outcome.pooled
        before = len(seq.token_ids)
        ending = extend(seq, outcome.token_ids)
        known = len(seq.token_ids)
        seq.num_computed = min(row.start + row.num_tokens + outcome.num_accepted, known)
        if row.drafts:
            self._tally.drafted(len(row.drafts), outcome.num_accepted)
            seq.num_planned = seq.num_computed
            self._kv.truncate(seq, seq.num_computed + self._limits.lookahead_tokens)
        self._kv.commit(seq)
        if len(seq.num_leased) < len(seq.leases):
            self._kv.grant_leases(seq)
        if row.start + row.num_tokens == seq.compact_at:
            self._kv.finish_compaction(seq)
        if seq.followers:
            self._roster.share_prompt(seq)
        if ending is not None:
            self._report(
                seq,
                outcome.token_ids[: known - before],
                outcome.logprobs,
                ending.reason,
                ending.stop_token_id,
            )
            self._roster.finish(seq)
        elif known > before:
            self._report(seq, outcome.token_ids, outcome.logprobs)
            # Drafts follow the last token read; with a step in flight they come too late.
            if outcome.drafts and not seq.num_in_flight:
                seq.drafts = outcome.drafts

    def _gather_prompt_logprobs(self, seq: Sequence, row: Row, outcome: RowResult) -> None:
        gathered = seq.prompt_logprobs
        assert gathered is not None
        assert outcome.prompt_logprobs is not None, "prompt log probabilities were asked for"
        assert len(gathered) == row.start + 1, "prompt log probabilities are out of step"
        gathered += outcome.prompt_logprobs
        assert len(gathered) == min(row.start + row.num_tokens + 1, seq.num_prompt)

    def _finish(self, seq: Sequence, reason: FinishReason, error: str | None = None) -> None:
        """End a sequence from outside: it brings no more tokens."""
        self._report(seq, [], None, reason, error=error)
        self._roster.finish(seq)

    def _report(
        self,
        seq: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprob] | None,
        reason: FinishReason | None = None,
        stop_token_id: int | None = None,
        error: str | None = None,
    ) -> None:
        if seq.request.pools:
            token_ids = []
        self._tally.generation_tokens += len(token_ids)
        if logprobs is not None:
            logprobs = logprobs[: len(token_ids)]
        prompt_logprobs, num_cached = None, 0
        num_leased: list[int] = []
        pooled = None
        if not seq.has_reported:
            seq.has_reported = True
            num_cached, num_leased = seq.num_cached or 0, seq.num_leased
            pooled = seq.pooled
            if seq.index == 0:
                self._tally.prompt_tokens += seq.num_prompt
            if seq.prompt_logprobs is not None and not seq.wants_prompt_logprobs:
                prompt_logprobs = seq.prompt_logprobs
        self._deltas.append(
            SequenceDelta(
                request_id=seq.request.request_id,
                index=seq.index,
                token_ids=token_ids,
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
                finish_reason=reason,
                stop_token_id=stop_token_id,
                error=error,
                num_cached=num_cached,
                num_leased=num_leased,
                pooled=pooled,
            )
        )


def _as_seed(number: int) -> int:
    """Any integer as one that fits a signed 64-bit word."""
    return number % 2**63
