"""What a logits processor and a truncation must answer.

Both keep what they need per slot: `add` is called when a sequence takes the slot (again after a preemption, then with
its outputs so far) and says whether there is anything to do for it; `append` brings its accepted tokens; `remove` frees
the slot. A processor is asked only about slots for which `add` said yes, and a step in which no such slot takes part
does not call it at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from nonet.core.step import NewSequence
from nonet.sampling.ranking import Ranking

__all__ = ["LogitsProcessor", "ProcessorRow", "Truncation"]


@dataclass(frozen=True, slots=True)
class ProcessorRow:
    """One row of logits that a processor acts on.

    `index` is its place in the batch, `position` the logical position of the token being chosen, `draft_prefix` the
    drafted tokens between the known ones and this row.
    """

    index: int
    slot: int
    position: int
    draft_prefix: tuple[int, ...]


class LogitsProcessor(Protocol):
    """Changes logits before the ranking is made.

    `reads_tokens`: what `apply` does depends on the tokens that `append` brings. A step is then sampled from only once
    the tokens of the step before it are on the host, while its forward pass already runs.
    """

    @property
    def reads_tokens(self) -> bool: ...

    def add(self, slot: int, sequence: NewSequence) -> bool:
        """Take note of a sequence; False when it asks for nothing here (then nothing is kept)."""
        ...

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """The sequence in `slot` grew by these accepted tokens."""
        ...

    def remove(self, slot: int) -> None:
        """The sequence in `slot` is gone."""
        ...

    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> Mapping[int, str] | None:
        """Change these rows of logits [R, V] (float32) in place and leave all others as they are.

        May say why rows, by `index`, were left without any token; each such row fails with that sentence.
        """
        ...


class Truncation(Protocol):
    """Keeps a beginning of each row's ranking."""

    def add(self, slot: int, sequence: NewSequence) -> bool:
        """Take note of a sequence; False when it keeps all tokens."""
        ...

    def remove(self, slot: int) -> None:
        """The sequence in `slot` is gone."""
        ...

    def keep(self, ranking: Ranking, kept: torch.Tensor, slots: Sequence[int]) -> torch.Tensor:
        """How many tokens [R] (int64, at least 1) stay of the first `kept` [R]; `slots` holds each row's slot.

        Rows whose slot was not added keep `kept`. Where the answer reaches the ranking's depth without covering the
        vocabulary, the caller ranks deeper and asks again.
        """
        ...
