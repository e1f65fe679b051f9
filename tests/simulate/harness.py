"""Drives a scheduler with the fake runner, step by step, checking everything after each move."""

from __future__ import annotations

from dataclasses import dataclass, field

from nonet.config.resolved import CacheGroup
from nonet.core.clock import FakeClock
from nonet.core.outputs import SequenceDelta, TokenLogprob
from nonet.core.request import Request
from nonet.kv.cache import KVCache
from nonet.kv.compaction import CompactionRule
from nonet.scheduler.batching import BATCHINGS
from nonet.scheduler.budget import SchedulerLimits
from nonet.scheduler.policy import POLICIES
from nonet.scheduler.scheduler import Scheduler
from tests.simulate.fake_runner import FakeRunner, logprob_of, next_token


@dataclass(frozen=True)
class Setup:
    """One point of the space that the simulation searches."""

    windows: tuple[int | None, ...] = (None,)
    num_blocks: int = 32
    block_size: int = 4
    prefix_cache: bool = True
    max_leased: int = 0
    max_num_seqs: int = 4
    max_tokens: int = 16
    chunked: bool = True
    max_model_len: int = 64
    max_waiting: int = 100
    policy: str = "fcfs"
    batching: str = "continuous"
    reserve_whole: bool = False
    depth: int = 0
    num_drafts: int = 0
    lookahead: int = 0
    max_drafts: int = 100
    waits_up_to: int = 0  # sequences, for whose drafts plans wait
    error_tokens: frozenset[int] = frozenset()
    compaction: CompactionRule | None = None


@dataclass
class Stream:
    """What came back for one choice."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None
    num_deltas: int = 0
    num_cached: int = 0
    num_leased: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    error: str | None = None


class Simulation:
    """A scheduler, its cache and a runner, with the loop of the engine."""

    def __init__(
        self,
        setup: Setup,
        kv_class: type[KVCache] = KVCache,
        scheduler_class: type[Scheduler] = Scheduler,
    ) -> None:
        self.setup = setup
        self.clock = FakeClock()
        groups = tuple(CacheGroup((i,), window) for i, window in enumerate(setup.windows))
        self.kv = kv_class(
            groups,
            setup.num_blocks,
            setup.block_size,
            setup.prefix_cache,
            max_leased=setup.max_leased,
            compaction=setup.compaction,
        )
        limits = SchedulerLimits(
            max_num_seqs=setup.max_num_seqs,
            max_tokens_per_step=setup.max_tokens,
            chunked_prefill=setup.chunked,
            max_waiting=setup.max_waiting,
            max_model_len=setup.max_model_len,
            reserve_whole=setup.reserve_whole,
            lookahead_tokens=setup.lookahead,
            max_drafts_per_step=setup.max_drafts,
        )
        self.scheduler = scheduler_class(
            limits,
            self.kv,
            POLICIES.build(setup.policy),
            self.clock,
            batching=BATCHINGS.build(setup.batching),
            seed=7,
            awaits_tokens=lambda num_seqs: num_seqs <= setup.waits_up_to,
        )
        self.runner = FakeRunner(
            self.kv,
            setup.max_num_seqs,
            setup.max_tokens,
            max_blocks=-(-setup.max_model_len // setup.block_size),
            num_drafts=setup.num_drafts,
            lookahead=setup.lookahead,
            errors=setup.error_tokens,
        )
        self.runner.max_len = self.scheduler.max_len
        self.requests: dict[str, Request] = {}
        self.streams: dict[tuple[str, int], Stream] = {}
        self.steps = 0

    def add(self, request: Request) -> None:
        first = self.scheduler._next_seq_id
        self.scheduler.add(request)
        self.requests[request.request_id] = request
        for index in range(request.params.n):
            self.runner.salts[first + index] = request.cache_salt
            self.streams[request.request_id, index] = Stream()
        self._check()

    def abort(self, request_ids: list[str], index: int | None = None) -> None:
        self.scheduler.abort(request_ids, index)
        self._drain()
        self._check()

    def preempt(self, choice: int) -> None:
        """Preempt a running sequence at will, as the planner does for want of blocks."""
        roster = self.scheduler._roster
        if roster.running:
            running = list(roster.running.values())
            roster.preempt(running[choice % len(running)])
            self._check()

    def step(self) -> bool:
        """One turn of the engine's loop; False when nothing could be done."""
        self.clock.advance(0.01)
        plan = self.scheduler.plan(self.clock.now())
        if plan is not None:
            assert sum(len(row.drafts) for row in plan.rows) <= self.setup.max_drafts
            self.runner.launch(plan)
            self._check()
        flying = len(self.runner.flying)
        if flying and (plan is None or flying > self.setup.depth):
            self.scheduler.apply(self.runner.collect())
            self._drain()
            self._check()
        self.steps += 1
        return plan is not None or flying > 0

    def run(self, max_steps: int = 5000) -> None:
        """Until all is done."""
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                break
            assert self.step(), "there is work and nothing moves"
        assert not self.scheduler.has_work, "the work does not end"
        self.check_end()

    def check_end(self) -> None:
        """Every choice equals its oracle, and every block is free."""
        self.kv.end_leases(self.clock.now() + 1e6)
        stats = self.scheduler.stats()
        assert stats.num_running == stats.num_waiting == 0
        assert stats.blocks_free == stats.blocks_total, "blocks leaked"
        for (request_id, index), stream in self.streams.items():
            assert stream.finish_reason is not None, f"{request_id}.{index} was dropped"
            self._compare(self.requests[request_id], index, stream)

    def _compare(self, request: Request, index: int, stream: Stream) -> None:
        assert sum(stream.num_leased) + stream.num_cached <= len(request.prompt_ids)
        expected, reason, stop_id = self._oracle(request, index)
        if stream.finish_reason in ("abort", "error"):
            assert stream.token_ids == expected[: len(stream.token_ids)]
            return
        assert stream.token_ids == expected
        assert (stream.finish_reason, stream.stop_token_id) == (reason, stop_id)
        if request.params.prompt_logprobs is not None and index == 0:
            prompt = request.prompt_ids
            assert stream.prompt_logprobs == [
                None,
                *(logprob_of(prompt, p) for p in range(1, len(prompt))),
            ]
        else:
            assert stream.prompt_logprobs is None

    def _oracle(self, request: Request, index: int) -> tuple[list[int], str, int | None]:
        """The sequence alone, token by token."""
        params = request.params
        seed = self._seed_of(request, index)
        if seed is None:  # never ran
            return [], "abort", None
        limit = self.scheduler.max_len
        if params.max_tokens is not None:
            limit = min(limit, len(request.prompt_ids) + params.max_tokens)
        stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(request.eos_ids))
        tokens = list(request.prompt_ids)
        output: list[int] = []
        while True:
            token = next_token(tokens, seed, request.adapter_id)
            tokens.append(token)
            output.append(token)
            if token in stops and len(output) > params.min_tokens:
                return output, "stop", token
            if len(tokens) >= limit:
                return output, "length", None

    def _seed_of(self, request: Request, index: int) -> int | None:
        if request.params.seed is not None:
            return (request.params.seed + index) % 2**63
        seq_id = list(self.streams).index((request.request_id, index))
        return self.runner.seeds.get(seq_id)

    def _drain(self) -> None:
        for delta in self.scheduler.drain_deltas():
            self._take(delta)

    def _take(self, delta: SequenceDelta) -> None:
        stream = self.streams[delta.request_id, delta.index]
        assert stream.finish_reason is None, "a delta after the last"
        stream.num_deltas += 1
        stream.token_ids += delta.token_ids
        stream.finish_reason = delta.finish_reason
        stream.stop_token_id = delta.stop_token_id
        stream.error = delta.error
        if stream.num_deltas == 1:
            stream.num_cached = delta.num_cached
            stream.num_leased = delta.num_leased
            stream.prompt_logprobs = delta.prompt_logprobs
        else:
            assert delta.num_cached == 0
            assert not delta.num_leased
            assert delta.prompt_logprobs is None
        if delta.token_ids:
            assert delta.logprobs is not None
            assert [entry.token_id for entry in delta.logprobs] == delta.token_ids

    def _check(self) -> None:
        problems = self.scheduler.check_integrity()
        assert not problems, problems
        self.runner.check_in_flight()
