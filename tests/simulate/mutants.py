"""Schedulers and caches that are wrong in one place each, as patches of the right ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nonet.kv.block_pool import BlockPool
from nonet.kv.cache import KVCache
from nonet.kv.held import Held
from nonet.kv.prefix.hashed import HashedPrefixIndex
from nonet.kv.user import CacheUser
from nonet.scheduler import planner, scheduler
from nonet.scheduler.planner import PlannedStep, Planner
from nonet.scheduler.roster import Roster
from nonet.scheduler.sequence import Sequence
from nonet.scheduler.stop import Ending

Patch = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Patch] = {}


def mutant(patch: Patch) -> Patch:
    """Enter a patch into the table under its own name."""
    MUTANTS[patch.__name__] = patch
    return patch


@mutant
def hit_not_capped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        KVCache, "_most_hit_blocks", lambda self, seq: len(seq.token_ids) // self.block_size
    )


@mutant
def hit_takes_any_window_block(patch: pytest.MonkeyPatch) -> None:
    """A window group asks for one block fewer than the next token sees."""
    right = KVCache._first_visible
    longest, blocks = KVCache._longest_window_hit, KVCache._hit_blocks

    def late(self: KVCache, window: int, position: int) -> int:
        return min(right(self, window, position) + 1, position // self.block_size)

    def with_late(method: Callable[..., object]) -> Callable[..., object]:
        def call(self: KVCache, *args: object) -> object:
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(KVCache, "_first_visible", late)
                return method(self, *args)

        return call

    patch.setattr(KVCache, "_longest_window_hit", with_late(longest))
    patch.setattr(KVCache, "_hit_blocks", with_late(blocks))


@mutant
def hit_ignores_windows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KVCache, "_longest_window_hit", lambda self, group, window, keys, length: length)


@mutant
def hash_without_parent(patch: pytest.MonkeyPatch) -> None:
    right = HashedPrefixIndex.extend

    def extend(
        self: HashedPrefixIndex, keys: list[bytes], token_ids: list[int], adapter: str, salt: str
    ) -> None:
        size = self._block_size
        while len(keys) < len(token_ids) // size:
            at = len(keys) * size
            one: list[bytes] = []
            right(self, one, token_ids[at : at + size], adapter, salt)
            keys += one

    patch.setattr(HashedPrefixIndex, "extend", extend)


@mutant
def hash_without_salt(patch: pytest.MonkeyPatch) -> None:
    right = HashedPrefixIndex._root
    patch.setattr(HashedPrefixIndex, "_root", lambda self, adapter, salt: right(self, adapter, ""))


@mutant
def hash_without_adapter(patch: pytest.MonkeyPatch) -> None:
    right = HashedPrefixIndex._root
    patch.setattr(HashedPrefixIndex, "_root", lambda self, adapter, salt: right(self, "", salt))


@mutant
def salt_and_adapter_run_together(patch: pytest.MonkeyPatch) -> None:
    """Fields without lengths or tags: the adapter "x" and the salt "x" are the same."""
    right = HashedPrefixIndex._root

    def root(self: HashedPrefixIndex, adapter: str, salt: str) -> bytes:
        return right(self, "x" * (bool(adapter) + bool(salt)), "")

    patch.setattr(HashedPrefixIndex, "_root", root)


@mutant
def publish_before_commit(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.reserve

    def reserve(self: KVCache, seq: Sequence, num_tokens: int) -> bool:
        granted = right(self, seq, num_tokens)
        if granted:
            computed = seq.num_computed
            seq.num_computed = min(seq.num_planned + num_tokens, len(seq.token_ids))
            self.commit(seq)
            seq.num_computed = computed
        return granted

    patch.setattr(KVCache, "reserve", reserve)


@mutant
def publish_partial_blocks(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.commit

    def commit(self: KVCache, seq: Sequence) -> None:
        computed = seq.num_computed
        size = self.block_size
        seq.num_computed = min(-(-computed // size) * size, len(seq.token_ids))
        right(self, seq)
        seq.num_computed = computed

    patch.setattr(KVCache, "commit", commit)


@mutant
def rejected_drafts_published(patch: pytest.MonkeyPatch) -> None:
    """Counts all drafts as computed, so a block with a rejected one is published."""
    right = KVCache.truncate

    def truncate(self: KVCache, seq: Sequence, num_tokens: int) -> None:
        seq.num_computed = min(seq.num_computed + 1, len(seq.token_ids))
        right(self, seq, num_tokens)

    patch.setattr(KVCache, "truncate", truncate)


@mutant
def window_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        KVCache,
        "_first_visible",
        lambda self, window, position: max(0, position - window + 2) // self.block_size,
    )


@mutant
def window_slides_under_a_step_in_flight(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.reserve

    def reserve(self: KVCache, seq: Sequence, num_tokens: int) -> bool:
        if self._windows:
            self._slide(self._held[seq.seq_id], seq.num_planned)
        return right(self, seq, num_tokens)

    patch.setattr(KVCache, "reserve", reserve)


@mutant
def blocks_of_a_step_in_flight_freed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Roster, "_leave", lambda self, seq: self._release(seq))


@mutant
def shared_block_not_counted(patch: pytest.MonkeyPatch) -> None:
    def share(self: BlockPool, block_ids: list[int]) -> None:
        for block_id in filter(None, block_ids):
            block = self.blocks[block_id]
            if block.num_refs == 0:
                self._evictor.on_use(block_id)
                block.num_refs = 1

    patch.setattr(BlockPool, "share", share)


@mutant
def evicted_block_still_indexed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HashedPrefixIndex, "remove", lambda self, group, key: None)


@mutant
def truncate_one_too_many(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.truncate

    def truncate(self: KVCache, seq: CacheUser, num_tokens: int) -> None:
        right(self, seq, num_tokens - 1)

    patch.setattr(KVCache, "truncate", truncate)


@mutant
def release_forgets_a_group(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.release

    def release(self: KVCache, seq: CacheUser) -> None:
        held = self._held[seq.seq_id]
        if len(held.tables) > 1:
            held.tables.pop()
        right(self, seq)

    patch.setattr(KVCache, "release", release)


@mutant
def reserve_one_group_only(patch: pytest.MonkeyPatch) -> None:
    """All or nothing forgotten: the first group is served although the second cannot be."""
    right = KVCache.reserve

    def reserve(self: KVCache, seq: CacheUser, num_tokens: int) -> bool:
        if right(self, seq, num_tokens):
            return True
        if self.num_free:
            self._held[seq.seq_id].tables[0] += self.pool.allocate(1)
        return False

    patch.setattr(KVCache, "reserve", reserve)


@mutant
def no_release_after_preemption(patch: pytest.MonkeyPatch) -> None:
    right = Roster._leave

    def leave(self: Roster, seq: Sequence) -> None:
        if seq.status.value != "preempted":
            right(self, seq)

    patch.setattr(Roster, "_leave", leave)


@mutant
def preempted_seed_redrawn(patch: pytest.MonkeyPatch) -> None:
    right = Sequence.forget

    def forget(self: Sequence) -> None:
        self.seed += 1
        right(self)

    patch.setattr(Sequence, "forget", forget)


@mutant
def preempted_output_lost(patch: pytest.MonkeyPatch) -> None:
    right = Sequence.forget

    def forget(self: Sequence) -> None:
        del self.token_ids[self.num_prompt :]
        right(self)

    patch.setattr(Sequence, "forget", forget)


@mutant
def chunk_samples_early(patch: pytest.MonkeyPatch) -> None:
    right = planner.Row

    def row(**fields: object) -> object:
        fields["num_samples"] = max(1, fields["num_samples"])  # type: ignore[call-overload]
        return right(**fields)  # type: ignore[arg-type]

    patch.setattr(planner, "Row", row)


@mutant
def drafts_over_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Planner, "_usable_drafts", lambda self, seq, spare: seq.drafts)


@mutant
def drafts_not_rolled_back(patch: pytest.MonkeyPatch) -> None:
    right = scheduler.Scheduler._advance

    def advance(self: scheduler.Scheduler, seq: Sequence, row: object, outcome: object) -> None:
        planned = seq.num_planned
        right(self, seq, row, outcome)  # type: ignore[arg-type]
        if seq.status.value == "running":
            seq.num_planned = planned

    patch.setattr(scheduler.Scheduler, "_advance", advance)


@mutant
def accepted_run_not_truncated(patch: pytest.MonkeyPatch) -> None:
    """Looks at the last of the accepted tokens only."""

    def extend(seq: Sequence, token_ids: list[int]) -> Ending | None:
        seq.token_ids += token_ids
        if token_ids and token_ids[-1] in seq.stop_ids and len(seq.token_ids) > seq.min_len:
            return Ending("stop", token_ids[-1])
        return Ending("length") if len(seq.token_ids) >= seq.max_len else None

    patch.setattr(scheduler, "extend", extend)


@mutant
def stop_ignores_min_tokens(patch: pytest.MonkeyPatch) -> None:
    right = scheduler.extend

    def extend(seq: Sequence, token_ids: list[int]) -> Ending | None:
        seq.min_len = min(seq.min_len, seq.num_prompt + 1)
        return right(seq, token_ids)

    patch.setattr(scheduler, "extend", extend)


@mutant
def runs_ahead_of_drafts(patch: pytest.MonkeyPatch) -> None:
    """Plans the next row although it is not known how many drafts will stand."""
    patch.setattr(planner, "_can_run_ahead", lambda seq: True)


@mutant
def prompt_logprobs_take_hits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sequence, "can_hit", property(lambda self: True))


@mutant
def prompt_logprobs_kept_over_preemption(patch: pytest.MonkeyPatch) -> None:
    right = Sequence.forget

    def forget(self: Sequence) -> None:
        gathered = self.prompt_logprobs
        right(self)
        self.prompt_logprobs = gathered

    patch.setattr(Sequence, "forget", forget)


@mutant
def seat_given_before_it_is_free(patch: pytest.MonkeyPatch) -> None:
    right = Planner._admit

    def admit(self: Planner, step: PlannedStep) -> None:
        leaving, self._roster.leaving = self._roster.leaving, {}
        right(self, step)
        self._roster.leaving = leaving

    patch.setattr(Planner, "_admit", admit)


@mutant
def gone_not_told(patch: pytest.MonkeyPatch) -> None:
    right = Roster.preempt

    def preempt(self: Roster, seq: Sequence) -> None:
        right(self, seq)
        self.gone = []

    patch.setattr(Roster, "preempt", preempt)


@mutant
def table_changes_lost(patch: pytest.MonkeyPatch) -> None:
    right = KVCache._change

    def change(self: KVCache, held: Held, group: int, start: int, stop: int) -> None:
        held.changes.clear()
        right(self, held, group, start, stop)

    patch.setattr(KVCache, "_change", change)


@mutant
def aborted_sequence_keeps_running(patch: pytest.MonkeyPatch) -> None:
    right = Roster.finish

    def finish(self: Roster, seq: Sequence) -> None:
        was_running = seq.seq_id in self.running
        right(self, seq)
        if was_running and seq.num_in_flight:
            self.running[seq.seq_id] = seq

    patch.setattr(Roster, "finish", finish)


@mutant
def look_ahead_past_the_longest(patch: pytest.MonkeyPatch) -> None:
    def look_ahead(self: Planner, seq: Sequence, num_tokens: int) -> None:
        ahead = self._limits.lookahead_tokens
        if ahead and num_tokens >= seq.num_remaining:
            self._kv.reserve(seq, num_tokens + ahead)

    patch.setattr(Planner, "_look_ahead", look_ahead)


@mutant
def drafts_without_a_limit(patch: pytest.MonkeyPatch) -> None:
    right = Planner._usable_drafts
    patch.setattr(Planner, "_usable_drafts", lambda self, seq, spare: right(self, seq, spare + 1))
