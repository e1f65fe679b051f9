"""What a loaded tokenizer file amounts to, whichever format it came in; `Tokenizer` is built from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import tokenizers

__all__ = ["Spelling", "Vocabulary", "byte_level_alphabet"]


class Spelling(Enum):
    """How the strings in the vocabulary stand for bytes."""

    BYTE_LEVEL = "byte_level"  # each character of a token stands for one byte (GPT-2's alphabet)
    SENTENCEPIECE = (
        "sentencepiece"  # UTF-8 text with U+2581 for a space, and <0xNN> for single bytes
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The parts of a tokenizer.

    `size` counts ids up to the last one in use. `silent_ids` hold a place in the model's matrices but stand for no
    text. `strips_prefix_space` says that a whole text begins with a space that was not in it.
    """

    backend: tokenizers.Tokenizer
    spelling: Spelling
    size: int
    special_ids: frozenset[int]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    silent_ids: frozenset[int] = frozenset()
    strips_prefix_space: bool = False
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(
        default_factory=dict
    )  # "bos_token" -> "<s>", as templates name them


def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte in byte-level vocabularies.

    Bytes that print as one visible Latin-1 character stand for themselves; the others, in rising order, are U+0100
    and up, so that no token holds a space or a control character.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if chr(byte) not in alphabet]
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(hidden)})
    return alphabet
