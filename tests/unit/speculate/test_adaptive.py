"""Adaptive length: drafts that pay are kept, others are not, and large batches are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from speculate_cases import context, sequence

from nonet.core.errors import ConfigError
from nonet.core.step import NewSequence
from nonet.speculate import DRAFT_LENGTHS
from nonet.speculate.base import Context, Draft, Needs, Outcome, Services
from nonet.speculate.cost import StepCost

FLAT = StepCost((1, 64), (1.0, 1.0))  # a step's time does not depend on its tokens
STEEP = StepCost((1, 64), (1.0, 64.0))  # it is nothing but its tokens
MIXED = StepCost((1, 2, 64), (1.0, 1.1, 7.3))  # a tenth more for each token


class Scripted:
    """Proposes as many tokens as there is room for; keeps what it was asked."""

    def __init__(self, likelihoods: tuple[float, ...] = (), model: str | None = None) -> None:
        self.needs = Needs(max_drafts=4, model=model, lookahead_tokens=3)
        self.likelihoods = likelihoods
        self.rooms: list[int] = []
        self.calls: list[str] = []

    def start(self, services: Services) -> None:
        self.calls.append("start")

    def add(self, slot: int, sequence: NewSequence) -> None:
        self.calls.append("add")

    def remove(self, slot: int) -> None:
        self.calls.append("remove")

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        self.calls.append("observe")

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        self.rooms = [asked.room for asked in contexts]
        drafts = []
        for asked in contexts:
            room = min(asked.room, self.needs.max_drafts) if asked.is_sampled else 0
            drafts.append(Draft((7,) * room, likelihoods=self.likelihoods[:room]))
        return drafts


class Wrapped:
    """An adaptive proposer around a scripted one, with `num_seqs` sequences."""

    def __init__(
        self,
        inner: Scripted,
        target: StepCost,
        second: StepCost | None = None,
        num_seqs: int = 1,
        gap_s: float = 0.0,
    ) -> None:
        self.inner = inner
        self.gap_s = gap_s
        self.outer = DRAFT_LENGTHS.build("adaptive:probe_every=5").wrap(inner)
        self.outer.start(Services(target_cost=target, second_cost=second, gap_s=lambda: self.gap_s))
        self.num_seqs = num_seqs
        for slot in range(num_seqs):
            self.outer.add(slot, sequence())

    def lengths(self, *, is_late: bool = False) -> list[int]:
        contexts = [context([1, 2, 3], slot=slot, is_late=is_late) for slot in range(self.num_seqs)]
        return [len(draft.token_ids) for draft in self.outer.propose(contexts)]

    def happened(self, drafted: int, accepted: int, times: int = 1) -> None:
        for _ in range(times):
            self.outer.observe([Outcome(slot, drafted, accepted) for slot in range(self.num_seqs)])


def test_needs_are_the_inner_ones_and_step_costs() -> None:
    outer = DRAFT_LENGTHS.build("adaptive").wrap(Scripted(model="m"))
    assert outer.needs == Needs(
        max_drafts=4, model="m", lookahead_tokens=3, step_costs=True, pauses=True
    )


def test_where_tokens_cost_nothing_all_are_kept() -> None:
    assert Wrapped(Scripted((0.5,) * 4), FLAT).lengths() == [4]


def test_where_steps_are_nothing_but_tokens_none_is_asked_for() -> None:
    wrapped = Wrapped(Scripted((0.9,) * 4), STEEP)
    assert wrapped.lengths() == [0]
    assert wrapped.inner.rooms == [0]


@pytest.mark.parametrize(
    ("likelihoods", "kept"),
    [((0.95,) * 4, 4), ((0.9, 0.05, 0.9, 0.9), 1), ((0.05,) * 4, 0), ((0.6, 0.6, 0.05, 0.05), 2)],
)
def test_tokens_are_kept_while_they_pay(likelihoods: tuple[float, ...], kept: int) -> None:
    assert Wrapped(Scripted(likelihoods), MIXED).lengths() == [kept]


@pytest.mark.parametrize("gap_s", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("num_seqs", [1, 2, 3])
def test_the_cut_is_the_best_of_all_cuts(num_seqs: int, gap_s: float) -> None:
    """Against every combination of lengths."""
    likelihoods = (0.7, 0.5, 0.9, 0.2)
    wrapped = Wrapped(Scripted(likelihoods), MIXED, num_seqs=num_seqs, gap_s=gap_s)

    def worth(lengths: Sequence[int]) -> float:
        expected = float(num_seqs)
        for length in lengths:
            chance = 1.0
            for likelihood in likelihoods[:length]:
                chance *= likelihood
                expected += chance
        if not any(lengths):
            return expected / max(MIXED(num_seqs), gap_s)
        return expected / (MIXED(num_seqs + sum(lengths)) + gap_s)

    best = max(worth(lengths) for lengths in product(range(5), repeat=num_seqs))
    assert worth(wrapped.lengths()) == pytest.approx(best)


def test_the_batch_above_which_nothing_pays() -> None:
    """c(n) = 0.9 + 0.1 n: with n sequences a sure token costs 0.1 of c(n) / n = 0.9 / n + 0.1 per token."""
    wrapped = Wrapped(Scripted((0.97,) * 4), StepCost((1, 2), (1.0, 1.1)))
    largest = wrapped.outer.largest_batch()
    assert 8 < largest < 400
    big = Wrapped(Scripted((0.97,) * 4), StepCost((1, 2), (1.0, 1.1)), num_seqs=largest + 1)
    assert set(big.lengths()) == {0}
    assert set(big.inner.rooms) == {0}


@pytest.mark.parametrize(
    ("gap_s", "likelihood", "kept"),
    [(0.0, 0.1, 4), (0.5, 0.1, 0), (5.0, 0.1, 0), (0.5, 0.9, 4), (5.0, 0.9, 4), (5.0, 0.2, 4)],
)
def test_drafts_must_make_up_for_the_wait(gap_s: float, likelihood: float, kept: int) -> None:
    """Steps of 1 s: of four such guesses 0.11, 0.25 or 3.1 tokens stand; with drafts a step takes 1 s and the gap."""
    wrapped = Wrapped(Scripted((likelihood,) * 4), FLAT, gap_s=gap_s)
    assert wrapped.lengths() == [kept]
    assert wrapped.outer.proposes_for(1) is (kept > 0)


def test_a_large_gap_leaves_smaller_batches_alone() -> None:
    cost = StepCost((1, 2), (1.0, 1.1))
    largest = [
        Wrapped(Scripted((0.97,) * 4), cost, gap_s=gap_s).outer.largest_batch()
        for gap_s in (0.0, 1.0, 3.0)
    ]
    assert largest[0] > largest[1] > 0
    wrapped = Wrapped(Scripted((0.97,) * 4), cost, num_seqs=largest[1] + 1, gap_s=1.0)
    assert not wrapped.outer.proposes_for(largest[1] + 1)
    assert set(wrapped.lengths()) == {0}
    assert set(wrapped.inner.rooms) == {0}
    assert wrapped.outer.proposes_for(largest[1]) is False, "the last guesses were not worth it"
    wrapped.gap_s = 0.0
    assert wrapped.outer.proposes_for(largest[1] + 1), "nothing is lost by waiting"
    assert not wrapped.outer.proposes_for(largest[0] + 1)


def test_guesses_that_come_too_late_show_when_to_wait_again() -> None:
    wrapped = Wrapped(Scripted((0.1,) * 4), FLAT, gap_s=1.0)
    assert wrapped.outer.proposes_for(1), "nothing was seen yet"
    assert wrapped.lengths() == [0]
    assert not wrapped.outer.proposes_for(1)
    wrapped.inner.likelihoods = (0.9,) * 4
    wrapped.lengths(is_late=True)
    wrapped.lengths(is_late=True)
    assert wrapped.outer.proposes_for(1)


def test_guesses_that_come_too_late_are_made_ever_more_rarely() -> None:
    wrapped = Wrapped(Scripted((0.1,) * 4), FLAT, gap_s=1.0)
    wrapped.lengths()
    looked = []
    for step in range(1, 40):
        wrapped.inner.rooms = []
        wrapped.lengths(is_late=True)
        looked += [step] if wrapped.inner.rooms else []
    assert looked == [2, 6, 14, 22, 30, 38]
    wrapped.inner.likelihoods = (0.9,) * 4
    for _ in range(8):
        wrapped.lengths(is_late=True)
    assert wrapped.lengths() == [4]


def test_small_changes_of_the_gap_are_passed_over() -> None:
    wrapped = Wrapped(Scripted((0.3,) * 4), FLAT, gap_s=0.38)
    assert wrapped.lengths() == [4], "1.42 tokens in 1.38 s"
    wrapped.gap_s = 0.41
    assert wrapped.lengths() == [4]
    wrapped.gap_s = 0.43
    assert wrapped.lengths() == [0]


def test_a_second_model_drafts_as_deep_as_it_is_right() -> None:
    wrapped = Wrapped(Scripted(model="m"), MIXED, StepCost((1,), (0.05,)))
    wrapped.happened(4, 4, times=20)
    assert wrapped.lengths() == [4]
    wrapped.happened(4, 1, times=20)
    assert 0 < wrapped.lengths()[0] < 4


def test_a_second_model_that_costs_too_much_is_not_asked() -> None:
    wrapped = Wrapped(Scripted(model="m"), MIXED, StepCost((1,), (1.2,)))
    assert wrapped.lengths() == [0]
    assert wrapped.inner.rooms == [0]


def test_after_failures_it_probes_now_and_then_and_recovers() -> None:
    wrapped = Wrapped(Scripted(model="m"), MIXED, StepCost((1,), (0.3,)))
    wrapped.happened(4, 0, times=40)
    tried = [wrapped.lengths()[0] for _ in range(40)]
    assert set(tried) == {0, 1}
    assert tried.count(1) == 3, "after 5, 10 and 20 steps"
    wrapped.happened(1, 1, times=60)
    assert wrapped.lengths()[0] > 1


def test_while_nothing_waits_a_probe_is_asked_for_and_then_made() -> None:
    wrapped = Wrapped(Scripted(model="m"), MIXED, StepCost((1,), (0.3,)), gap_s=1.0)
    wrapped.happened(4, 0, times=40)
    for _ in range(4):
        assert wrapped.lengths(is_late=True) == [0]
        assert not wrapped.outer.proposes_for(1)
    wrapped.lengths(is_late=True)
    assert wrapped.outer.proposes_for(1), "after 5 steps"
    assert wrapped.lengths() == [1]
    assert wrapped.lengths() == [0]
    assert not wrapped.outer.proposes_for(1)


def test_prompts_under_way_are_prepared() -> None:
    wrapped = Wrapped(Scripted(model="m"), FLAT, StepCost((1,), (0.01,)))
    wrapped.outer.propose([context([1, 2], is_sampled=False)])
    assert wrapped.inner.rooms[0] > 0


def test_a_steady_stream_of_calls_reaches_the_inner_one() -> None:
    wrapped = Wrapped(Scripted(), FLAT)
    wrapped.happened(1, 1)
    wrapped.outer.remove(0)
    assert wrapped.inner.calls == ["start", "add", "observe", "remove"]


@pytest.mark.parametrize("spec", ["adaptive:gain=-1", "adaptive:probe_every=0"])
def test_knobs_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="give a gain"):
        DRAFT_LENGTHS.build(spec)
