"""What the scheduler decides, case by case; `tests/simulate` has the crowd."""

from __future__ import annotations

import pytest
from tests.simulate.scripted import make_scheduler, planned, request, result, shape, step

from nonet.core.errors import ConfigError, ContextLengthError, InvalidRequestError, OverloadedError
from nonet.core.grammar import Grammar
from nonet.core.request import Request
from nonet.core.step import RowResult, StepPlan, StepResult


def test_nothing_to_do_is_no_plan() -> None:
    scheduler, _ = make_scheduler()
    assert scheduler.plan(0.0) is None
    assert not scheduler.has_work


def test_decodes_come_first_and_prompts_take_the_rest() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 4))
    scheduler.add(request("b", 30))
    assert shape(step(scheduler)) == [(0, 0, 4, 1), (1, 0, 12, 0)]
    assert shape(step(scheduler)) == [(0, 4, 1, 1), (1, 12, 15, 0)]
    scheduler.add(request("c", 6))
    assert shape(step(scheduler)) == [(0, 5, 1, 1), (1, 27, 3, 1), (2, 0, 6, 1)]
    assert shape(step(scheduler)) == [(0, 6, 1, 1), (1, 30, 1, 1), (2, 6, 1, 1)]


def test_without_chunks_a_prompt_waits_until_it_fits() -> None:
    scheduler, _ = make_scheduler(chunked_prefill=False)
    scheduler.add(request("a", 10, max_tokens=2))
    scheduler.add(request("b", 16))
    scheduler.add(request("c", 2))
    assert shape(step(scheduler)) == [(0, 0, 10, 1)], "c does not overtake b"
    assert shape(step(scheduler)) == [(0, 10, 1, 1)]
    assert shape(step(scheduler)) == [(1, 0, 16, 1)]
    assert shape(step(scheduler)) == [(1, 16, 1, 1), (2, 0, 2, 1)]


def test_without_chunks_a_prompt_over_the_budget_is_still_served() -> None:
    scheduler, _ = make_scheduler(chunked_prefill=False)
    scheduler.add(request("a", 40))
    assert [shape(step(scheduler))[0][1:] for _ in range(3)] == [
        (0, 16, 0),
        (16, 16, 0),
        (32, 8, 1),
    ]


def test_seats_are_limited_and_given_again() -> None:
    scheduler, _ = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(request(name, 4, max_tokens=1))
    first = step(scheduler)
    assert [row.seq_id for row in first.rows] == [0, 1]
    second = step(scheduler)
    assert ([row.seq_id for row in second.rows], second.gone) == ([2], [0, 1])


def test_new_sequences_bring_all_the_runner_needs() -> None:
    scheduler, _ = make_scheduler()
    asked = request("a", [5, 6, 7], seed=11, n=2, eos_ids=(3,))
    scheduler.add(asked)
    plan = step(scheduler)
    assert [(new.seq_id, new.token_ids, new.num_prompt, new.seed) for new in plan.new] == [
        (0, [5, 6, 7], 3, 11),
        (1, [5, 6, 7], 3, 12),
    ]
    assert plan.new[0].params is asked.params
    assert plan.new[0].eos_ids == (3,)
    assert step(scheduler).new == []


def test_drawn_seeds_differ_and_repeat_with_the_engine_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        scheduler, _ = make_scheduler(seed=seed)
        scheduler.add(request("a", n=3))
        drawn.append([new.seed for new in planned(scheduler).new])
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 6
    assert all(0 <= seed < 2**63 for seeds in drawn for seed in seeds)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_any_allowed_seed_fits_a_signed_word(seed: int) -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", seed=seed, n=2))
    seeds = [new.seed for new in planned(scheduler).new]
    assert seeds[1] == (seeds[0] + 1) % 2**63
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_choices_share_the_prompt() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", [*range(14)], n=3, max_tokens=3))
    assert shape(step(scheduler)) == [(0, 0, 14, 1)], "the others wait for the first one's prompt"
    assert shape(step(scheduler)) == [(0, 14, 1, 1), (1, 12, 2, 1), (2, 12, 2, 1)]
    deltas = scheduler.drain_deltas()
    assert [(delta.index, delta.num_cached) for delta in deltas] == [
        (0, 0),
        (0, 0),
        (1, 12),
        (2, 12),
    ]
    stats = scheduler.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens, stats.prompt_tokens) == (42, 24, 14)


def test_another_choice_computes_the_prompt_when_the_first_is_aborted() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", [*range(40)], n=3))
    step(scheduler)
    scheduler.abort(["a"], 0)
    assert shape(step(scheduler)) == [(1, 16, 16, 0)], "what was computed is found in the cache"
    step(scheduler)
    assert [row[0] for row in shape(step(scheduler))] == [1, 2]


def test_choices_do_not_wait_without_a_prefix_cache() -> None:
    scheduler, _ = make_scheduler(prefix_cache=False)
    scheduler.add(request("a", [*range(5)], n=3))
    assert [row[0] for row in shape(step(scheduler))] == [0, 1, 2]


def test_a_row_may_start_at_a_token_not_yet_read() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 4, max_tokens=3))
    first = planned(scheduler)
    second = planned(scheduler)
    assert shape(second) == [(0, 4, 1, 1)]
    assert second.new == []
    scheduler.apply(result(first))
    third = planned(scheduler)
    assert shape(third) == [(0, 5, 1, 1)]
    scheduler.apply(result(second))
    assert scheduler.plan(0.0) is None, "the third token is the last"
    scheduler.apply(result(third))
    assert [d.finish_reason for d in scheduler.drain_deltas()] == [None, None, "length"]
    assert scheduler.stats().blocks_free == 64


def test_where_drafts_may_follow_a_step_waits_for_the_tokens_before_it() -> None:
    scheduler, _ = make_scheduler(awaits_tokens=lambda num_seqs: True)
    scheduler.add(request("a", 20))
    first = planned(scheduler)
    second = planned(scheduler)
    assert shape(second) == [(0, 16, 4, 1)], "a chunk brings no token to wait for"
    assert scheduler.plan(0.0) is None
    scheduler.apply(result(first))
    scheduler.apply(result(second))
    assert shape(planned(scheduler)) == [(0, 20, 1, 1)]


def test_a_newcomer_waits_with_the_others_so_that_the_batch_stays_whole() -> None:
    scheduler, _ = make_scheduler(awaits_tokens=lambda num_seqs: True)
    scheduler.add(request("a", 4))
    first = planned(scheduler)
    scheduler.add(request("b", 5))
    assert scheduler.plan(0.0) is None
    scheduler.apply(result(first))
    assert shape(planned(scheduler)) == [(0, 4, 1, 1), (1, 0, 5, 1)]


def test_the_question_whether_to_wait_is_asked_each_step() -> None:
    """With the number of sequences that get a token: two wait, three do not, two beside one that may end wait again."""
    asked: list[int] = []

    def awaits(num_seqs: int) -> bool:
        asked.append(num_seqs)
        return num_seqs <= 2

    scheduler, _ = make_scheduler(awaits_tokens=awaits)
    scheduler.add(request("a", 3, max_tokens=20))
    scheduler.add(request("b", 3, max_tokens=5))
    first = planned(scheduler)
    assert scheduler.plan(0.0) is None
    assert asked == [2]
    scheduler.apply(result(first, drafts=(1, 2)))
    scheduler.add(request("c", 3, max_tokens=20))
    second = planned(scheduler)
    assert drafts_of(second) == {0: (1, 2), 1: (1, 2), 2: ()}
    ahead = planned(scheduler)
    assert shape(ahead) == [(2, 3, 1, 1)], "how many drafts in flight will stand is not known"
    scheduler.apply(result(second, drafts=(8, 9)))
    whole = planned(scheduler)
    assert drafts_of(whole) == {0: (8, 9), 1: (8, 9), 2: ()}, "what came too late for c is gone"
    scheduler.apply(result(ahead, drafts=(8, 9)))
    assert scheduler.plan(0.0) is None
    assert asked == [2, 3, 3, 2]
    scheduler.apply(result(whole, drafts=(8, 9)))
    assert drafts_of(planned(scheduler)) == {0: (8, 9), 1: (8,), 2: (8, 9)}
    assert scheduler.check_integrity() == []


def drafts_of(plan: StepPlan) -> dict[int, tuple[int, ...]]:
    return {row.seq_id: row.drafts for row in plan.rows}


def test_an_abort_frees_at_once_or_when_the_step_lands() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 8))
    scheduler.add(request("b", 8))
    plan = planned(scheduler)
    scheduler.abort(["a", "unknown"])
    assert scheduler.stats().blocks_free == 64 - 4, "a step in flight uses the blocks"
    assert scheduler.check_integrity() == []
    scheduler.apply(result(plan))
    assert scheduler.stats().blocks_free == 64 - 2
    scheduler.abort(["b"])
    scheduler.abort(["b"])
    assert scheduler.stats().blocks_free == 64
    deltas = [(d.request_id, d.token_ids, d.finish_reason) for d in scheduler.drain_deltas()]
    assert deltas == [("a", [], "abort"), ("b", [7], None), ("b", [], "abort")]
    assert not scheduler.has_work


def test_an_abort_of_one_choice_leaves_the_others() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 2, n=3))
    step(scheduler)
    scheduler.abort(["a"], 1)
    assert [row.seq_id for row in step(scheduler).rows] == [0, 2]


def test_an_abort_in_the_queue() -> None:
    scheduler, _ = make_scheduler(max_num_seqs=1)
    scheduler.add(request("a"))
    scheduler.add(request("b"))
    step(scheduler)
    scheduler.abort(["b"])
    assert scheduler.stats().num_waiting == 0
    assert step(scheduler).gone == []


def test_a_failed_row_ends_its_sequence_only() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a"))
    scheduler.add(request("b"))
    plan = planned(scheduler)
    rows = [
        RowResult(seq_id=0, error="logits are not numbers"),
        RowResult(seq_id=1, token_ids=[7]),
    ]
    scheduler.apply(StepResult(step_id=plan.step_id, rows=rows))
    first, second = scheduler.drain_deltas()
    assert (first.finish_reason, first.error) == ("error", "logits are not numbers")
    assert second.finish_reason is None
    assert scheduler.check_integrity() == []
    scheduler.add(request("a", 5))
    assert shape(planned(scheduler))[-1] == (2, 0, 5, 1), "nothing of a failed row is published"


def test_the_queue_is_bounded_by_requests_that_never_ran() -> None:
    scheduler, _ = make_scheduler(max_waiting=2, max_num_seqs=1)
    scheduler.add(request("a", n=3))
    scheduler.add(request("b"))
    with pytest.raises(OverloadedError, match="2 requests are waiting and 2 may"):
        scheduler.add(request("c"))
    step(scheduler)
    scheduler.add(request("c"))
    scheduler.abort(["b"])
    scheduler.add(request("d"))
    with pytest.raises(OverloadedError):
        scheduler.add(request("e"))


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        (request("a", []), InvalidRequestError, "no tokens"),
        (request("a", [1, -1]), InvalidRequestError, "no token id"),
        (request("a", [2**32]), InvalidRequestError, "no token id"),
        (request("a", 128), ContextLengthError, "128 tokens and the model's context is 128"),
        (request("a", 100, max_tokens=29), ContextLengthError, "lower max_tokens to 28"),
    ],
)
def test_what_can_never_run_is_refused(asked: Request, error: type[Exception], says: str) -> None:
    scheduler, _ = make_scheduler()
    with pytest.raises(error, match=says):
        scheduler.add(asked)
    assert not scheduler.has_work


def test_what_the_pool_can_never_hold_is_refused() -> None:
    scheduler, _ = make_scheduler(num_blocks=5)
    assert scheduler.max_len == 21
    with pytest.raises(ContextLengthError, match="5 blocks holds one sequence of 21 tokens"):
        scheduler.add(request("a", 14, max_tokens=8))
    scheduler.add(request("b", 14, max_tokens=7))
    scheduler.add(request("c", 20, max_tokens=None))
    while scheduler.has_work:
        step(scheduler)
    done = {d.request_id: d.finish_reason for d in scheduler.drain_deltas() if d.finish_reason}
    assert done == {"b": "length", "c": "length"}


def test_a_request_id_is_used_once_at_a_time() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", max_tokens=1))
    with pytest.raises(InvalidRequestError, match="already running"):
        scheduler.add(request("a"))
    step(scheduler)
    scheduler.add(request("a"))
    assert scheduler.has_work


def test_the_last_comer_gives_way_and_resumes() -> None:
    scheduler, _ = make_scheduler(num_blocks=6, prefix_cache=False)
    scheduler.add(request("a", 7, max_tokens=14))
    scheduler.add(request("b", 7, max_tokens=14, seed=5))
    plans = []
    while scheduler.has_work:
        plans.append(step(scheduler))
    assert scheduler.stats().preemptions >= 1
    returned = [new for plan in plans[1:] for new in plan.new]
    assert [new.seq_id for new in returned] == [1]
    assert returned[0].seed == 5
    assert returned[0].num_prompt == 7
    assert len(returned[0].token_ids) > 7, "its outputs come along"
    assert sum(len(d.token_ids) for d in scheduler.drain_deltas()) == 28
    assert [seq_id for plan in plans for seq_id in plan.gone].count(1) == 1


def test_admission_leaves_running_sequences_room_to_grow() -> None:
    scheduler, _ = make_scheduler(num_blocks=8, prefix_cache=False, max_num_seqs=8)
    for name in "abcdefgh":
        scheduler.add(request(name, 4, max_tokens=4))
    while scheduler.has_work:
        step(scheduler)
    assert scheduler.stats().preemptions == 0


def test_stats_count() -> None:
    scheduler, _ = make_scheduler(max_num_seqs=1)
    scheduler.add(request("a", 4, max_tokens=2))
    scheduler.add(request("b", 6))
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.waiting_tokens) == (1, 1, 6)
    assert (stats.steps, stats.step_tokens, stats.prompt_tokens, stats.generation_tokens) == (
        1,
        4,
        4,
        1,
    )
    assert (stats.blocks_free, stats.blocks_total, stats.kv_usage) == (63, 64, 1 / 64)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_model_len": -1}, "max_model_len is -1"),
        ({"max_tokens_per_step": 3}, "below max_num_seqs 4"),
    ],
)
def test_limits_are_checked(changes: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_scheduler(**changes)


def test_a_blocked_request_waits_and_holds_up_nobody() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 4, n=2), ["a key", "a lock"])
    scheduler.add(request("b", 4))
    assert [row.seq_id for row in step(scheduler).rows] == [2]
    scheduler.unblock("a", "a key")
    scheduler.unblock("unknown", "a key")
    assert [row.seq_id for row in step(scheduler).rows] == [2]
    scheduler.unblock("a", "a lock")
    assert [row.seq_id for row in step(scheduler).rows] == [2, 0, 1]


def test_what_cannot_be_had_ends_the_request_alone() -> None:
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 4, n=2), ["a key"])
    scheduler.add(request("b", 4))
    scheduler.unblock("a", "a key", "there is no key")
    assert [
        (delta.request_id, delta.index, delta.finish_reason, delta.error)
        for delta in scheduler.drain_deltas()
    ] == [("a", 0, "error", "there is no key"), ("a", 1, "error", "there is no key")]
    scheduler.unblock("a", "a key")
    assert [row.seq_id for row in step(scheduler).rows] == [2]
    assert scheduler.check_integrity() == []


def test_a_grammar_does_not_keep_its_rows_from_running_ahead() -> None:
    """The runner reads the token before once the forward pass is under way."""
    scheduler, _ = make_scheduler()
    scheduler.add(request("a", 4, grammar=Grammar("regex", "a")))
    scheduler.add(request("b", 4))
    assert [row.seq_id for row in planned(scheduler).rows] == [0, 1]
    assert [row.seq_id for row in planned(scheduler).rows] == [0, 1]
