"""Compaction in any workload: each choice gets its own tokens, nothing pruned is shared, and every block comes back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.kv import cache, compaction
from nonet.kv.block_pool import BlockPool
from nonet.kv.cache import KVCache
from nonet.kv.compaction import CompactionRule
from nonet.kv.user import CacheUser
from nonet.scheduler import scheduler
from nonet.scheduler.planner import Planner
from nonet.scheduler.sequence import Sequence
from tests.simulate.cases import (
    Arrive,
    Case,
    Leave,
    Run,
    play,
    random_case,
    random_compaction,
)
from tests.simulate.harness import Setup, Simulation

NUM_CASES = 40
MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def compacting_case(random: Random) -> Case:
    case = random_case(random)
    return replace(
        case, setup=replace(case.setup, compaction=random_compaction(random, case.setup))
    )


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.randoms(use_true_random=False))
def test_any_workload_equals_its_oracle(random: Random) -> None:
    case = compacting_case(random)
    simulation = Simulation(case.setup)
    play(simulation, case)
    assert not simulation.scheduler.check_integrity()


def test_the_workloads_reach_what_they_are_meant_to() -> None:
    seen: Counter[str] = Counter()
    for seed in range(60):
        case = compacting_case(Random(seed))
        simulation = Simulation(case.setup)
        play(simulation, case)
        stats, runner = simulation.scheduler.stats(), simulation.runner
        seen["compacted"] += runner.num_compacted
        seen["overlapped"] += runner.num_compacted * case.setup.depth
        seen["beside a window"] += runner.num_compacted * (len(case.setup.windows) > 1)
        seen["in the sequence's own blocks"] += runner.num_reused
        seen["hit"] += stats.prefix_hit_tokens * bool(runner.num_compacted)
        seen["accepted"] += runner.num_accepted * bool(runner.num_compacted)
        seen["preempted"] += stats.preemptions * bool(runner.num_compacted)
    for what, count in seen.items():
        assert count >= 4, f"{what}: {count}"
    assert len(seen) == 7


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_a_pool_that_the_prompt_fills_compacts_in_place(depth: int, prefix_cache: bool) -> None:
    """No block is left for what stays: the sequence's own blocks take it, and it goes on."""
    setup = Setup(
        num_blocks=6,
        depth=depth,
        prefix_cache=prefix_cache,
        max_model_len=64,
        compaction=CompactionRule(8, 4),
    )
    simulation = Simulation(setup)
    for name in "ab":
        prompt = [sum(name.encode())] * 22
        params = SamplingParams(max_tokens=3, ignore_eos=True)
        simulation.add(Request(request_id=name, prompt_ids=prompt, params=params))
    simulation.run()
    assert simulation.runner.num_compacted == 2
    assert simulation.runner.num_reused > 0


def test_what_is_left_out_makes_room_for_others() -> None:
    """Prompts of 10 blocks in a pool of 20: whole they run one at a time, cut down to 2 blocks two run together."""
    most = {}
    for rule in (None, CompactionRule(8, 4)):
        setup = Setup(
            num_blocks=20, max_num_seqs=4, max_tokens=40, max_model_len=64, compaction=rule
        )
        simulation = Simulation(setup)
        for i in range(4):
            params = SamplingParams(max_tokens=14, ignore_eos=True)
            simulation.add(Request(request_id=f"r{i}", prompt_ids=[i] * 38, params=params))
        most[rule] = 0
        while simulation.scheduler.has_work:
            simulation.step()
            most[rule] = max(most[rule], simulation.scheduler.stats().num_running)
        simulation.check_end()
        assert simulation.scheduler.stats().preemptions == 0
    assert list(most.values()) == [1, 2]


def ask(name: str, prompt: list[int], max_tokens: int) -> Arrive:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Arrive(Request(request_id=name, prompt_ids=prompt, params=params))


def shared_prefix_and_no_room() -> Case:
    """A prompt whose beginning others still use is done when they have grown into the blocks meant for what stays."""
    head = list(range(35))
    setup = Setup(num_blocks=39, max_num_seqs=4, max_tokens=4, compaction=CompactionRule(50, 1))
    first, more = ask("a", head, 29), [ask(name, head, 29) for name in "cd"]
    return Case(setup, (first, Run(12), *more, Run(5), ask("b", head + [7] * 16, 6)))


def newcomer_beside_one_who_leaves() -> Case:
    """Nobody runs, but the blocks that the newcomer finds in the cache belong to a step in flight too."""
    head = list(range(21))
    setup = Setup(num_blocks=9, depth=1, max_tokens=30, compaction=CompactionRule(22, 1))
    return Case(setup, (ask("a", head, 9), Run(3), Leave("a", None), ask("b", [*head, 1, 2, 3], 3)))


def same_prompt_twice_in_a_tight_pool() -> Case:
    """The first overwrites blocks of its own that the second would look for."""
    prompt = list(range(22))
    setup = Setup(num_blocks=6, max_tokens=30, compaction=CompactionRule(9, 4))
    return Case(setup, (ask("a", prompt, 3), Run(9), ask("b", prompt, 3)))


def aborted_while_it_is_compacted() -> Case:
    setup = Setup(depth=1, max_tokens=30, compaction=CompactionRule(9, 4))
    return Case(setup, (ask("a", list(range(22)), 3), Run(1), Leave("a", None), Run(1)))


def cases() -> Iterator[Case]:
    yield aborted_while_it_is_compacted()
    yield same_prompt_twice_in_a_tight_pool()
    yield shared_prefix_and_no_room()
    yield newcomer_beside_one_who_leaves()
    for seed in range(NUM_CASES):
        yield compacting_case(Random(seed))


def mutant(patch: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    MUTANTS[patch.__name__] = patch
    return patch


@mutant
def chunk_ends_anywhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        CompactionRule,
        "chunk",
        lambda self, left, granted: min(left, granted) if left > 0 else granted,
    )


@mutant
def chunk_runs_past_the_prompt(patch: pytest.MonkeyPatch) -> None:
    right = CompactionRule.chunk
    patch.setattr(
        CompactionRule,
        "chunk",
        lambda self, left, granted: granted if granted > left else right(self, left, granted),
    )


@mutant
def hit_takes_the_query_window(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        KVCache, "_most_hit_blocks", lambda self, seq: (len(seq.token_ids) - 1) // self.block_size
    )


@mutant
def pruned_blocks_published(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.commit

    def commit(self: KVCache, seq: CacheUser) -> None:
        held = self._held[seq.seq_id]
        dropped, held.num_dropped = held.num_dropped, None
        right(self, seq)
        held.num_dropped = dropped

    patch.setattr(KVCache, "commit", commit)


@mutant
def overwritten_blocks_published(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.commit

    def commit(self: KVCache, seq: CacheUser) -> None:
        held = self._held[seq.seq_id]
        pending, held.pending = held.pending, None
        right(self, seq)
        held.pending = pending

    patch.setattr(KVCache, "commit", commit)


@mutant
def overwritten_blocks_still_found(patch: pytest.MonkeyPatch) -> None:
    right = compaction.reserve_targets

    def reserve(*arguments: object) -> object:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(BlockPool, "withdraw", lambda self, block_id: None)
            return right(*arguments)  # type: ignore[arg-type]

    patch.setattr(cache, "reserve_targets", reserve)


@mutant
def shared_blocks_overwritten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compaction, "_unshared", lambda pool, table: list(reversed(table)))


@mutant
def targets_leak(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.release

    def release(self: KVCache, seq: CacheUser) -> None:
        self._held[seq.seq_id].pending = None
        right(self, seq)

    patch.setattr(KVCache, "release", release)


@mutant
def old_blocks_leak(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.finish_compaction

    def finish(self: KVCache, seq: CacheUser) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(BlockPool, "free", lambda self, block_ids: None)
            right(self, seq)

    patch.setattr(KVCache, "finish_compaction", finish)


@mutant
def tables_swapped_too_early(patch: pytest.MonkeyPatch) -> None:
    """The step in flight would still read the old blocks."""
    right = KVCache.compact

    def compact(self: KVCache, seq: CacheUser) -> object:
        made = right(self, seq)
        if made is not None:
            self.finish_compaction(seq)
        return made

    patch.setattr(KVCache, "compact", compact)


@mutant
def entries_counted_by_position(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KVCache, "kv_start", lambda self, seq, position: None)


@mutant
def one_entry_too_many(patch: pytest.MonkeyPatch) -> None:
    right = KVCache.kv_start

    def kv_start(self: KVCache, seq: CacheUser, position: int) -> object:
        places = right(self, seq, position)
        return None if places is None else tuple(place + 1 for place in places)

    patch.setattr(KVCache, "kv_start", kv_start)


@mutant
def runs_ahead_of_the_new_tables(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sequence, "is_compacting", property(lambda self: False))


@mutant
def not_compacted_again_after_preemption(patch: pytest.MonkeyPatch) -> None:
    right = Sequence.forget

    def forget(self: Sequence) -> None:
        right(self)
        self.compact_at = None

    patch.setattr(Sequence, "forget", forget)


@mutant
def compacted_at_the_end_of_what_is_known(patch: pytest.MonkeyPatch) -> None:
    """After a preemption the outputs are computed with the whole cache, then pruned too."""
    right = Sequence.forget

    def forget(self: Sequence) -> None:
        right(self)
        if self.compact_at is not None:
            self.compact_at = len(self.token_ids)

    patch.setattr(Sequence, "forget", forget)


@mutant
def gives_up_when_blocks_are_short(patch: pytest.MonkeyPatch) -> None:
    """Waits for fresh blocks that a sequence alone never gets."""
    patch.setattr(compaction, "_unshared", lambda pool, table: [])


@mutant
def newcomer_asks_for_blocks_that_are_not_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KVCache, "compaction_blocks", property(lambda self: 0))


@mutant
def rows_of_one_token_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A prompt's last token, alone in its row, is taken for a decode."""
    right = Planner._compact_by_force

    def force(self: Planner, step: object, seq: Sequence) -> bool:
        if seq.num_planned + 1 == seq.compact_at:
            return True
        return right(self, step, seq)  # type: ignore[arg-type]

    patch.setattr(Planner, "_compact_by_force", force)


@mutant
def never_finished(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler.KVCache, "finish_compaction", lambda self, seq: None)


def test_the_unchanged_code_passes_the_same_cases() -> None:
    assert _first_rejected() is None


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_each_mutant_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    assert _first_rejected() is not None, f"{name} went unnoticed"


def _first_rejected() -> int | None:
    for number, case in enumerate(cases()):
        try:
            play(Simulation(case.setup), case)
        except (AssertionError, LookupError):
            return number
    return None
