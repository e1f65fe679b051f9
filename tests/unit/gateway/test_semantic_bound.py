"""What the bound stands on: thresholds that are learned, a proof that may be looked at any time, a switch-off."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from nonet.gateway.cache.semantic.belief import STEEPNESS, THRESHOLDS, Belief, Pool, false_chance
from nonet.gateway.cache.semantic.evidence import Evidence, binomial_tail, upper_bound
from nonet.gateway.cache.semantic.gates import marks_of
from nonet.gateway.cache.semantic.partition import Partition, Question, Rules
from nonet.gateway.cache.semantic.settings import ALL_GATES

# --- thresholds --------------------------------------------------------------------------------------------------


def simulate(
    delta: float, num_asked: int, chance: Callable[[Belief, float, Pool], float]
) -> tuple[int, int]:
    """Hits and false hits among entries with thresholds and a steepness that are known here and not to the cache."""
    rng = random.Random(1)
    pool = Pool()
    truth = [(rng.gauss(0.86, 0.05), rng.choice([30, 60, 100])) for _ in range(60)]
    beliefs = [Belief((), pool) for _ in truth]
    hits = false = 0
    for _ in range(num_asked):
        place = rng.randrange(len(truth))
        threshold, steepness = truth[place]
        similarity = rng.uniform(0.7, 1.0)
        is_right = rng.random() < 1 / (1 + math.exp(-steepness * (similarity - threshold)))
        if chance(beliefs[place], similarity, pool) <= delta:
            hits += 1
            false += not is_right
        else:
            beliefs[place].learn(similarity, is_right, pool)
    return hits, false


def averaged(belief: Belief, similarity: float, pool: Pool) -> float:
    return belief.false_chance(similarity, pool)


def most_likely(belief: Belief, similarity: float, pool: Pool) -> float:
    """The mutant: the best fit taken for the truth, as if there were no doubt about it."""
    weights = belief.log_likelihood
    best = np.zeros_like(weights)
    best[int(weights.argmax())] = 1
    return false_chance(best, similarity)


@pytest.mark.parametrize("delta", [0.01, 0.02, 0.05])
def test_learned_thresholds_keep_delta(delta: float) -> None:
    hits, false = simulate(delta, 8000, averaged)
    assert hits > 800
    assert false / hits <= delta


def test_the_best_fit_alone_breaks_delta() -> None:
    hits, false = simulate(0.01, 3000, most_likely)
    assert binomial_tail(false, hits, 0.01) < 0.01


def test_no_trial_no_trust() -> None:
    pool = Pool()
    assert Belief((), pool).false_chance(0.99, pool) > 0.1


def test_a_new_entry_profits_from_many_others() -> None:
    pool = Pool()
    before = Belief((), pool).false_chance(0.95, pool)
    others = [Belief([(0.8, True)] * 4, pool) for _ in range(100)]
    after = Belief((), pool).false_chance(0.95, pool)
    assert after < before / 4
    for one in others:
        one.forget(pool)
    assert Belief((), pool).false_chance(0.95, pool) == pytest.approx(before, rel=1e-3)


def test_what_was_wrong_raises_the_threshold() -> None:
    pool = Pool()
    belief = Belief([(0.9, True)] * 50, pool)
    before = belief.false_chance(0.92, pool)
    belief.learn(0.93, False, pool)
    assert belief.false_chance(0.92, pool) > 5 * before
    assert belief.false_chance(0.99, pool) < belief.false_chance(0.92, pool)


def test_the_posterior_is_bayes_rule() -> None:
    """Against a plain product over the grid."""
    trials = [(0.82, True), (0.9, True), (0.75, False)]
    pool = Pool()
    belief = Belief((), pool)
    prior = np.exp(pool.log_prior().astype(float))
    cells = [(g, t) for g in STEEPNESS.tolist() for t in THRESHOLDS.tolist()]

    def right(cell: tuple[float, float], similarity: float) -> float:
        return 1 / (1 + math.exp(-cell[0] * (similarity - cell[1])))

    weights = [
        weight * math.prod(right(cell, s) if ok else 1 - right(cell, s) for s, ok in trials)
        for cell, weight in zip(cells, prior, strict=True)
    ]
    expected = sum(w * (1 - right(c, 0.88)) for w, c in zip(weights, cells, strict=True))
    fixed = Pool()
    for similarity, is_right in trials:
        belief.learn(similarity, is_right, pool)
    assert belief.false_chance(0.88, fixed) == pytest.approx(expected / sum(weights), rel=1e-3)


# --- the proof ---------------------------------------------------------------------------------------------------


class PointEstimate(Evidence):
    """The mutant: serves as soon as the share of false ones so far is below delta, sure or not."""

    def add(self, is_right: bool) -> None:
        self.recent.append(is_right)
        if self.num_false <= 0.05 * len(self.recent):
            self.state = "serving"


def share_that_serves(kind: type[Evidence], rate: float, partitions: int = 300) -> float:
    """Of partitions whose hits are false at this rate, how many are let out at some time."""
    rng = random.Random(2)
    served = 0
    for _ in range(partitions):
        evidence = kind(0.05)
        for _ in range(400):
            evidence.add(rng.random() >= rate)
            if evidence.state == "serving":
                served += 1
                break
    return served / partitions


def test_a_partition_over_the_bound_is_hardly_ever_let_out() -> None:
    assert share_that_serves(Evidence, 0.05) <= 0.08  # 5 % and what chance adds to 300
    assert share_that_serves(Evidence, 0.10) <= 0.05


def test_without_confidence_it_is_let_out() -> None:
    assert share_that_serves(PointEstimate, 0.10) > 0.5


def test_a_good_partition_is_let_out() -> None:
    assert share_that_serves(Evidence, 0.005) > 0.95


@pytest.mark.parametrize(("delta", "most"), [(0.01, 480), (0.05, 96)])
def test_how_many_verified_hits_a_proof_takes(delta: float, most: int) -> None:
    """Without a false one 299 at 1 % would do for a test made once; looking at any time costs more."""
    evidence = Evidence(delta)
    count = 0
    while evidence.state == "proving":
        evidence.add(True)
        count += 1
    assert math.log(20) / delta < count <= most


def test_a_partition_that_breaks_the_bound_is_switched_off() -> None:
    evidence = Evidence(0.05)
    for _ in range(200):
        evidence.add(True)
    assert evidence.state == "serving"
    rng = random.Random(3)
    for _ in range(300):
        evidence.add(rng.random() >= 0.3)
        if evidence.state == "off":
            break
    assert evidence.state == "off"
    for _ in range(2000):
        evidence.add(True)
    assert evidence.state == "off"  # until an operator purges it


def test_a_rare_false_hit_does_not_switch_off() -> None:
    evidence = Evidence(0.05)
    for number in range(3000):
        evidence.add(number % 100 != 99)
    assert evidence.state == "serving"


def test_exact_bounds() -> None:
    assert upper_bound(0, 299) == pytest.approx(1 - 0.05 ** (1 / 299), abs=1e-6)
    assert upper_bound(0, 299) < 0.01 < upper_bound(0, 298)
    assert upper_bound(3, 100) == pytest.approx(
        0.0757, abs=2e-4
    )  # from tables of Clopper and Pearson
    assert upper_bound(0, 0) == 1.0
    assert upper_bound(5, 5) == 1.0
    assert binomial_tail(0, 10, 0.3) == 1.0
    assert binomial_tail(10, 10, 0.5) == pytest.approx(2**-10)
    assert binomial_tail(2, 3, 0.5) == pytest.approx(0.5)


# --- a partition -------------------------------------------------------------------------------------------------


def partition(delta: float = 0.3) -> Partition:
    return Partition(Rules(delta=delta, gates=ALL_GATES))


def test_differences_are_learned_and_unlearned() -> None:
    one = partition()
    one.add(Question(b"k", "reset my password", trials=[(0.8, True)] * 20))
    near = [(one.questions[b"k"], 0.9)]
    other = marks_of("reset my lost password")
    first = one.look(other, near)
    assert (first.is_covered, first.fits, first.differences) == (False, False, {"+lost"})
    one.learn(first, True)
    assert one.look(other, near).fits
    assert not one.look(marks_of("reset my old password"), near).fits
    one.learn(one.look(other, near), False)
    assert not one.look(other, near).is_covered


def test_the_first_that_is_covered_is_taken() -> None:
    one = partition()
    for key, text in ((b"far", "reset password"), (b"near", "reset old password")):
        one.add(Question(key, text, trials=[(0.8, True)] * 20))
    near = [(one.questions[b"near"], 0.95), (one.questions[b"far"], 0.9)]
    look = one.look(marks_of("please reset my password"), near)
    assert look.question is one.questions[b"far"]
    assert look.fits
    assert one.look(marks_of("password"), near).question is one.questions[b"near"]
    assert one.look(marks_of("reset my password"), [(one.questions[b"far"], 0.69)]).question is None


def test_only_would_be_hits_are_evidence() -> None:
    one = partition(delta=0.01)
    one.add(Question(b"k", "reset my password"))
    look = one.look(marks_of("reset the password"), [(one.questions[b"k"], 0.9)])
    assert look.is_covered
    assert not look.fits
    one.learn(look, False)
    assert len(one.evidence.recent) == 0
    assert one.questions[b"k"].trials == [(0.9, False)]


def test_what_is_gone_is_not_learned() -> None:
    one = partition()
    one.add(Question(b"k", "reset my password"))
    look = one.look(marks_of("reset the password"), [(one.questions[b"k"], 0.9)])
    one.remove(b"k")
    one.learn(look, True)
    assert one.questions == {}
