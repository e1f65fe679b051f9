"""What the tests of proposers share."""

from __future__ import annotations

from collections.abc import Sequence

from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.speculate.base import Context


def sequence(token_ids: Sequence[int] = (1,)) -> NewSequence:
    params = SamplingParams(temperature=0.0)
    return NewSequence(
        seq_id=1, token_ids=list(token_ids), num_prompt=len(token_ids), params=params, seed=0
    )


def context(
    known: Sequence[int],
    *,
    room: int = 100,
    slot: int = 0,
    is_sampled: bool = True,
    is_late: bool = False,
) -> Context:
    """The sequence in `slot`, whose id is 10 more."""
    return Context(slot + 10, slot, known, is_sampled, room, is_late)
