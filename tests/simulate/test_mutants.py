"""The simulation must reject each of the mutants, every one wrong in one place."""

from __future__ import annotations

from random import Random

import pytest

from tests.simulate.cases import play, random_case
from tests.simulate.harness import Simulation
from tests.simulate.mutants import MUTANTS

NUM_CASES = 120


def test_the_unchanged_code_passes_the_same_cases() -> None:
    assert _first_rejected() is None


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_each_mutant_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    assert _first_rejected() is not None, f"{name} went unnoticed"


def _first_rejected() -> int | None:
    """Number of the first case that fails."""
    for seed in range(NUM_CASES):
        case = random_case(Random(seed))
        try:
            play(Simulation(case.setup), case)
        except AssertionError:
            return seed
    return None
