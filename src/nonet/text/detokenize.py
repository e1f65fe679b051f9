"""Token ids to text as they arrive, never splitting a character.

A token may end in the middle of a UTF-8 sequence. Its bytes then wait for the rest; U+FFFD is written only once it is
certain that the bytes can become no character. Each token is looked at once, so a stream costs the same per token
however long it gets.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from nonet.text.tokenizer import Tokenizer

__all__ = ["Detokenizer"]


class Detokenizer:
    """The text of one stream of tokens that continues a prompt.

    The joined results of `feed` and `finish` do not depend on how the ids were cut into calls. They equal
    `tokenizer.decode(all_ids)`, but for vocabularies that put a space in front of a text: that space is kept here,
    because it separates the output from the prompt.

    >>> stream = Detokenizer(tokenizer)  # doctest: +SKIP
    >>> "".join(stream.feed([i]) for i in ids) + stream.finish()  # doctest: +SKIP
    'naïve 🙂'
    """

    __slots__ = ("_decode", "_skipped", "_token_bytes")

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, ids: Iterable[int]) -> str:
        """The text that became certain with these tokens."""
        return self._decode(b"".join([self._token_bytes(i) for i in ids if i not in self._skipped]))

    def feed_token(self, token_id: int) -> str:
        """`feed` for one token, for callers that need to know which token brought which text."""
        return "" if token_id in self._skipped else self._decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """What waits for bytes that will not come: nothing, or one U+FFFD. Call it once, at the end."""
        return self._decode(b"", True)
