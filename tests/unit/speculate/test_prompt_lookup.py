"""Prompt lookup: the longest and latest match against a plain search, what it learns, and what it never reads."""

from __future__ import annotations

import random

import pytest
from speculate_cases import context, sequence

from nonet.core.errors import ConfigError
from nonet.speculate import PROPOSERS
from nonet.speculate.base import NO_DRAFT, Draft, Services
from nonet.speculate.prompt_lookup import EndingIndex, PromptLookup


def plain_search(known: list[int], longest: int) -> tuple[int, int]:
    """(position after the match, its length): every earlier place tried, the later of equally long ones kept."""
    best = (0, 0)
    for place in range(2, len(known)):
        length = 0
        while length < min(longest, place) and known[place - 1 - length] == known[-1 - length]:
            length += 1
        if length >= 2 and length >= best[1]:
            best = (place, length)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_and_latest_match_is_found(seed: int) -> None:
    rng = random.Random(seed)
    index, known = EndingIndex(longest=6, candidates=10**6), []
    for _ in range(200):
        known += [rng.randrange(3) for _ in range(rng.randint(1, 3))]
        assert index.find(known) == plain_search(known, 6)


def test_only_the_latest_candidates_are_looked_at() -> None:
    known = [5, 1, 2, 9, 1, 2, 8, 5, 1, 2]
    assert EndingIndex(longest=8, candidates=8).find(known) == (3, 3), "5, 1, 2 is the longest"
    assert EndingIndex(longest=8, candidates=1).find(known) == (6, 2)


def test_short_beginnings_match_nothing() -> None:
    index = EndingIndex(longest=8, candidates=8)
    assert [index.find([1] * n) for n in (0, 1, 2)] == [(0, 0)] * 3
    assert index.find([1, 1, 1]) == (2, 2)


def proposer(tokens: int = 6) -> PromptLookup:
    made = PromptLookup(PromptLookup.Config(tokens=tokens))
    made.start(Services())
    return made


def propose(made: PromptLookup, known: list[int], room: int = 100, slot: int = 0) -> Draft:
    (draft,) = made.propose([context(known, room=room, slot=slot)])
    return draft


def test_what_followed_is_proposed_and_a_loop_goes_on() -> None:
    made = proposer()
    made.add(0, sequence())
    assert propose(made, [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]).token_ids == (3, 4, 5, 6, 7, 8)
    made.add(1, sequence())
    assert propose(made, [7, 8, 7, 8], slot=1).token_ids == (7, 8, 7, 8, 7, 8)
    made.add(2, sequence())
    assert propose(made, [1, 2, 3, 1, 2], room=2, slot=2).token_ids == (3, 1)


def test_drafts_are_certain_and_state_their_chances() -> None:
    made = proposer()
    made.add(0, sequence())
    draft = propose(made, [1, 2, 3, 4, 5, 6, 1, 2])
    assert draft.distributions == ()
    assert len(draft.likelihoods) == len(draft.token_ids)
    assert list(draft.likelihoods) == sorted(draft.likelihoods), "a longer match is surer"


def test_nothing_is_proposed_without_a_match_room_or_sample() -> None:
    made = proposer()
    made.add(0, sequence())
    assert propose(made, [1, 2, 3, 4]) == NO_DRAFT
    assert propose(made, [1, 2, 1, 2], room=0) == NO_DRAFT
    (draft,) = made.propose([context([1, 2, 1, 2], room=5, is_sampled=False)])
    assert draft == NO_DRAFT


def test_it_learns_from_tokens_that_were_never_drafted() -> None:
    """A text in which matches always go on wrong, then one in which they always go on right."""
    made = proposer()
    made.add(0, sequence())
    first = propose(made, [1, 2, 3, 1, 2]).likelihoods[0]
    known = [1, 2, 3, 1, 2]
    for token_id in range(100, 130):
        known += [token_id, 1, 2]
        worse = propose(made, known).likelihoods[0]
    assert worse < first / 2
    for _ in range(60):
        known += [129, 1, 2]
        better = propose(made, known).likelihoods[0]
    assert better > 0.8


def test_what_one_sequence_taught_others_begin_with() -> None:
    made = proposer()
    for slot in range(40):
        made.add(slot, sequence())
        known = [1, 2, 3, 1, 2]
        first = propose(made, known, slot=slot).likelihoods[0]
        propose(made, [*known, 77, 78], slot=slot)
        made.remove(slot)
    made.add(50, sequence())
    assert propose(made, known, slot=50).likelihoods[0] < first


def test_a_sequence_that_comes_back_starts_from_its_tokens() -> None:
    made = proposer()
    made.add(0, sequence())
    known = [1, 2, 3, 4, 5, 1, 2]
    before = propose(made, known)
    made.remove(0)
    made.add(0, sequence())
    assert propose(made, known).token_ids == before.token_ids


@pytest.mark.parametrize(
    "spec", ["prompt_lookup:tokens=0", "prompt_lookup:longest=1", "prompt_lookup:candidates=0"]
)
def test_knobs_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="give at least"):
        PROPOSERS.build(spec)
