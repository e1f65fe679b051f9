"""Grammar: tokens that the output's grammar forbids get -inf.

Idea: a matcher per sequence knows which tokens may follow. For a row with drafted tokens before it the matcher is moved
over them, asked, and moved back, so the mask is that of the text as it would stand. All rows' masks are filled into one
block of bits, in parallel, and reach the device in one copy. Accepted tokens are only noted when they come and taken
when the next masks are made: on a GPU the forward pass runs meanwhile. An output that is to finish in time is asked now
and then how long its quickest end is; where that no longer fits, the tokens of that end are all that is legal.
Reference: arXiv 2411.15100 (masks, speculation), github.com/guidance-ai/llguidance.
Cost: about 50 microseconds of host time per row and step, and a pass over the masked rows.
Good for: answers that a program reads.
Conflicts: none.

Shapes: R rows, V vocabulary, W words of 32 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from nonet.core.errors import InvalidRequestError
from nonet.core.step import NewSequence
from nonet.grammar.base import GrammarCompiler, Masks, Matcher, num_words
from nonet.sampling.processors.base import ProcessorRow
from nonet.sampling.upload import upload

__all__ = ["GrammarMask"]

_ANYTHING = -1  # all bits of a word
_EVERY = 16  # tokens after which an output that must finish in time is looked at again
_SPARE = 64  # tokens kept for what is begun between two looks, where max_tokens has them


class GrammarMask:
    """Applies `params.grammar`. Must come after everything that could raise a logit from -inf; nothing here does."""

    reads_tokens = True

    def __init__(self, vocab_size: int, compiler: GrammarCompiler) -> None:
        self._vocab_size = vocab_size
        self._compiler = compiler
        self._places: dict[int, _Place] = {}
        self._masks: Masks = np.zeros((0, num_words(vocab_size)), np.int32)

    def add(self, slot: int, sequence: NewSequence) -> bool:
        grammar = sequence.params.grammar
        if grammar is None:
            return False
        outputs = sequence.token_ids[sequence.num_prompt :]
        try:
            matcher = self._compiler.start(grammar)
        except InvalidRequestError as error:  # a row's failure, not the step's
            self._places[slot] = _Place(_Stuck(str(error)))
            return True
        params = sequence.params
        left = params.max_tokens if params.finish_in_time else None
        place = self._places[slot] = _Place(matcher, left, _spare(left), pending=list(outputs))
        place.look()
        return True

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        self._places[slot].pending += token_ids

    def remove(self, slot: int) -> None:
        self._places.pop(slot, None)

    def apply(self, logits: torch.Tensor, rows: Sequence[ProcessorRow]) -> dict[int, str]:
        masks = self._filled(rows)
        faults = self._faults(rows, masks)
        _forbid(logits, [row.index for row in rows], masks)
        return faults

    def _filled(self, rows: Sequence[ProcessorRow]) -> Masks:
        """Legal tokens [R, W] of each row; everything, for a row whose drafts are not legal themselves."""
        if len(self._masks) < len(rows):
            self._masks = np.zeros((len(rows), self._masks.shape[1]), np.int32)
        masks = self._masks[: len(rows)]
        walks = self._walks(rows)
        while walks:
            at_work = [walk for walk in walks if walk.move()]
            reached = [(walk.place.matcher, walk.number) for walk in at_work if walk.is_legal]
            if reached:
                self._compiler.fill(reached, masks)
            for walk in at_work:
                if not walk.is_legal:
                    masks[walk.number] = _ANYTHING
                elif walk.is_closing:
                    _keep_soonest(walk.place.matcher, masks[walk.number])
            walks = at_work
        return masks

    def _walks(self, rows: Sequence[ProcessorRow]) -> list[_Walk]:
        by_slot: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        for number, row in enumerate(rows):
            by_slot.setdefault(row.slot, []).append((row.draft_prefix, number))
        return [_Walk(self._places[slot], stops) for slot, stops in by_slot.items()]

    def _faults(self, rows: Sequence[ProcessorRow], masks: Masks) -> dict[int, str]:
        """Why rows, by their place in the batch, can have no token; their masks are emptied."""
        faults: dict[int, str] = {}
        has_any: list[bool] = np.any(masks, axis=1).tolist()
        for number, row in enumerate(rows):
            place = self._places[row.slot]
            error = place.error or place.matcher.error
            if error is None and not has_any[number]:
                error = "no token can follow"
            if error is not None:
                masks[number] = 0
                faults[row.index] = f"the grammar cannot go on at position {row.position}: {error}"
        return faults


@dataclass(slots=True)
class _Place:
    """One sequence's matcher; `pending` are accepted tokens that it has not taken yet.

    `left` is how many tokens the output may still have where it must finish in time, else None. `is_closing` says that
    it is on its quickest way to the end. Both follow from the text alone: drafts and preemptions change nothing.
    """

    matcher: Matcher
    left: int | None = None
    spare: int = 0
    is_closing: bool = False
    pending: list[int] = field(default_factory=list)
    error: str | None = None

    def catch_up(self) -> None:
        for token_id in self.pending:
            if self.error is None and not self.matcher.advance(token_id):
                self.error = f"token {token_id} was taken although the grammar forbids it"
            self.count(1)
            self.look()
        self.pending.clear()

    def count(self, num_tokens: int) -> None:
        if self.left is not None:
            self.left -= num_tokens

    def look(self) -> None:
        """Settle, where the matcher stands, whether it is time to close."""
        if self.left is None or self.is_closing or self.error is not None:
            return
        if self.left % _EVERY == 0 or self.left < _EVERY:
            number = self.matcher.tokens_to_end(self.left)
            self.is_closing = number is not None and number > self.left - self.spare


@dataclass(frozen=True, slots=True)
class _Stuck:
    """Stands for a matcher that could not be had."""

    error: str

    def advance(self, token_id: int) -> bool:
        return False

    def rollback(self, num_tokens: int) -> None:
        """It never moved."""

    def tokens_to_end(self, most: int) -> int | None:
        return None

    def soonest(self, legal: Masks) -> int | None:
        return None


class _Walk:
    """Moves one matcher along the draft prefixes of its rows, and at the end back to where it was.

    `stops` are (prefix, row number). In the order of prefixes each step only undoes what the next one does not share.
    """

    def __init__(self, place: _Place, stops: list[tuple[tuple[int, ...], int]]) -> None:
        self.place = place
        self.number = -1
        self.is_legal = False
        self._stops = sorted(stops, reverse=True)
        self._taken: list[int] = []  # drafts that the matcher has taken
        place.catch_up()
        self._was_closing = [place.is_closing]  # before each of them, and now

    @property
    def is_closing(self) -> bool:
        return self.place.is_closing

    def move(self) -> bool:
        """To the next row; False when there is none left, and then the matcher stands where the accepted tokens end."""
        if not self._stops:
            self._undo_to(0)
            return False
        prefix, self.number = self._stops.pop()
        shared = 0
        while shared < min(len(prefix), len(self._taken)) and prefix[shared] == self._taken[shared]:
            shared += 1
        self._undo_to(shared)
        self.is_legal = self.place.error is None and self.place.matcher.error is None
        for token_id in prefix[shared:]:
            if not self.place.matcher.advance(token_id):
                self.is_legal = False
                break
            self._taken.append(token_id)
            self.place.count(1)
            self.place.look()
            self._was_closing.append(self.place.is_closing)
        return True

    def _undo_to(self, length: int) -> None:
        if len(self._taken) > length:
            self.place.matcher.rollback(len(self._taken) - length)
            self.place.count(length - len(self._taken))
            del self._taken[length:], self._was_closing[length + 1 :]
            self.place.is_closing = self._was_closing[-1]


def _spare(num_tokens: int | None) -> int:
    """Tokens kept for what may be begun between two looks: an eighth of a short output, and never less than a look."""
    return 0 if num_tokens is None else max(_EVERY, min(_SPARE, num_tokens // 8))


def _keep_soonest(matcher: Matcher, legal: Masks) -> None:
    """Of a row's legal tokens [W] leave the one that leads to the end."""
    token_id = matcher.soonest(legal)
    if token_id is not None:
        legal.fill(0)
        legal.view(np.uint32)[token_id // 32] = 1 << token_id % 32


def _forbid(logits: torch.Tensor, lines: list[int], masks: Masks) -> None:
    """-inf for the tokens of rows `lines` of logits [., V] whose bit in masks [R, W] is not set."""
    forbidden = _forbidden(masks, logits.shape[1], logits.device)
    first = lines[0]
    if lines == list(range(first, first + len(lines))):
        logits[first : first + len(lines)].masked_fill_(forbidden, float("-inf"))
        return
    at = upload(lines, logits.device)
    logits.index_copy_(0, at, logits[at].masked_fill_(forbidden, float("-inf")))


def _forbidden(masks: Masks, vocab_size: int, device: torch.device) -> torch.Tensor:
    """The bits [R, W] as booleans [R, V], turned round; unpacked where they are used."""
    if device.type == "cpu":
        bits = np.unpackbits(~masks.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    words = torch.from_numpy(masks.copy()).pin_memory().to(device, non_blocking=True)
    shifts = torch.arange(32, dtype=torch.int32, device=device)
    spread = (words[:, :, None] >> shifts) & 1
    return spread.view(len(words), -1)[:, :vocab_size] == 0
