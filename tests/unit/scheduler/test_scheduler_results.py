"""What a step may bring besides one token: prompt log probabilities and accepted drafts."""

from __future__ import annotations

from tests.simulate.scripted import make_scheduler, planned, request, result, shape, step

from nonet.core.outputs import TokenLogprob
from nonet.core.step import RowResult, StepResult


def test_prompt_logprobs_are_gathered_over_chunks() -> None:
    scheduler, _ = make_scheduler(max_tokens_per_step=8)
    ids = [*range(20)]
    scheduler.add(request("warm", ids, max_tokens=1))
    while scheduler.has_work:
        step(scheduler)
    scheduler.drain_deltas()
    scheduler.add(request("a", ids, prompt_logprobs=0, n=2))
    deltas = []
    while not deltas:
        plan = planned(scheduler)
        row, *others = plan.rows
        assert (row.prompt_logprobs, [other.prompt_logprobs for other in others]) == (
            True,
            [False] * len(others),
        )
        last = min(row.start + row.num_tokens, 19)
        found = [TokenLogprob(ids[p], -1.0, 1) for p in range(row.start + 1, last + 1)]
        scheduler.apply(result(plan, prompt_logprobs=found))
        deltas = scheduler.drain_deltas()
    assert deltas[0].num_cached == 0, "a hit would have no logits"
    assert deltas[0].prompt_logprobs is not None
    assert deltas[0].prompt_logprobs[0] is None
    assert [entry.token_id for entry in deltas[0].prompt_logprobs[1:] if entry] == ids[1:]
    assert deltas[1].prompt_logprobs is None
    assert not any(row.prompt_logprobs for row in planned(scheduler).rows)


def test_a_prompt_of_one_token_has_one_empty_logprob() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 1, prompt_logprobs=0))
    assert not step(scheduler).rows[0].prompt_logprobs
    assert scheduler.drain_deltas()[0].prompt_logprobs == [None]


def test_drafts_are_verified_and_rolled_back() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 3, max_tokens=20))
    plan = planned(scheduler)
    scheduler.apply(result(plan, drafts=(1, 2, 3)))
    plan = planned(scheduler)
    (row,) = plan.rows
    assert (row.start, row.num_tokens, row.drafts, row.num_samples) == (3, 1, (1, 2, 3), 4)
    assert scheduler.plan(0.0) is None, "how many stand is not known yet"
    accepted = RowResult(seq_id=0, token_ids=[1, 9], num_accepted=1)
    scheduler.apply(StepResult(step_id=plan.step_id, rows=[accepted]))
    assert [d.token_ids for d in scheduler.drain_deltas()] == [[7], [1, 9]]
    assert shape(step(scheduler)) == [(0, 5, 1, 1)]
    assert scheduler.check_integrity() == []


def test_drafts_never_exceed_what_may_still_come() -> None:
    scheduler, _ = make_scheduler(max_tokens_per_step=4)
    scheduler.add(request("a", 3, max_tokens=3))
    scheduler.apply(result(planned(scheduler), drafts=(1, 2, 3)))
    assert planned(scheduler).rows[0].drafts == (1,), "two tokens may come, one is not a draft"


def test_drafts_share_what_is_left_of_the_budget() -> None:
    scheduler, _ = make_scheduler(max_tokens_per_step=8)
    scheduler.add(request("a", 3))
    scheduler.add(request("b", 3))
    scheduler.apply(result(planned(scheduler), drafts=(1, 2, 3, 4, 5)))
    plan = planned(scheduler)
    assert [len(row.drafts) for row in plan.rows] == [5, 1]
    assert plan.num_tokens == 8


def test_an_accepted_run_ends_where_the_sequence_ends() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 3, max_tokens=9, eos_ids=(2,)))
    scheduler.apply(result(planned(scheduler), drafts=(1, 2, 3)))
    plan = planned(scheduler)
    logprobs = [TokenLogprob(token, -1.0, 1) for token in (1, 2, 3, 4)]
    accepted = RowResult(seq_id=0, token_ids=[1, 2, 3, 4], num_accepted=3, logprobs=logprobs)
    scheduler.apply(StepResult(step_id=plan.step_id, rows=[accepted]))
    last = scheduler.drain_deltas()[-1]
    assert (last.token_ids, last.finish_reason, last.stop_token_id) == ([1, 2], "stop", 2)
    assert last.logprobs == logprobs[:2]
    assert scheduler.stats().blocks_free == 64


def test_drafts_of_a_step_are_limited_over_all_sequences() -> None:
    scheduler, _ = make_scheduler(max_drafts_per_step=4)
    scheduler.add(request("a", 3, max_tokens=20))
    scheduler.add(request("b", 3, max_tokens=20))
    scheduler.apply(result(planned(scheduler), drafts=(1, 2, 3)))
    assert [row.drafts for row in planned(scheduler).rows] == [(1, 2, 3), (1,)]


def test_slots_ahead_are_reserved_while_there_are_blocks() -> None:
    """Blocks of 4: a prompt of 3 with 5 slots ahead holds two blocks, in a pool of one it makes do with that."""
    for num_blocks, expected in ((8, [1, 2]), (1, [1])):
        scheduler, _ = make_scheduler(num_blocks, lookahead_tokens=5)
        scheduler.add(request("a", 3, max_tokens=2 if num_blocks == 1 else 20))
        plan = planned(scheduler)
        assert [block for update in plan.tables for block in update.block_ids] == expected
        scheduler.apply(result(plan))
        assert scheduler.check_integrity() == []


def test_slots_ahead_end_where_the_sequence_must() -> None:
    scheduler, _ = make_scheduler(lookahead_tokens=5)
    scheduler.add(request("a", 3, max_tokens=1))
    assert [update.block_ids for update in planned(scheduler).tables] == [[1]]


def test_slots_ahead_survive_rejected_drafts() -> None:
    """They hold what a proposer has stored; taking them away would only make it do so again."""
    scheduler, _ = make_scheduler(lookahead_tokens=3)
    scheduler.add(request("a", 3, max_tokens=20))
    scheduler.apply(result(planned(scheduler), drafts=(1, 2, 3)))
    plan = planned(scheduler)
    rejected = RowResult(seq_id=0, token_ids=[9])
    scheduler.apply(StepResult(step_id=plan.step_id, rows=[rejected]))
    changed = [(update.start, update.block_ids) for update in planned(scheduler).tables]
    assert changed == [(2, [0])], "of three blocks, 4 computed tokens and 3 slots ahead keep two"


def test_drafts_are_counted() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 3, max_tokens=20))
    scheduler.apply(result(planned(scheduler), drafts=(1, 2, 3)))
    for accepted in (2, 0):
        plan = planned(scheduler)
        row = RowResult(
            seq_id=0, token_ids=[1] * (accepted + 1), num_accepted=accepted, drafts=(5,)
        )
        scheduler.apply(StepResult(step_id=plan.step_id, rows=[row]))
    stats = scheduler.stats()
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (2, 4, 2)
    assert stats.accepted_per_position == [1, 1, 0]
