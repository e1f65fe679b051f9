"""Prompt lookup: what followed the last few tokens when they came before will follow them again.

Idea: find the longest earlier occurrence of the sequence's own ending, the latest of equally long ones, and propose
what came after it. Every prediction is later compared with the tokens that really came, whether it was verified or
not; so the chance that a match of a given length goes on being right is known, per sequence, without paying for wrong
drafts, and a draft states its chances.
Reference: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), which takes the first match; the
chains of earlier positions are those of LZ77 compressors.
Cost: a dictionary entry and a list entry per token, a few microseconds per step and sequence.
Good for: answers that repeat their input: edits of code or text, summaries, extraction.
Conflicts: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nonet.core.errors import ConfigError
from nonet.core.step import NewSequence
from nonet.speculate.base import NO_DRAFT, Context, Draft, Needs, Outcome, Proposer, Services

__all__ = ["EndingIndex", "PromptLookup"]


class PromptLookup(Proposer):
    """Proposes continuations of earlier occurrences; deterministic, so its drafts are certain."""

    @dataclass(frozen=True, slots=True)
    class Config:
        tokens: int = 16  # most tokens proposed at a time
        longest: int = 16  # matches are compared up to this length
        candidates: int = 16  # earlier occurrences looked at, latest first

        def __post_init__(self) -> None:
            for name in ("tokens", "candidates"):
                if getattr(self, name) < 1:
                    raise ConfigError(
                        f"prompt_lookup: {name} is {getattr(self, name)}; give at least 1"
                    )
            if self.longest < GRAM:
                raise ConfigError(
                    f"prompt_lookup: longest is {self.longest}; give at least {GRAM}, the shortest match"
                )

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or self.Config()
        self._shared = [list(pair) for pair in PRIORS]
        self._states: dict[int, _State] = {}

    @property
    def needs(self) -> Needs:
        return Needs(max_drafts=self._config.tokens)

    def start(self, services: Services) -> None:
        """Nothing was asked for."""

    def add(self, slot: int, sequence: NewSequence) -> None:
        self._states[slot] = _State(EndingIndex(self._config.longest, self._config.candidates))

    def remove(self, slot: int) -> None:
        self._states.pop(slot, None)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """The tokens themselves tell, in `propose`."""

    def propose(self, contexts: Sequence[Context]) -> list[Draft]:
        return [
            self._draft(context) if context.is_sampled and context.room else NO_DRAFT
            for context in contexts
        ]

    def _draft(self, context: Context) -> Draft:
        state, known = self._states[context.slot], context.token_ids
        self._learn(state, known)
        source, length = state.index.find(known)
        if not length:
            state.predicted = ()
            return NO_DRAFT
        state.predicted = _copy(known, source, self._config.tokens)
        state.predicted_at, state.match = len(known), length
        token_ids = state.predicted[: context.room]
        return Draft(token_ids, likelihoods=self._likelihoods(state, length, len(token_ids)))

    def _learn(self, state: _State, known: Sequence[int]) -> None:
        """Compare the last prediction with the tokens that came since, up to the first that differs."""
        for offset, guess in enumerate(state.predicted):
            position = state.predicted_at + offset
            if position >= len(known):
                break
            bucket = _bucket(state.match + offset)
            hit = guess == known[position]
            for counts, memory in ((state.counts, OWN_MEMORY), (self._shared, SHARED_MEMORY)):
                pair = counts[bucket]
                pair[0] = pair[0] * memory + hit
                pair[1] = pair[1] * memory + 1.0
            if not hit:
                break

    def _likelihoods(self, state: _State, length: int, count: int) -> tuple[float, ...]:
        """Once a token of a draft stands, the match is longer by one."""
        table = []
        for own, shared in zip(state.counts, self._shared, strict=True):
            usual = shared[0] / shared[1]
            table.append((own[0] + OWN_WEIGHT * usual) / (own[1] + OWN_WEIGHT))
        return tuple(table[_bucket(length + offset)] for offset in range(count))


class EndingIndex:
    """Finds earlier occurrences of a growing sequence's ending.

    Positions that end the same two tokens are chained, latest first. A position enters when a token follows it.

    >>> index = EndingIndex(longest=16, candidates=16)
    >>> index.find([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3])  # the later of two occurrences of 1, 2, 3
    (7, 3)
    """

    def __init__(self, longest: int, candidates: int) -> None:
        self._longest = longest
        self._candidates = candidates
        self._latest: dict[tuple[int, int], int] = {}  # two tokens -> the position after them
        self._earlier: list[int] = [0, 0]  # position -> the one before it in its chain, 0 for none

    def find(self, known: Sequence[int]) -> tuple[int, int]:
        """(position of the token that followed, length of the match), or (0, 0)."""
        self._extend(known)
        if len(known) < GRAM:
            return 0, 0
        place = self._latest.get((known[-2], known[-1]), 0)
        best, best_length, left = 0, 0, self._candidates
        while place and left:
            length = self._length(known, place)
            if length > best_length:
                best, best_length = place, length
                if length == self._longest:
                    break
            place = self._earlier[place]
            left -= 1
        return best, best_length

    def _extend(self, known: Sequence[int]) -> None:
        """Enter every position with a token at it, so never the sequence's own end."""
        latest, earlier = self._latest, self._earlier
        for place in range(len(earlier), len(known)):
            gram = (known[place - 2], known[place - 1])
            earlier.append(latest.get(gram, 0))
            latest[gram] = place

    def _length(self, known: Sequence[int], place: int) -> int:
        """How many tokens before `place` equal the sequence's last ones; the last two are known to."""
        end, length = len(known), GRAM
        most = min(self._longest, place)
        while length < most and known[place - 1 - length] == known[end - 1 - length]:
            length += 1
        return length


GRAM = 2  # the shortest match
BUCKETS = (2, 3, 5, 8, 15)  # match lengths up to each, and those above, are told apart
# Hits and trials by match length before anything was seen: what a few hundred tokens of chat and edits show.
PRIORS = ((6.0, 30.0), (10.0, 25.0), (12.0, 20.0), (14.0, 18.0), (16.0, 18.0), (19.0, 20.0))
SHARED_MEMORY = 0.998  # a sequence's neighbours are remembered for about 500 predictions,
OWN_MEMORY = 0.95  # its own last predictions for about 20,
OWN_WEIGHT = 4.0  # and what is usual counts like so many of them


@dataclass(slots=True)
class _State:
    """One sequence: its index, and the last prediction made for it."""

    index: EndingIndex
    predicted: tuple[int, ...] = ()
    predicted_at: int = 0
    match: int = 0
    counts: list[list[float]] = field(default_factory=lambda: [[0.0, 0.0] for _ in PRIORS])


def _bucket(length: int) -> int:
    for number, most in enumerate(BUCKETS):
        if length <= most:
            return number
    return len(BUCKETS)


def _copy(known: Sequence[int], source: int, count: int) -> tuple[int, ...]:
    """`count` tokens from `source` on; where they run over the end, they go on with themselves."""
    copied = list(known[source : source + count])
    period = len(known) - source
    while len(copied) < count:
        copied.append(copied[len(copied) - period])
    return tuple(copied)
