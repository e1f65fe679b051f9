"""Draft model: a small model with the target's vocabulary guesses, token by token.

Idea: the draft model follows the target's sequences in the target's own blocks, with KV memory of its own, so that
sharing, preemption and the end of a sequence need nothing of it. After each step it catches up with the tokens that
the step brought and goes on alone. A token drawn at random is kept with the distribution it was drawn from, shaped by
the request's own temperature, truncation, penalties and grammar: what makes its acceptance both likely and exact.
Reference: arXiv 2211.17192 and arXiv 2302.01318.
Cost: the draft model's weights and KV memory, and one pass of it per drafted token.
Good for: a target many times larger than the draft, in small batches.
Conflicts: a target without a layer of full attention; pruned KV caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nonet.core.errors import ConfigError
from nonet.core.step import NewSequence
from nonet.speculate.base import (
    NO_DRAFT,
    Context,
    Draft,
    Guess,
    Needs,
    Outcome,
    Proposer,
    SecondModel,
    SecondRow,
    Services,
)

__all__ = ["DraftModel"]


class DraftModel(Proposer):
    """Proposes what the second model draws."""

    @dataclass(frozen=True, slots=True)
    class Config:
        model: str = ""  # the draft model, named as for --model
        tokens: int = 4  # most tokens drafted at a time
        weight_format: str = "auto"  # how the draft model's weights are held

        def __post_init__(self) -> None:
            if not self.model:
                raise ConfigError(
                    "draft_model: no model is named; write draft_model:model=NAME with a small model of the same "
                    "vocabulary"
                )
            if self.tokens < 1:
                raise ConfigError(f"draft_model: tokens is {self.tokens}; give at least 1")

    def __init__(self, config: Config) -> None:
        self._config = config
        self._states: dict[int, _State] = {}
        self._model: SecondModel | None = None
        # What each block's draft KV stands for, as a chain of hashes of all tokens up to its end; 0 for nothing whole.
        self._contents: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    @property
    def needs(self) -> Needs:
        config = self._config
        return Needs(
            max_drafts=config.tokens,
            lookahead_tokens=config.tokens,
            model=config.model,
            weight_format=config.weight_format,
        )

    def start(self, services: Services) -> None:
        assert services.second_model is not None, "a model was asked for"
        self._model = services.second_model
        self._contents = np.zeros(services.second_model.num_blocks + 1, dtype=np.int64)

    def add(self, slot: int, sequence: NewSequence) -> None:
        self._states[slot] = _State()

    def remove(self, slot: int) -> None:
        self._states.pop(slot, None)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """The tokens themselves tell, in `propose`."""

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """A sequence that one pass does not catch up with gets no draft, and is further on in the next step."""
        rows, ready = self._catch_up([one for one in contexts if one.room and not one.is_late])
        chains = self._guess(rows, ready)
        return [
            chains[context.slot].draft() if context.slot in chains else NO_DRAFT
            for context in contexts
        ]

    def _catch_up(self, contexts: Sequence[Context]) -> tuple[list[SecondRow], list[Context]]:
        """Rows over known tokens whose draft KV is missing, and the contexts that these bring to their end."""
        model = self._the_model()
        left = model.max_tokens
        rows: list[SecondRow] = []
        ready: list[Context] = []
        for context in contexts:
            state, blocks = self._states[context.slot], model.blocks(context.slot)
            known = len(context.token_ids)
            start = self._valid(state, context.token_ids, blocks)
            stop = min(known, len(blocks) * model.block_size, start + left)
            if stop <= start:
                continue
            left -= stop - start
            is_whole = stop == known and context.is_sampled
            if is_whole:
                ready.append(context)
            self._note(state, context.token_ids, blocks, start, stop)
            rows.append(
                SecondRow(context.seq_id, context.slot, start, stop - start, wants_guess=is_whole)
            )
        return rows, ready

    def _guess(self, rows: list[SecondRow], ready: list[Context]) -> dict[int, _Chain]:
        """The first pass over `rows`, then one pass for each further token of the sequences that have room."""
        model = self._the_model()
        chains = {context.slot: _Chain() for context in ready}
        depth = 0
        while rows:
            depth += 1
            for row, guess in zip(rows, model.run(rows), strict=True):
                if guess is not None:
                    chains[row.slot].add(guess)
            going = [c for c in ready if depth == len(chains[c.slot].token_ids) < c.room]
            rows = [row for c in going for row in self._next_row(c, chains[c.slot])]
        return chains

    def _next_row(self, context: Context, chain: _Chain) -> list[SecondRow]:
        """The newest draft, to be run where the sequence has a block for it."""
        model, prefix = self._the_model(), tuple(chain.token_ids)
        at = len(context.token_ids) + len(prefix) - 1
        blocks = model.blocks(context.slot)
        if at >= len(blocks) * model.block_size:
            return []
        self._states[context.slot].ahead = prefix
        self._contents[blocks[at // model.block_size]] = 0
        return [SecondRow(context.seq_id, context.slot, at, prefix=prefix)]

    def _valid(self, state: _State, known: Sequence[int], blocks: npt.NDArray[np.int32]) -> int:
        """How many known tokens have draft KV; the last one never counts, as a guess needs it to be run."""
        size = self._the_model().block_size
        if not state.is_begun:
            state.is_begun = True
            state.done = self._found(state, known, blocks)
            state.noted = state.done // size
        else:
            for token_id in state.ahead:  # drafts that were run and stood
                if state.done >= len(known) or known[state.done] != token_id:
                    break
                state.done += 1
            held = min(len(state.blocks), len(blocks))
            moved = np.flatnonzero(state.blocks[:held] != blocks[:held])
            whole = int(moved[0]) if len(moved) else held
            state.done = min(state.done, whole * size)
        state.ahead = ()
        return min(state.done, len(known) - 1)

    def _found(self, state: _State, known: Sequence[int], blocks: npt.NDArray[np.int32]) -> int:
        """Tokens at the beginning whose draft KV another sequence, or this one before, has left in these blocks."""
        size = self._the_model().block_size
        whole = min((len(known) - 1) // size, len(blocks))
        for number in range(whole):
            if self._contents[blocks[number]] != state.content(known, number, size):
                return number * size
        return whole * size

    def _note(
        self,
        state: _State,
        known: Sequence[int],
        blocks: npt.NDArray[np.int32],
        start: int,
        stop: int,
    ) -> None:
        """Tokens [start, stop) will be run: what their blocks hold from then on."""
        size = self._the_model().block_size
        for number in range(min(state.noted, start // size), -(-stop // size)):
            is_whole = (number + 1) * size <= stop
            self._contents[blocks[number]] = state.content(known, number, size) if is_whole else 0
        state.done, state.noted = stop, stop // size
        state.blocks = blocks.copy()

    def _the_model(self) -> SecondModel:
        assert self._model is not None, "not started"
        return self._model


@dataclass(slots=True)
class _State:
    """How far the draft model has come with one sequence."""

    is_begun: bool = False
    done: int = 0  # known tokens with draft KV
    noted: int = 0  # whole blocks of them that are known by their content
    ahead: tuple[int, ...] = ()  # drafts that were run after them
    blocks: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    chain: list[int] = field(default_factory=list)  # hashes of whole blocks

    def content(self, known: Sequence[int], number: int, size: int) -> int:
        """What the block of that number stands for, with all before it; never 0."""
        while len(self.chain) <= number:
            at = len(self.chain) * size
            before = self.chain[-1] if self.chain else 0
            self.chain.append(hash((before, *known[at : at + size])) or 1)
        return self.chain[number]


@dataclass(slots=True)
class _Chain:
    """A draft in the making."""

    token_ids: list[int] = field(default_factory=list)
    guesses: list[Guess] = field(default_factory=list)

    def add(self, guess: Guess) -> None:
        self.token_ids.append(guess.token_id)
        self.guesses.append(guess)

    def draft(self) -> Draft:
        distributions = tuple(
            guess.distribution for guess in self.guesses if guess.distribution is not None
        )
        return Draft(tuple(self.token_ids), distributions)
