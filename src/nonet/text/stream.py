"""Text of one choice as its tokens arrive: detokenisation, stop strings, and what each delivery is to be billed for.

The server and the offline `LLM` both use it, so streaming or not, the same tokens give the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nonet.core.outputs import FinishReason
from nonet.core.sampling_params import SamplingParams
from nonet.text.detokenize import Detokenizer
from nonet.text.stop import StopMatcher
from nonet.text.tokenizer import Tokenizer

__all__ = ["TextDelta", "TextStream"]


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What one delivery of tokens brought.

    `num_tokens` of the tokens count: those up to and including the one that completed a stop string, or all. The rest
    is overshoot, neither returned nor billed. `text_offsets` has an entry for each counted token: how many characters
    of the stream's text come before it.
    """

    text: str
    num_tokens: int
    stop_string: str | None = None
    text_offsets: list[int] = []


class TextStream:
    """One choice's text. After a stop string the stream is finished: abort the sequence, later tokens change nothing.

    >>> stream = TextStream(tokenizer, SamplingParams(stop=["\\n"]))  # doctest: +SKIP
    >>> stream.feed(tokenizer.encode("one\\ntwo", add_special=False))  # doctest: +SKIP
    TextDelta(text='one', num_tokens=2, stop_string='\\n', text_offsets=[0, 3])
    """

    __slots__ = ("_detokenizer", "_is_finished", "_matcher", "_num_chars", "_num_tokens", "_params")

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, text_offset: int = 0) -> None:
        """`text_offset` is where the text begins, for a completion that echoes its prompt."""
        self._params = params
        self._detokenizer = Detokenizer(tokenizer, params.skip_special_tokens)
        self._matcher = (
            StopMatcher(params.stop, params.include_stop_str_in_output) if params.stop else None
        )
        self._num_tokens = 0
        self._num_chars = text_offset
        self._is_finished = False

    @property
    def num_tokens(self) -> int:
        """Tokens counted so far."""
        return self._num_tokens

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def feed(
        self,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None = None,
        stop_token_id: int | None = None,
    ) -> TextDelta:
        """The text that is certain after these tokens; with a `finish_reason`, all that is left.

        `stop_token_id` is the token that ended the sequence. As the last of `token_ids` it counts, but shows only
        with `include_stop_str_in_output`.
        """
        if self._is_finished:
            return TextDelta(text="", num_tokens=0)
        pieces: list[str] = []
        offsets: list[int] = []
        hides_last = (
            finish_reason == "stop"
            and stop_token_id is not None
            and bool(token_ids)
            and token_ids[-1] == stop_token_id
            and not self._params.include_stop_str_in_output
        )
        last = len(token_ids) - 1
        for index, token_id in enumerate(token_ids):
            offsets.append(self._num_chars)
            self._num_tokens += 1
            if hides_last and index == last:
                break
            stop = self._add(self._detokenizer.feed_token(token_id), pieces)
            if stop is not None:
                return self._end(pieces, offsets, stop)
        if finish_reason is None:
            return TextDelta(text="".join(pieces), num_tokens=len(offsets), text_offsets=offsets)
        stop = self._add(self._detokenizer.finish(), pieces)
        if stop is None and self._matcher is not None:
            pieces.append(self._matcher.finish())
        return self._end(pieces, offsets, stop)

    def _add(self, text: str, pieces: list[str]) -> str | None:
        """Append what of `text` may be shown; the stop string that it completed."""
        self._num_chars += len(text)
        if self._matcher is None:
            pieces.append(text)
            return None
        found = self._matcher.feed(text, may_stop=self._num_tokens >= self._params.min_tokens)
        pieces.append(found.text)
        return found.stop

    def _end(self, pieces: list[str], offsets: list[int], stop: str | None) -> TextDelta:
        self._is_finished = True
        return TextDelta(
            text="".join(pieces), num_tokens=len(offsets), stop_string=stop, text_offsets=offsets
        )
