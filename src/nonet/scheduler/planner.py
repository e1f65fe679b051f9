"""Fills one step: first sequences that need one more token, then prompts under way, then newcomers.

That order keeps prompts from stalling those who already talk; what is left of the token budget goes to prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nonet.core.step import Compaction, NewSequence, Row
from nonet.kv.cache import KVCache
from nonet.kv.user import PrefixHit
from nonet.scheduler.batching.base import Batching
from nonet.scheduler.budget import SchedulerLimits, StepBudget
from nonet.scheduler.policy.base import Policy
from nonet.scheduler.preempt import make_room
from nonet.scheduler.roster import Roster
from nonet.scheduler.sequence import Sequence, Status

__all__ = ["PlannedStep", "Planner"]


@dataclass(slots=True)
class PlannedStep:
    """Rows under construction; `sequences[i]` is the one `rows[i]` belongs to."""

    step_id: int
    now: float
    budget: StepBudget
    rows: list[Row] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    new: list[NewSequence] = field(default_factory=list)
    compactions: list[Compaction] = field(default_factory=list)
    num_tokens: int = 0
    background_limit: int = 0  # of num_tokens, for background sequences
    num_preempted: int = 0  # for want of blocks
    num_displaced: int = 0  # for a newcomer
    num_late: int = 0  # newcomers that join others under way
    query_tokens: int = 0  # looked up in the prefix cache
    hit_tokens: int = 0


class Planner:
    """Decides on one step at a time; keeps nothing between steps."""

    def __init__(
        self,
        limits: SchedulerLimits,
        kv: KVCache,
        policy: Policy,
        batching: Batching,
        roster: Roster,
        awaits_tokens: Callable[[int], bool] | None = None,
    ) -> None:
        self._limits = limits
        self._kv = kv
        self._policy = policy
        self._batching = batching
        self._roster = roster
        self._awaits_tokens = awaits_tokens

    def fill(self, step_id: int, now: float) -> PlannedStep:
        step = PlannedStep(step_id, now, StepBudget(self._limits))
        if self._must_wait():
            return step
        if self._policy.displaces and self._roster.waiting:
            self._displace(step)
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        held: list[Sequence] = []
        for seq in self._policy.order(self._roster.running.values(), now):
            if seq.is_compacting or (seq.num_unread and not _can_run_ahead(seq)):
                held += [seq] if _goes_on(seq) else []
                continue
            remaining = len(seq.token_ids) + seq.num_unread - seq.num_planned
            if remaining == 1 and seq.compact_at != seq.num_planned + 1:
                decodes.append(seq)
            elif remaining:
                prefills.append(seq)
        # Those who are held back have their next token after this step: they feel its length as the others do.
        streams = [*decodes, *held]
        step.background_limit = self._policy.background_limit(streams, step.budget.left, now)
        self._continue_decodes(step, decodes)
        if self._limits.chunked_prefill:
            left, rule = step.budget.left, self._kv.compaction
            step.budget.left = max(
                self._policy.prompt_budget(streams, left, now),
                min(left, rule.query_window) if rule else 0,
            )
        for seq in prefills:
            if seq.status is Status.RUNNING and step.budget.left:
                self._continue_prefill(step, seq)
        self._admit(step)
        return step

    def _must_wait(self) -> bool:
        """Whether no step is to be planned before tokens in flight are read, for drafts may follow them.

        Then nobody goes on, so that the batch stays whole: two halves in turn would take twice the steps.
        """
        if self._awaits_tokens is None:
            return False
        running = [seq for seq in self._roster.running.values() if _goes_on(seq)]
        if not any(seq.num_unread for seq in running):
            return False
        return self._awaits_tokens(sum(seq.num_remaining <= 1 for seq in running))

    def _displace(self, step: PlannedStep) -> None:
        """Before rows are given out: let the first newcomer in, at the cost of whom the policy names."""
        roster, now = self._roster, step.now
        ready = (
            seq for seq in roster.waiting.values() if not seq.blockers and not seq.num_in_flight
        )
        first = next(iter(roster.resources.startable(self._policy.order(ready, now))), None)
        while first is not None and not roster.leaving and self._is_shut_out(first):
            other = self._policy.displaced(first, now)
            if other is None:
                return
            roster.preempt(other)
            step.num_displaced += 1

    def _is_shut_out(self, seq: Sequence) -> bool:
        """Whether a newcomer finds no seat or not enough blocks beside those who run."""
        running = self._roster.running
        if not running:
            return False
        promised = sum(self._growth(other) for other in running.values())
        return len(running) >= self._limits.max_num_seqs or not self._fits(
            seq, self._kv.match(seq), promised
        )

    def _fits(self, seq: Sequence, hit: PrefixHit, promised: int) -> bool:
        if self._limits.reserve_whole:
            num_blocks = -(-(seq.max_len - hit.num_tokens) // self._kv.block_size)
            return num_blocks * len(self._kv.groups) + hit.num_idle <= self._kv.num_free
        demand = self._kv.demand(seq, self._limits.max_tokens_per_step, hit) + len(self._kv.groups)
        return promised + demand <= self._kv.num_free

    def _continue_decodes(self, step: PlannedStep, decodes: list[Sequence]) -> None:
        kv, budget = self._kv, step.budget
        # For drafts, once everyone has one token.
        spare = min(budget.left - len(decodes), self._limits.max_drafts_per_step)
        for seq in decodes:
            if seq.status is not Status.RUNNING:  # preempted for one before it
                continue
            if not self._share(step, seq, 1):
                continue
            if seq.drafts:
                drafts = self._usable_drafts(seq, spare)
                if drafts and kv.reserve(seq, 1 + len(drafts)):
                    spare -= len(drafts)
                    self._look_ahead(seq, 1 + len(drafts))
                    self._add_row(step, seq, 1, drafts)
                    continue
            if kv.reserve(seq, 1) or self._reserve_by_force(step, seq):
                self._look_ahead(seq, 1)
                self._add_row(step, seq, 1)

    def _continue_prefill(self, step: PlannedStep, seq: Sequence) -> None:
        share = self._share(step, seq, step.budget.left)
        wanted = self._chunk(seq, seq.num_planned, min(seq.num_remaining, share))
        if not wanted:
            return
        granted = self._chunk(seq, seq.num_planned, self._kv.fit(seq, wanted))
        if not granted:
            if not self._reserve_by_force(step, seq, self._least_chunk(seq)):
                return
            granted = self._chunk(seq, seq.num_planned, self._kv.fit(seq, wanted))
        reserved = self._kv.reserve(seq, granted)
        assert reserved, "fit and reserve disagree"
        completes = seq.num_planned + granted == seq.compact_at
        if not completes or self._compact_by_force(step, seq):
            self._look_ahead(seq, granted)
            self._add_row(step, seq, granted)

    def _reserve_by_force(self, step: PlannedStep, seq: Sequence, num_tokens: int = 1) -> bool:
        """Room for so many tokens, preempting others until it is there."""
        while not self._kv.reserve(seq, num_tokens):
            if make_room(self._roster, self._policy, seq, step.step_id, step.now) is None:
                return False
            step.num_preempted += 1
        return True

    def _compact_by_force(self, step: PlannedStep, seq: Sequence) -> bool:
        """Blocks for what stays of a prompt that this step completes, preempting others until they are there."""
        while (compactions := self._kv.compact(seq)) is None:
            if make_room(self._roster, self._policy, seq, step.step_id, step.now) is None:
                return False
            step.num_preempted += 1
        step.compactions += compactions
        return True

    def _admit(self, step: PlannedStep) -> None:
        """Newcomers in the policy's order; the first that must wait stops those behind it, so none is overtaken."""
        kv, roster, limits = self._kv, self._roster, self._limits
        if step.num_preempted or not roster.waiting:
            return
        seats = limits.max_num_seqs - len(roster.running) - len(roster.leaving)
        if seats <= 0 or not step.budget.left:
            return
        seats = self._batching.seats(len(roster.running) + len(roster.leaving), seats)
        promised = sum(self._growth(seq) for seq in roster.running.values())
        ordered = self._policy.order(roster.waiting.values(), step.now)
        able = (seq for seq in ordered if not seq.blockers and not seq.num_in_flight)
        for seq in roster.resources.startable(able):
            if not seats or not step.budget.left:
                return
            if roster.running and promised >= kv.num_free:
                return
            hit = kv.match(seq)
            goal = len(seq.token_ids) if seq.compact_at is None else seq.compact_at
            share = step.budget.share(goal - hit.num_tokens)
            most = self._share(step, seq, share)
            if most < share and not limits.chunked_prefill:
                return
            wanted = self._chunk(seq, hit.num_tokens, most)
            if not wanted or (roster.running and not self._fits(seq, hit, promised)):
                return
            # Alone it may be short of blocks for all it knows; it then begins with what there is.
            joins = len(step.rows) > len(step.new)
            if not self._start(step, seq, hit, wanted):
                return
            step.num_late += joins
            promised += self._growth(seq)
            seats -= 1

    def _start(self, step: PlannedStep, seq: Sequence, hit: PrefixHit, wanted: int) -> bool:
        kv = self._kv
        granted = self._first_chunk(seq, hit, wanted)
        if granted <= 0:
            return False
        self._roster.start(seq, hit)
        reserved = kv.reserve(seq, granted)
        assert reserved, "a hit and what it leaves free disagree"
        if seq.num_planned + granted == seq.compact_at:
            compactions = kv.compact(seq)
            assert compactions is not None, "a first chunk goes too far"
            step.compactions += compactions
        if self._limits.reserve_whole:
            kv.reserve(seq, seq.max_len - seq.num_planned)  # alone it may be short; it then grows
        self._look_ahead(seq, granted)
        step.query_tokens += len(seq.token_ids)
        step.hit_tokens += hit.num_tokens
        step.new.append(
            NewSequence(
                seq_id=seq.seq_id,
                token_ids=list(seq.token_ids),
                num_prompt=seq.num_prompt,
                params=seq.request.params,
                seed=seq.seed,
                eos_ids=seq.request.eos_ids,
                adapter_id=seq.adapter_id,
            )
        )
        self._add_row(step, seq, granted)
        return True

    def _share(self, step: PlannedStep, seq: Sequence, num_tokens: int) -> int:
        """How many of `num_tokens` the policy leaves a sequence: those of the background stay below its limit."""
        if not self._policy.is_background(seq, step.now):
            return num_tokens
        return max(0, min(num_tokens, step.background_limit - step.num_tokens))

    def _first_chunk(self, seq: Sequence, hit: PrefixHit, wanted: int) -> int:
        """How many of the `wanted` tokens the free blocks allow.

        While others hold blocks too, what stays of a prompt that the chunk completes must find fresh ones.
        """
        kv, roster, start = self._kv, self._roster, hit.num_tokens
        num_new = kv.num_free - hit.num_idle
        start_blocks = start // kv.block_size + num_new // len(kv.groups)
        granted = self._chunk(seq, start, min(wanted, start_blocks * kv.block_size - start))
        if start + granted == seq.compact_at and (roster.running or roster.leaving):
            taken = -(-granted // kv.block_size) * len(kv.groups)
            if num_new - taken < kv.compaction_blocks:
                granted = self._chunk(seq, start, granted - 1)
        return granted

    def _chunk(self, seq: Sequence, start: int, granted: int) -> int:
        """How many of the `granted` tokens from `start` on the next row may have; 0 when it must wait for more."""
        rule = self._kv.compaction
        if rule is None or seq.compact_at is None:
            return granted
        return rule.chunk(seq.compact_at - start, granted)

    def _least_chunk(self, seq: Sequence) -> int:
        rule = self._kv.compaction
        if rule is None or seq.compact_at is None:
            return 1
        return rule.least(seq.compact_at - seq.num_planned)

    def _look_ahead(self, seq: Sequence, num_tokens: int) -> None:
        """Room behind the `num_tokens` that were reserved, if there is any and the row reaches the last known token."""
        ahead = self._limits.lookahead_tokens
        if ahead and num_tokens >= seq.num_remaining:
            # Nobody writes behind the longest that the sequence can become.
            ahead = min(ahead, seq.max_len - seq.num_planned - num_tokens)
            self._kv.reserve(seq, num_tokens + max(0, ahead))

    def _growth(self, seq: Sequence) -> int:
        """Blocks to leave free for a running sequence: those of its known tokens, and one more in each group."""
        margin = len(self._kv.groups)
        if seq.num_remaining <= 1:
            return margin
        return margin + self._kv.demand(seq, self._limits.max_tokens_per_step)

    def _usable_drafts(self, seq: Sequence, spare: int) -> tuple[int, ...]:
        """Drafts within the budget, and no more than could still be accepted together with the token after them."""
        room = min(spare, seq.max_len - len(seq.token_ids) - 1)
        return seq.drafts[: max(0, room)]

    def _add_row(
        self, step: PlannedStep, seq: Sequence, num_tokens: int, drafts: tuple[int, ...] = ()
    ) -> None:
        start = seq.num_planned
        num_samples = 0
        if num_tokens == seq.num_remaining:
            num_samples = 1 + len(drafts)
        step.rows.append(
            Row(
                seq_id=seq.seq_id,
                start=start,
                num_tokens=num_tokens,
                drafts=drafts,
                num_samples=num_samples,
                prompt_logprobs=seq.wants_prompt_logprobs and start + 1 < seq.num_prompt,
                pools=seq.wants_pooling and start < seq.num_prompt,
                kv_start=None if seq.compact_at is None else self._kv.kv_start(seq, start),
            )
        )
        step.sequences.append(seq)
        step.budget.left -= num_tokens + len(drafts)
        step.num_tokens += num_tokens + len(drafts)
        seq.num_planned = start + num_tokens + len(drafts)
        seq.num_unread += num_samples
        seq.num_in_flight += 1
        seq.last_step = step.step_id
        seq.drafts = ()


def _can_run_ahead(seq: Sequence) -> bool:
    """Whether a row can follow one whose sample is still unread: the runner takes that token from the device.

    Not when it is not known how many tokens it will be, or when it is the last.
    """
    return seq.num_unread == 1 and _goes_on(seq)


def _goes_on(seq: Sequence) -> bool:
    """Whether what is in flight is not its last, as far as lengths tell."""
    return len(seq.token_ids) + seq.num_unread < seq.max_len
