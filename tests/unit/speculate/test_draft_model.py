"""The draft model's bookkeeping, on a second model that remembers what each of its slots stands for."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from speculate_cases import context, sequence

from nonet.core.errors import ConfigError
from nonet.speculate import PROPOSERS
from nonet.speculate.base import Draft, Guess, SecondRow, Services
from nonet.speculate.draft_model import DraftModel

SIZE = 4
TOKENS = 3


def next_token(token_ids: Sequence[int]) -> int:
    return hash(tuple(token_ids)) % 97


class FakeSecond:
    """Its KV memory holds, for each slot, all tokens up to it; a guess over anything else is an error."""

    max_tokens = 64
    block_size = SIZE
    num_blocks = 40

    def __init__(self) -> None:
        self.tables: dict[int, list[int]] = {}
        self.known: dict[int, list[int]] = {}
        self.memory: dict[tuple[int, int], tuple[int, ...]] = {}
        self.tokens_run = 0
        self.passes = 0
        self.broken = False

    def blocks(self, slot: int) -> npt.NDArray[np.int32]:
        return np.array(self.tables[slot], dtype=np.int32)

    def run(self, rows: Sequence[SecondRow]) -> list[Guess | None]:
        self.passes += 1
        return [self._row(row) for row in rows]

    def _row(self, row: SecondRow) -> Guess | None:
        count = row.num_known or 1
        tokens = self.known[row.slot]
        if not row.num_known:
            assert row.start == len(tokens) + len(row.prefix) - 1
            tokens = [*tokens, *row.prefix]
        stop = row.start + count
        assert stop <= len(tokens)
        self.tokens_run += count
        assert self.tokens_run <= self.max_tokens * self.passes
        table = self.tables[row.slot]
        for position in range(row.start, stop):
            self.memory[table[position // SIZE], position % SIZE] = tuple(tokens[: position + 1])
        if not row.wants_guess:
            return None
        for position in range(stop):
            held = self.memory.get((table[position // SIZE], position % SIZE))
            assert held == tuple(tokens[: position + 1]), f"slot {row.slot}, position {position}"
        return None if self.broken else Guess(next_token(tokens[:stop]), None)


class World:
    """Sequences with tables, as the scheduler would keep them, and the proposer under test."""

    def __init__(self, tokens: int = TOKENS) -> None:
        self.second = FakeSecond()
        self.proposer = DraftModel(DraftModel.Config(model="m", tokens=tokens))
        self.proposer.start(Services(second_model=self.second))
        self.free = list(range(1, self.second.num_blocks + 1))
        self.drafts: dict[int, Draft] = {}

    def enter(self, slot: int, tokens: list[int], shared: Sequence[int] = ()) -> None:
        self.second.known[slot] = list(tokens)
        self.second.tables[slot] = list(shared)
        self.reserve(slot, len(tokens) + TOKENS)
        self.proposer.add(slot, sequence(tokens))

    def leave(self, slot: int, keep: int = 0) -> list[int]:
        """Blocks come free, but for the first `keep`, which stay cached; returns these."""
        table = self.second.tables.pop(slot)
        self.free += table[keep:]
        del self.second.known[slot]
        self.proposer.remove(slot)
        return table[:keep]

    def reserve(self, slot: int, num_tokens: int) -> None:
        table = self.second.tables[slot]
        while len(table) * SIZE < num_tokens:
            table.append(self.free.pop(0))

    def truncate(self, slot: int, num_tokens: int) -> None:
        table = self.second.tables[slot]
        keep = -(-num_tokens // SIZE)
        self.free += table[keep:]
        del table[keep:]

    def propose(self, *slots: int, room: int = 100) -> list[tuple[int, ...]]:
        contexts = [context(self.second.known[slot], slot=slot, room=room) for slot in slots]
        drafts = self.proposer.propose(contexts)
        self.drafts.update(zip(slots, drafts, strict=True))
        return [draft.token_ids for draft in drafts]

    def oracle(self, slot: int, count: int = TOKENS) -> tuple[int, ...]:
        tokens = list(self.second.known[slot])
        for _ in range(count):
            tokens.append(next_token(tokens))
        return tuple(tokens[-count:])

    def accept(self, slot: int, count: int, bonus: int = 1000) -> None:
        self.second.known[slot] += [*self.drafts[slot].token_ids[:count], bonus]


def test_it_proposes_what_the_model_says() -> None:
    world = World()
    world.enter(0, [1, 2, 3, 4, 5])
    assert world.propose(0, room=3) == [world.oracle(0)]
    assert world.second.passes == TOKENS
    assert world.second.tokens_run == 5 + TOKENS - 1


@pytest.mark.parametrize(("accepted", "run"), [(0, 1), (1, 1), (2, 1), (3, 2)])
def test_only_what_is_missing_is_run_again(accepted: int, run: int) -> None:
    """The last draft of a run that stood was never fed, so that case has one token more to catch up with."""
    world = World()
    world.enter(0, [1, 2, 3, 4, 5])
    world.propose(0, room=3)
    world.accept(0, accepted)
    world.reserve(0, 5 + accepted + 1 + TOKENS)
    before = world.second.tokens_run
    assert world.propose(0, room=3) == [world.oracle(0)]
    assert world.second.tokens_run - before == run + TOKENS - 1


def test_it_stops_where_the_blocks_end() -> None:
    world = World()
    world.enter(0, [1, 2, 3])
    world.truncate(0, 3)  # one block of 4: one draft can be fed after three known tokens
    assert world.propose(0, room=3) == [world.oracle(0, 2)]
    world.second.known[0] += [1, 2]
    assert world.propose(0, room=3) == [()], "no room even for what is known"
    world.reserve(0, 9)
    assert world.propose(0, room=3) == [world.oracle(0)]


def test_blocks_that_were_given_back_and_replaced_are_noticed() -> None:
    world = World()
    world.enter(0, [1, 2, 3, 4])  # the fed drafts lie in the second block
    world.propose(0, room=3)
    world.accept(0, 2)
    table = world.second.tables[0]
    table[1] = world.free.pop()
    assert world.propose(0, room=1) == [world.oracle(0, 1)]


def test_a_prefix_that_another_sequence_computed_is_taken_over() -> None:
    world = World()
    prompt = list(range(10))
    world.enter(0, prompt)
    world.propose(0, room=1)
    shared = world.leave(0, keep=2)
    before = world.second.tokens_run
    world.enter(1, [*prompt, 77], shared)
    assert world.propose(1, room=1) == [world.oracle(1, 1)]
    assert world.second.tokens_run - before == 3, "8 of 11 tokens were there"


def test_a_prefix_that_the_draft_model_never_saw_is_run() -> None:
    """Drafting was off when the target computed it, and the blocks hold something older."""
    world = World()
    world.enter(0, [5] * 12)
    world.propose(0, room=1)
    old = world.leave(0, keep=3)
    world.enter(1, [6] * 12, old)  # the target wrote new content to these blocks, unseen
    before = world.second.tokens_run
    assert world.propose(1, room=1) == [world.oracle(1, 1)]
    assert world.second.tokens_run - before == 12


def test_a_half_written_block_is_not_taken_for_its_old_content() -> None:
    world = World()
    world.enter(0, [5] * 12)
    world.propose(0, room=1)
    table = world.leave(0, keep=3)
    world.enter(1, [5] * 4 + [9], table[:1] + table[1:2])  # overwrites a part of the second block
    world.propose(1, room=1)
    world.leave(1, keep=2)
    world.enter(2, [5] * 12, table)
    assert world.propose(2, room=1) == [world.oracle(2, 1)]


def test_a_long_prompt_is_caught_up_with_over_several_steps() -> None:
    world = World()
    world.second.max_tokens = 8
    world.enter(0, list(range(20)))
    world.enter(1, [1, 2])
    seen = [world.propose(0, 1, room=1) for _ in range(3)]
    assert [drafts[0] for drafts in seen] == [(), (), world.oracle(0, 1)]
    assert seen[2][1] == world.oracle(1, 1)


def test_prompts_under_way_are_followed_without_a_guess() -> None:
    world = World()
    world.enter(0, [1, 2, 3])
    (draft,) = world.proposer.propose([context([1, 2, 3], is_sampled=False)])
    assert draft.token_ids == ()
    assert world.second.tokens_run == 3
    assert world.propose(0, room=1) == [world.oracle(0, 1)]
    assert world.second.tokens_run == 4, "the last token is run again for its guess"


def test_where_there_is_no_room_nothing_runs() -> None:
    world = World()
    world.enter(0, [1, 2, 3])
    assert world.propose(0, room=0) == [()]
    assert world.second.passes == 0


def test_a_context_that_comes_too_late_is_left_for_later() -> None:
    """Its next step is under way; the model catches up with all that it missed once a step waits again."""
    world = World()
    world.enter(0, [1, 2, 3])
    world.propose(0, room=1)
    before = world.second.tokens_run
    for token in (7, 8, 9):
        world.second.known[0].append(token)
        world.reserve(0, len(world.second.known[0]) + TOKENS)
        late = context(world.second.known[0], is_late=True)
        assert world.proposer.propose([late])[0].token_ids == ()
    assert world.second.tokens_run == before
    assert world.propose(0, room=1) == [world.oracle(0, 1)]
    assert world.second.tokens_run - before == 3


def test_a_broken_guess_ends_the_draft() -> None:
    world = World()
    world.second.broken = True
    world.enter(0, [1, 2, 3])
    assert world.propose(0, room=3) == [()]


@pytest.mark.parametrize("seed", range(12))
def test_any_life_of_sequences(seed: int) -> None:
    """Acceptance, truncation, preemption, shared prefixes and pauses at random: each guess stands on the right KV."""
    rng = random.Random(seed)
    world = World()
    prefix = [1, 2, 3, 4, 5, 6, 7, 8]
    cached: list[int] = []
    guessed = 0
    for _ in range(150):
        live = list(world.second.tables)
        if len(live) < 3 and rng.random() < 0.4:
            slot = next(s for s in range(3) if s not in live)
            tokens = prefix + [rng.randrange(9) for _ in range(rng.randint(1, 6))]
            world.enter(slot, tokens, cached if rng.random() < 0.7 else ())
            continue
        if live and (rng.random() < 0.1 or len(world.free) < 8):
            slot = rng.choice(live)
            hold = 0 if cached else 2
            mine = world.second.tables[slot][:2] == cached
            kept = world.leave(slot, keep=2 if mine else hold)
            cached = kept or cached
            continue
        if not live or rng.random() < 0.2:  # drafting is off for a step
            for slot in live:
                world.second.known[slot].append(rng.randrange(9))
                world.reserve(slot, len(world.second.known[slot]) + TOKENS)
            continue
        drafts = world.propose(*live, room=TOKENS)
        for slot, draft in zip(live, drafts, strict=True):
            assert draft == world.oracle(slot, len(draft)) if draft else True
            guessed += len(draft)
            world.accept(slot, rng.randint(0, len(draft)), rng.randrange(9))
            if rng.random() < 0.5:
                world.truncate(slot, len(world.second.known[slot]) - 1)
            world.reserve(slot, len(world.second.known[slot]) + rng.randint(0, TOKENS))
    assert guessed > 50


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [("draft_model", "no model is named"), ("draft_model:model=m,tokens=0", "give at least 1")],
)
def test_mistakes_are_explained(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        PROPOSERS.build(spec)
