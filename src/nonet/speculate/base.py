"""The seam: what might come next? A proposer guesses tokens; the next step verifies them.

A proposer declares what it needs and is given all of it before it is first asked, or the engine refuses to start. It
lives beside the runner and may hold state per sequence, which goes with the sequence: one that was preempted is added
again. Nothing it says can change what is generated, only how fast: guesses are verified against the target model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nonet.core.step import NewSequence
from nonet.speculate.cost import StepCost

__all__ = [
    "NO_DRAFT",
    "Context",
    "Distribution",
    "Draft",
    "Guess",
    "Needs",
    "Outcome",
    "Proposer",
    "SecondModel",
    "SecondRow",
    "Services",
    "no_gap",
]

# Probabilities over the vocabulary, as the sampler made them; only the sampler looks inside.
Distribution = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a proposer asks of the engine."""

    max_drafts: int  # most tokens it proposes for one sequence at a time
    lookahead_tokens: int = 0  # KV slots past a row's own tokens that it writes to while proposing
    model: str | None = None  # a second model to run beside the target, named as for --model
    weight_format: str = "auto"  # of that model
    step_costs: bool = False  # how long steps of the models take, measured at start
    pauses: bool = False  # it proposes for some steps only: `proposes_for` is asked each time


@dataclass(frozen=True, slots=True)
class Context:
    """One sequence of the step that has just been computed.

    `token_ids` are all known tokens, in the runner's own list: read only, and it grows later. `is_sampled` says that
    the step brought the last of them, so that the next step can verify drafts after it. `room` is the most drafts that
    are of use; 0 asks for nothing, not even for preparation. `is_late` says that the next step did not wait and has the
    sequence in it already: no draft can be used, and all there is to do is to learn.
    """

    seq_id: int
    slot: int
    token_ids: Sequence[int]
    is_sampled: bool
    room: int
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens, one after the other; the planner may keep fewer.

    `distributions` has one entry per token when tokens were drawn at random: exactly what each was drawn from. It is
    empty when they were certain. `likelihoods`, when given, are the proposer's own estimates that each token stands
    once those before it do.
    """

    token_ids: tuple[int, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    likelihoods: tuple[float, ...] = ()

    def cut(self, length: int) -> Draft:
        """The first `length` tokens."""
        if length >= len(self.token_ids):
            return self
        return Draft(
            self.token_ids[:length], self.distributions[:length], self.likelihoods[:length]
        )


NO_DRAFT = Draft()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of drafts that a step verified."""

    slot: int
    num_drafted: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class SecondRow:
    """What the second model runs of one sequence.

    With `num_known` above 0: known tokens [start, start + num_known). Otherwise the last of the drafts `prefix`, which
    stands at `start`. With `wants_guess` a token is drawn after it.
    """

    seq_id: int
    slot: int
    start: int
    num_known: int = 0
    prefix: tuple[int, ...] = ()
    wants_guess: bool = True


@dataclass(frozen=True, slots=True)
class Guess:
    """A token drawn as the target's sampler would draw it; `distribution` is None where it was certain."""

    token_id: int
    distribution: Distribution | None


class SecondModel(Protocol):
    """A model that runs on the target's sequences, in the target's blocks, with weights and KV memory of its own."""

    max_tokens: int  # of one run
    block_size: int
    num_blocks: int

    def blocks(self, slot: int) -> npt.NDArray[np.int32]:
        """Ids of the blocks that the sequence in `slot` holds now, in order; a view that the next step changes."""
        ...

    def run(self, rows: Sequence[SecondRow]) -> list[Guess | None]:
        """Compute these tokens and store their KV; None for a row that wants no guess or has no finite logits."""
        ...


def no_gap() -> float:
    """Seconds that the device waits for the host where no step runs ahead anyway."""
    return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the engine provides, as far as `Needs` asked for it.

    `gap_s` gives, as seen lately, the seconds from a step's results to the next step, in which the device idles where
    that step waits for drafts and works where it runs ahead; 0 where none can, or before anything was seen. The time
    of a second model is not in it.
    """

    target_cost: StepCost | None = None
    second_cost: StepCost | None = None
    second_model: SecondModel | None = None
    gap_s: Callable[[], float] = no_gap


class Proposer(Protocol):
    """Guesses tokens for sequences, which are known by their slot."""

    @property
    def needs(self) -> Needs: ...

    def start(self, services: Services) -> None:
        """Take what was asked for; called once, before everything else."""
        ...

    def add(self, slot: int, sequence: NewSequence) -> None:
        """A sequence takes the slot: a new one, or one that comes back after a preemption."""
        ...

    def remove(self, slot: int) -> None:
        """The sequence in `slot` is gone."""
        ...

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """What the step that was just computed made of the drafts in it; comes before `propose`."""
        ...

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        """One draft per context, in their order, empty where there is none; at most `room` tokens each."""
        ...

    def proposes_for(self, num_seqs: int) -> bool:
        """Whether drafts may come for a step in which so many sequences get their next token.

        Where none will, the step need not wait until the tokens before it are read. Asked of a proposer whose needs
        say that it `pauses`; of others it is taken for granted.
        """
        return True
