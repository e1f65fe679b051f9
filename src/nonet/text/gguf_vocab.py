"""A `Vocabulary` from the metadata of a GGUF file, which holds token lists but no ready-made tokenizer.

Two kinds exist. `gpt2` is byte-level BPE: merges are in the file, the pre-tokenizer is named (`pre_tokenizers`).
`llama` is SentencePiece BPE: tokens carry scores, and the best-scored neighbours are joined first; here the scores are
turned into the equivalent list of merges. Tokens of the kind "user defined" (Gemma's runs of spaces and newlines, HTML
tags) are cut out of the text before anything is merged, as SentencePiece and llama.cpp do.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.core.gguf import MetadataValue
from nonet.text.pre_tokenizers import PreTokenizer, pre_tokenizer
from nonet.text.vocabulary import Spelling, Vocabulary

__all__ = ["vocabulary_from_gguf"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

# Control tokens that end a model's turn. Chat models stop at several of them, and the file names only one as its end
# of sequence.
_ENDS_OF_TURN = frozenset(
    {
        "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
        "<|end_of_turn|>", "<｜end▁of▁sentence｜>", "<|return|>", "<|call|>",
    }
)  # fmt: skip


def vocabulary_from_gguf(metadata: Mapping[str, MetadataValue]) -> Vocabulary:
    """The file's vocabulary. Raises UnsupportedModelError for a kind of tokenizer that nonet lacks."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(
            f"the file's tokenizer is of kind {kind!r} (tokenizer.ggml.model). Known: gpt2 (byte-level BPE), "
            "llama (SentencePiece BPE)"
        )
    fields = _Fields(metadata)
    tokens, kinds = fields.tokens(), fields.kinds()
    with _collector_paused():
        if kind == "gpt2":
            rules = pre_tokenizer(fields.pre())
            backend, spelling, add_bos = (
                _byte_level(fields, tokens, rules),
                Spelling.BYTE_LEVEL,
                rules.add_bos,
            )
        else:
            backend, spelling, add_bos = (
                _sentencepiece(fields, tokens, kinds),
                Spelling.SENTENCEPIECE,
                True,
            )
        _add_cut_out_tokens(backend, tokens, kinds)
    _frame(backend, fields, tokens, add_bos)
    special = frozenset(i for i, k in enumerate(kinds) if k in (_CONTROL, _UNKNOWN))
    return Vocabulary(
        backend=backend,
        spelling=spelling,
        size=len(tokens),
        special_ids=special,
        silent_ids=frozenset(i for i, k in enumerate(kinds) if k == _UNUSED),
        bos_id=fields.token_id("bos_token_id"),
        eos_ids=_eos_ids(fields, tokens, kinds),
        strips_prefix_space=kind == "llama" and fields.flag("add_space_prefix", True),
        chat_template=fields.chat_template(),
        special_tokens=_special_tokens(fields, tokens),
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No cyclic garbage collection meanwhile: it would walk half a million new tuples, none of them in a cycle."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Fields:
    """Typed, checked access to the `tokenizer.*` metadata; a wrong type or size is a ModelFileError."""

    def __init__(self, metadata: Mapping[str, MetadataValue]) -> None:
        self._metadata = metadata
        self._num_tokens = len(self._list("tokens", str))

    def tokens(self) -> list[str]:
        """Token strings by id; an empty one gets a name of its own, so that ids and strings stay one to one."""
        tokens = [
            token or f"[EMPTY_{index}]"
            for index, token in enumerate(cast("list[str]", self._list("tokens", str)))
        ]
        if len(set(tokens)) != len(tokens):
            raise ModelFileError("tokenizer.ggml.tokens lists a token twice")
        return tokens

    def kinds(self) -> list[int]:
        if "tokenizer.ggml.token_type" not in self._metadata:
            return [_NORMAL] * self._num_tokens
        return cast("list[int]", self._per_token("token_type", int))

    def scores(self) -> list[float]:
        return cast("list[float]", self._per_token("scores", float))

    def merges(self) -> list[tuple[str, str]]:
        merges = []
        for merge in cast("list[str]", self._list("merges", str)):
            left, space, right = merge.partition(" ")
            if not (left and space and right):
                raise ModelFileError(
                    f"tokenizer.ggml.merges holds {merge!r}, which is not two tokens"
                )
            merges.append((left, right))
        return merges

    def pre(self) -> str:
        return self._text("tokenizer.ggml.pre") or "default"

    def chat_template(self) -> str | None:
        return self._text("tokenizer.chat_template")

    def flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, bool):
            raise ModelFileError(f"tokenizer.ggml.{name} is {value!r}; true or false is expected")
        return value

    def token_id(self, name: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value is None:
            return None
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not 0 <= value < self._num_tokens
        ):
            raise ModelFileError(
                f"tokenizer.ggml.{name} is {value!r}; the vocabulary has ids 0 to {self._num_tokens - 1}"
            )
        return value

    def _text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise ModelFileError(f"{key} is not a string")
        return value

    def _list(self, name: str, item_type: type) -> list[MetadataValue]:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        # One look at the first item is enough: all items of a GGUF array have one type.
        if not isinstance(value, list) or not value or not isinstance(value[0], item_type):
            raise ModelFileError(
                f"tokenizer.ggml.{name} is missing, empty or not a list of {item_type.__name__}"
            )
        return value

    def _per_token(self, name: str, item_type: type) -> list[MetadataValue]:
        values = self._list(name, item_type)
        if len(values) != self._num_tokens:
            raise ModelFileError(
                f"tokenizer.ggml.{name} has {len(values)} entries for {self._num_tokens} tokens"
            )
        return values


def _byte_level(fields: _Fields, tokens: Sequence[str], rules: PreTokenizer) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(_bpe(vocab, fields.merges(), whole_words=rules.whole_words))
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), "isolated") for split in rules.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: _Fields, tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = fields.token_id("unknown_token_id")
    merges = _merges_from_scores(tokens, kinds, fields.scores())
    backend = Tokenizer(
        _bpe(
            vocab, merges, byte_fallback=True, unknown=None if unknown is None else tokens[unknown]
        )
    )
    space = normalizers.Replace(" ", "▁")
    prefix = fields.flag("add_space_prefix", True)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _merges_from_scores(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Merges in the order that joins the pair with the best-scored result first.

    Only normal tokens are made by merging: otherwise plain text could spell its way into a control token.
    """
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
    best_first = sorted(
        (i for i, kind in enumerate(kinds) if kind == _NORMAL and len(tokens[i]) > 1),
        key=lambda i: -scores[i],
    )
    merges: list[tuple[str, str]] = []
    for i in best_first:
        token = tokens[i]
        for cut in range(1, len(token)):
            right = token[cut:]
            if right in normal and (left := token[:cut]) in normal:
                merges.append((left, right))
    return merges


def _bpe(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    whole_words: bool = False,
    byte_fallback: bool = False,
    unknown: str | None = None,
) -> BPE:
    try:
        return BPE(
            vocab,
            merges,
            ignore_merges=whole_words,
            byte_fallback=byte_fallback,
            unk_token=unknown,
            fuse_unk=unknown is not None,
        )
    except Exception as error:  # the library raises plain Exception for a merge of unknown tokens
        raise ModelFileError(f"the file's tokens and merges do not fit together: {error}") from None


def _add_cut_out_tokens(backend: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tell the backend which tokens are found in the raw text, before normalising and splitting."""
    backend.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _UNKNOWN)
        ]
    )
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _USER_DEFINED
        ]
    )


def _frame(backend: Tokenizer, fields: _Fields, tokens: Sequence[str], add_bos: bool) -> None:
    """Put begin and end of sequence around encoded text where the file asks for it."""
    bos = fields.token_id("bos_token_id") if fields.flag("add_bos_token", add_bos) else None
    eos = fields.token_id("eos_token_id") if fields.flag("add_eos_token", False) else None
    if bos is None and eos is None:
        return
    before = [] if bos is None else [tokens[bos]]
    after = [] if eos is None else [tokens[eos]]
    backend.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        special_tokens=[(tokens[i], i) for i in {bos, eos} if i is not None],
    )


def _eos_ids(fields: _Fields, tokens: Sequence[str], kinds: Sequence[int]) -> tuple[int, ...]:
    """The file's end of sequence first, then the other tokens that end a turn."""
    named = [fields.token_id(name) for name in ("eos_token_id", "eot_token_id", "eom_token_id")]
    known = [i for i, k in enumerate(kinds) if k == _CONTROL and tokens[i] in _ENDS_OF_TURN]
    return tuple(dict.fromkeys(i for i in (*named, *known) if i is not None))


def _special_tokens(fields: _Fields, tokens: Sequence[str]) -> dict[str, str]:
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id"}
    names |= {"pad_token": "padding_token_id", "unk_token": "unknown_token_id"}
    ids = {name: fields.token_id(key) for name, key in names.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None}
