"""Text to token ids and back, for a Hugging Face directory or a GGUF file alike.

Encoding is done by the `tokenizers` library. Decoding is done here, from the exact bytes that each token stands for:
that makes decoding a stream token by token the same as decoding it at once, which the library's own decoders are not.
The two agree on every text that was encoded; they differ only on ids whose bytes are no valid UTF-8, where this module
writes U+FFFD once for each ill-formed sequence, as Python and WHATWG do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from nonet.core.errors import InvalidRequestError, ModelFileError
from nonet.core.gguf import GGUFFile
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.hf_vocab import vocabulary_from_directory
from nonet.text.vocabulary import Spelling, Vocabulary, byte_level_alphabet

__all__ = ["Tokenizer", "load_tokenizer"]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory (tokenizer.json) or of a GGUF file."""
    if path.is_dir():
        return Tokenizer(vocabulary_from_directory(path))
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give a model directory or a GGUF file")
    with GGUFFile.open(path) as file:
        return Tokenizer(vocabulary_from_gguf(file.metadata))


class Tokenizer:
    """Immutable, and safe to share between threads.

    >>> tokenizer = load_tokenizer(path)  # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("naïve 🙂"))  # doctest: +SKIP
    'naïve 🙂'
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocab_size: int = vocabulary.size
        self.special_ids: frozenset[int] = vocabulary.special_ids
        self.bos_id: int | None = vocabulary.bos_id
        self.eos_ids: tuple[int, ...] = vocabulary.eos_ids
        self.chat_template: str | None = vocabulary.chat_template
        self.special_tokens: Mapping[str, str] = vocabulary.special_tokens
        self._backend = vocabulary.backend
        self._strips_prefix_space = vocabulary.strips_prefix_space
        self._spelling = vocabulary.spelling
        self._alphabet = byte_level_alphabet()
        self._cut_out = {
            token_id: token.content.encode()
            for token_id, token in vocabulary.backend.get_added_tokens_decoder().items()
        }
        # Filled as tokens are seen. Two threads may fill one entry at once; both write the same bytes.
        self._bytes: list[bytes | None] = [None] * vocabulary.size
        for token_id in vocabulary.silent_ids:
            self._bytes[token_id] = b""

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_special` puts begin and end of sequence around it where the model wants them; text from a chat template
        has them already. With `parse_special` off, the names of control tokens in `text` are ordinary characters.
        """
        return self.encode_batch([text], add_special, parse_special)[0]

    def encode_batch(
        self, texts: Sequence[str], add_special: bool = True, parse_special: bool = True
    ) -> list[list[int]]:
        """Token ids of each text, computed on all cores; the interpreter is free meanwhile."""
        backend = self._backend if parse_special else self._raw_text_backend
        try:
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=add_special)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError(_unencodable(texts, error)) from None
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of a whole sequence of ids; a space that encoding put in front is taken away again.

        For text that continues other text, as outputs continue prompts, use `Detokenizer`.
        """
        skipped = self.special_ids if skip_special else frozenset()
        text = b"".join([self.token_bytes(i) for i in ids if i not in skipped]).decode(
            "utf-8", "replace"
        )
        return text.removeprefix(" ") if self._strips_prefix_space else text

    def token_bytes(self, token_id: int) -> bytes:
        """Exactly the bytes the token adds to a text: its name for a control token, b"" for an id without a token."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        known = self._bytes[token_id]
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """The token alone as text, for reports; U+FFFD stands for bytes that are part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    @cached_property
    def _raw_text_backend(self) -> tokenizers.Tokenizer:
        return _reading_special_as_text(self._backend)

    def _spell(self, token_id: int) -> bytes:
        literal = self._cut_out.get(token_id)
        if literal is not None:
            return literal
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._spelling is Spelling.SENTENCEPIECE:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                return bytes.fromhex(token[3:5])
            return token.replace("▁", " ").encode()
        try:
            return bytes([self._alphabet[char] for char in token])
        except KeyError:
            return token.encode()


def _reading_special_as_text(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A second tokenizer over the same model that reads control tokens as text.

    The library has this as a switch on the tokenizer, which threads would fight over. The model is shared between the
    two, so the twin costs little.
    """
    twin = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        twin.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        twin.pre_tokenizer = backend.pre_tokenizer
    if backend.post_processor is not None:
        twin.post_processor = backend.post_processor
    added = backend.get_added_tokens_decoder()
    twin.add_tokens([added[token_id] for token_id in sorted(added)])
    if (
        twin.get_added_tokens_decoder().keys() != added.keys()
    ):  # ids outside the model with gaps between them
        twin = tokenizers.Tokenizer.from_str(backend.to_str())
    twin.encode_special_tokens = True
    return twin


def _unencodable(texts: Sequence[str], error: Exception) -> str:
    for text in texts:
        if any("\ud800" <= char <= "\udfff" for char in text):
            return "the text holds half of a surrogate pair (U+D800 to U+DFFF), which is no character; remove it"
    return f"the text cannot be encoded: {error}"
