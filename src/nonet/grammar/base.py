"""What a grammar compiler must answer.

Legal tokens are one bit each, token 0 in the lowest bit of the first word, in rows of `num_words` 32-bit words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from nonet.core.grammar import Grammar

__all__ = ["GrammarCompiler", "Masks", "Matcher", "num_words"]

Masks: TypeAlias = npt.NDArray[np.int32]


class Matcher(Protocol):
    """Where one output stands in its grammar. Not thread-safe."""

    @property
    def error(self) -> str | None:
        """Why the matcher can go no further (a limit was passed); it then stays so."""
        ...

    def advance(self, token_id: int) -> bool:
        """Take one token; False, and nothing changes, when the grammar forbids it here."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Undo the last tokens that were taken."""
        ...

    def tokens_to_end(self, most: int) -> int | None:
        """How many tokens the quickest way to the end has that was found, the end among them; None for over `most`.

        Nothing changes. The answer, and that of `soonest`, depends on the text so far alone.
        """
        ...

    def soonest(self, legal: Masks) -> int | None:
        """The next token on that way; `legal` is what `fill` wrote, a row [words]. None where no way was found."""
        ...


class GrammarCompiler(Protocol):
    """Compiles grammars for one vocabulary and keeps what it compiled. All methods may be called from any thread."""

    def load(self) -> None:
        """Read the vocabulary, if that was not done yet; may take seconds."""
        ...

    def is_compiled(self, grammar: Grammar) -> bool:
        """Whether `start` would return at once."""
        ...

    def compile(self, grammar: Grammar) -> None:
        """Get ready for `start`; may take long. InvalidRequestError when the grammar is wrong or beyond a limit."""
        ...

    def start(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of an output; compiles first where that was not done or was forgotten."""
        ...

    def fill(self, wanted: Sequence[tuple[Matcher, int]], masks: Masks) -> None:
        """For each matcher of this compiler write the tokens that are legal next into the row of masks [R, words].

        No matcher may be in `wanted` twice. A matcher that has an `error` afterwards leaves its row undefined.
        """
        ...


def num_words(vocab_size: int) -> int:
    """Words of one row.

    >>> num_words(33)
    2
    """
    return -(-vocab_size // 32)
