"""A tokenizer as llguidance wants to see it: every token's exact bytes, and which ids are special."""

from __future__ import annotations

from collections.abc import Sequence

from nonet.text.tokenizer import Tokenizer

__all__ = ["TokenBytes"]

_SPECIAL = b"\xff"  # llguidance's mark of special tokens; no UTF-8 text holds this byte
_SENTINEL = "\x02"


class TokenBytes:
    """Answers llguidance's questions; the names of the attributes are theirs.

    `vocab_size` is that of the logits: ids beyond the tokenizer's last stand for nothing and are never legal.
    """

    is_tokenizer_wrapper = True
    bos_token_id: int | None = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        special = {i for i in (*tokenizer.special_ids, *eos_ids) if i < vocab_size}
        self.special_token_ids: list[int] = sorted(special)
        self.eos_token_id: int = eos_ids[0]
        self.tokens: list[bytes] = [
            _plain(tokenizer.token_bytes(i), i in special) for i in range(vocab_size)
        ]
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(_SENTINEL, add_special=False, parse_special=False)
        self._longest = max(len(token) for token in self.tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens) if token and i not in special}

    def __call__(self, text: str) -> list[int]:
        """Ids of a text that continues another: how the model would write what a grammar forces.

        Encoded behind a sentinel, for tokenizers that treat the beginning of a text in their own way. Where that does
        not give back the same bytes (a normaliser changed them), the longest token that fits, again and again.
        """
        found = self._tokenizer.encode(_SENTINEL + text, add_special=False, parse_special=False)
        rest = found[len(self._before) :]
        wanted = text.encode()
        if found[: len(self._before)] == self._before and self._spell(rest) == wanted:
            return rest
        return self._greedy(wanted)

    def _spell(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._tokenizer.token_bytes(i) for i in ids)

    def _greedy(self, text: bytes) -> list[int]:
        ids: list[int] = []
        at = 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            size = next((n for n in sizes if text[at : at + n] in self._ids), 0)
            if not size:  # a byte that no token spells: llguidance falls back to its own search
                return ids
            ids.append(self._ids[text[at : at + size]])
            at += size
        return ids


def _plain(token: bytes, is_special: bool) -> bytes:
    """Bytes that begin with llguidance's own mark would be taken for a special token."""
    return b"" if token.startswith(_SPECIAL) and not is_special else token
