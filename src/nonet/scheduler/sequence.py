"""One token stream on its way through the engine, and the request it belongs to. The scheduler alone changes them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from nonet.core.outputs import TokenLogprob
from nonet.core.request import PrefixLease, Request

__all__ = ["RequestState", "Sequence", "Status"]


class Status(enum.Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  # never ran
    RUNNING = "running"
    PREEMPTED = "preempted"  # ran, lost its blocks, waits to run again
    FINISHED = "finished"


_LEGAL_MOVES = {
    Status.WAITING: (Status.RUNNING, Status.FINISHED),
    Status.RUNNING: (Status.PREEMPTED, Status.FINISHED),
    Status.PREEMPTED: (Status.RUNNING, Status.FINISHED),
    Status.FINISHED: (),
}


@dataclass(slots=True, eq=False, kw_only=True)
class RequestState:
    """A request that has unfinished sequences."""

    request: Request
    sequences: list[Sequence] = field(default_factory=list)
    is_queued: bool = True  # none of its sequences has run yet
    num_unfinished: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Known tokens, and how far their KV is computed.

    `num_computed` counts logical positions, and only what results have confirmed. `num_planned` runs ahead of it by
    what the steps in flight will compute. The step that computes the last of the first `compact_at` tokens, a fact of
    the prompt, also compacts the cache (`kv.compaction`), and so does the one that computes it anew after a preemption.
    """

    request: Request
    index: int
    seq_id: int  # grows with arrival
    seed: int
    arrival_s: float
    token_ids: list[int]  # prompt, then output; never a draft
    num_prompt: int
    min_len: int  # tokens before which no stop token counts
    max_len: int  # tokens at which the sequence ends
    stop_ids: frozenset[int]
    status: Status = Status.WAITING
    blockers: set[str] = field(default_factory=set)  # reasons why it cannot run although it waits
    num_computed: int = 0
    num_planned: int = 0
    compact_at: int | None = None
    num_cached: int | None = None  # of the first admission
    num_leased: list[int] = field(default_factory=list)  # an entry for each lease dealt with
    num_unread: int = 0  # samples of steps in flight
    num_in_flight: int = 0  # rows of steps in flight
    last_step: int = -1  # the newest step it has a row in
    drafts: tuple[int, ...] = ()  # to verify in the next step
    cache_keys: list[bytes] = field(default_factory=list)
    followers: list[Sequence] = field(default_factory=list)  # choices that wait for its prompt
    has_reported: bool = False  # a delta was sent
    prompt_logprobs: list[TokenLogprob | None] | None = None  # None: not asked for
    pooled: bytes | None = None

    @property
    def prompt_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt]

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def num_remaining(self) -> int:
        """Known tokens that no step computes yet; a sample in flight counts as known."""
        return len(self.token_ids) + self.num_unread - self.num_planned

    @property
    def is_compacting(self) -> bool:
        """A step in flight compacts its cache: the next row must wait for the new block tables."""
        return (
            self.compact_at is not None and self.num_computed < self.compact_at <= self.num_planned
        )

    @property
    def adapter_id(self) -> str:
        return self.request.adapter_id

    @property
    def cache_salt(self) -> str:
        return self.request.cache_salt

    @property
    def leases(self) -> tuple[PrefixLease, ...]:
        return self.request.leases

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt

    @property
    def wants_pooling(self) -> bool:
        return self.request.pools and self.pooled is None

    @property
    def can_hit(self) -> bool:
        return not self.wants_prompt_logprobs and not self.wants_pooling

    def move(self, status: Status) -> None:
        """The only way to change `status`."""
        assert status in _LEGAL_MOVES[self.status], (
            f"sequence {self.seq_id} cannot go from {self.status.value} to {status.value}"
        )
        self.status = status

    def forget(self) -> None:
        """Nothing is computed any more: the sequence was preempted."""
        self.num_computed = self.num_planned = 0
        self.drafts = ()
        if self.wants_prompt_logprobs:
            self.prompt_logprobs = [None]
