"""Plans that wait for drafts while few sequences run, and run ahead while many do: each choice gets its own tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from nonet.core.step import Row, RowResult
from nonet.scheduler import planner, scheduler
from nonet.scheduler.sequence import Sequence
from tests.simulate.cases import Case, play, random_case
from tests.simulate.harness import Setup, Simulation

NUM_CASES = 40


def cases() -> Iterator[Case]:
    """Requests that come in bunches and go, so that the batch crosses the threshold both ways; preemptions, aborts."""
    for seed in range(NUM_CASES):
        random = Random(seed)
        setup = Setup(
            windows=random.choice([(None,), (None, 6)]),
            num_blocks=random.choice([20, 40]),
            max_num_seqs=6,
            max_tokens=30,
            max_model_len=40,
            depth=1,
            num_drafts=3,
            lookahead=random.choice([0, 3]),
            waits_up_to=random.choice([1, 2, 3]),
        )
        yield replace(random_case(random), setup=setup)


def test_each_choice_gets_its_own_tokens_across_the_threshold() -> None:
    seen: Counter[str] = Counter()
    for case in cases():
        simulation = Simulation(case.setup)
        play(simulation, case)
        seen["rows that ran ahead"] += simulation.runner.num_run_ahead
        seen["rows with drafts"] += simulation.runner.num_verified
        seen["both in one run"] += bool(
            simulation.runner.num_run_ahead and simulation.runner.num_verified
        )
        seen["preempted"] += simulation.scheduler.stats().preemptions
        seen["ended"] += sum(s.finish_reason == "abort" for s in simulation.streams.values())
    for what in (
        "rows that ran ahead",
        "rows with drafts",
        "both in one run",
        "preempted",
        "ended",
    ):
        assert seen[what] >= 10, f"{what}: {seen[what]}"


def stale_drafts_used(patch: pytest.MonkeyPatch) -> None:
    """Drafts made after a token that has a step in flight behind it, and so another token."""
    right = scheduler.Scheduler._advance

    def advance(self: scheduler.Scheduler, seq: Sequence, row: Row, outcome: RowResult) -> None:
        right(self, seq, row, outcome)
        if seq.status.value == "running":
            seq.drafts = outcome.drafts

    patch.setattr(scheduler.Scheduler, "_advance", advance)


def drafts_kept_over_a_step_that_ran_ahead(patch: pytest.MonkeyPatch) -> None:
    """The row was planned without them, for want of blocks or budget, and the next one takes them."""
    right = planner.Planner._add_row

    def add(
        self: planner.Planner,
        step: planner.PlannedStep,
        seq: Sequence,
        num_tokens: int,
        drafts: tuple[int, ...] = (),
    ) -> None:
        kept = seq.drafts
        right(self, step, seq, num_tokens, drafts)
        seq.drafts = () if drafts else kept

    patch.setattr(planner.Planner, "_add_row", add)


def runs_ahead_of_drafts(patch: pytest.MonkeyPatch) -> None:
    """Plans the next row although it is not known how many drafts will stand."""
    patch.setattr(planner, "_can_run_ahead", lambda seq: True)


@pytest.mark.parametrize(
    "mutant", [stale_drafts_used, drafts_kept_over_a_step_that_ran_ahead, runs_ahead_of_drafts]
)
def test_each_mutant_is_rejected(mutant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(mutant)
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        _play_all()


def _play_all() -> None:
    for case in cases():
        play(Simulation(case.setup), case)
