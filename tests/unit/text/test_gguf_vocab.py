"""Vocabularies from GGUF metadata: what each kind of token does, and what broken metadata is answered with."""

from __future__ import annotations

import gc

import pytest
from small_vocabularies import byte_level_metadata, sentencepiece_metadata

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.pre_tokenizers import known_pre_tokenizers, pre_tokenizer
from nonet.text.tokenizer import Tokenizer


def byte_level(**changes) -> Tokenizer:
    return Tokenizer(vocabulary_from_gguf(byte_level_metadata(**changes)))


def sentencepiece(**changes) -> Tokenizer:
    return Tokenizer(vocabulary_from_gguf(sentencepiece_metadata(**changes)))


def names(tokenizer: Tokenizer, ids: list[int]) -> list[str | None]:
    return [tokenizer.id_to_token(i) for i in ids]


def test_byte_level_merges_words_and_knows_every_byte() -> None:
    tokenizer = byte_level()
    assert names(tokenizer, tokenizer.encode("hello wé")) == ["hello", "Ġw", "Ã©"]
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.decode(tokenizer.encode("ünï 🙂\x00\n")) == "ünï 🙂\x00\n"


def test_control_tokens_are_found_unless_the_text_is_raw() -> None:
    tokenizer = byte_level()
    control = tokenizer.token_to_id("<|end|>")
    assert tokenizer.encode("a<|end|>") == [97, control]
    assert tokenizer.encode("a<|end|>", parse_special=False) == list(b"a<|end|>")
    assert tokenizer.special_ids == {control, control + 1}
    assert tokenizer.decode([97, control]) == "a"
    assert tokenizer.decode([97, control], skip_special=False) == "a<|end|>"


def test_user_defined_tokens_are_found_in_raw_text_too_and_shown() -> None:
    tokenizer = byte_level()
    tool = tokenizer.token_to_id("<tool>")
    assert tokenizer.encode("<tool>") == tokenizer.encode("<tool>", parse_special=False) == [tool]
    assert tokenizer.decode([tool]) == "<tool>"


def test_unused_tokens_and_foreign_ids_stand_for_nothing() -> None:
    tokenizer = byte_level()
    unused = tokenizer.token_to_id("[PAD0]")
    assert unused == tokenizer.vocab_size - 1
    assert tokenizer.token_bytes(unused) == b""
    assert unused not in tokenizer.encode("[PAD0]")
    for token_id in (-1, tokenizer.vocab_size, 10**9):
        assert tokenizer.token_bytes(token_id) == b""
        assert tokenizer.id_to_token(token_id) is None


def test_ends_of_turn_follow_the_named_end_of_sequence() -> None:
    tokenizer = byte_level()
    end, turn = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|im_end|>")
    assert tokenizer.eos_ids == (end, turn)
    assert byte_level(eos_token_id=turn).eos_ids == (turn, end)
    assert byte_level(eot_token_id=97).eos_ids == (end, 97, turn)


def test_frame_follows_the_file() -> None:
    assert byte_level().encode("a") == [97]
    end = byte_level().bos_id
    assert byte_level(add_bos_token=True).encode("a") == [end, 97]
    assert byte_level(add_bos_token=True, add_eos_token=True).encode("a") == [end, 97, end]
    assert byte_level(add_bos_token=True).encode("a", add_special=False) == [97]
    assert byte_level(add_bos_token=True).encode("a", parse_special=False) == [end, 97]
    assert byte_level(pre="llama-bpe").encode("a") == [end, 97], "the family's habit"


def test_sentencepiece_joins_the_best_scored_pair_first() -> None:
    tokenizer = sentencepiece(add_space_prefix=False)
    assert names(tokenizer, tokenizer.encode(" abcb", add_special=False)) == ["▁a", "bc", "b"]
    scores = [0.0] * 260 + [0.0, -1.0, -2.0, -3.0, -9.0, -5.0, -6.0, -7.0, -8.0, -9.0]
    swapped = sentencepiece(add_space_prefix=False, scores=scores)
    assert names(swapped, swapped.encode(" abcb", add_special=False)) == ["▁", "abc", "b"]


def test_sentencepiece_adds_begin_of_sequence_and_a_space_by_default() -> None:
    tokenizer = sentencepiece()
    assert names(tokenizer, tokenizer.encode("ab")) == ["<s>", "▁a", "b"]
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"
    assert sentencepiece(add_bos_token=False).encode("", add_special=True) == []


def test_sentencepiece_falls_back_to_bytes() -> None:
    tokenizer = sentencepiece(add_space_prefix=False)
    ids = tokenizer.encode("a🙂", add_special=False)
    assert names(tokenizer, ids) == ["a", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    assert [tokenizer.token_bytes(i) for i in ids] == [b"a", b"\xf0", b"\x9f", b"\x99", b"\x82"]
    assert tokenizer.decode(ids) == "a🙂"


def test_typed_names_do_not_become_byte_or_control_tokens() -> None:
    tokenizer = sentencepiece(add_space_prefix=False)
    assert tokenizer.token_to_id("<0x41>") not in tokenizer.encode("<0x41>", parse_special=False)
    assert 1 not in tokenizer.encode("<s>", add_special=False, parse_special=False)
    assert tokenizer.encode("<s>", add_special=False) == [1]


def test_runs_of_spaces_are_cut_out_whole() -> None:
    tokenizer = sentencepiece(add_space_prefix=False)
    assert names(tokenizer, tokenizer.encode("a  a a", add_special=False)) == ["a", "  ", "a", "▁a"]
    assert tokenizer.decode(tokenizer.encode("a  a a")) == "a  a a"


def test_unknown_kind_and_unknown_splits_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="'t5'"):
        byte_level(model="t5")
    with pytest.raises(UnsupportedModelError, match=r"'qwen-2'.*Did you mean 'qwen2'.*smollm"):
        byte_level(pre="qwen-2")


@pytest.mark.parametrize("name", known_pre_tokenizers())
def test_every_known_split_loses_no_text(name: str) -> None:
    tokenizer = byte_level(pre=name)
    text = "It's 12,345 hello wörld!\n\n\tдва 中文 かな  x_y  \r\n "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert pre_tokenizer(name).splits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": []}, "tokens"),
        ({"tokens": [1, 2]}, "tokens"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "twice"),
        ({"token_type": [1]}, "1 entries for"),
        ({"merges": ["ab"]}, "not two tokens"),
        ({"merges": ["zz yy"]}, "do not fit"),
        ({"merges": []}, "merges"),
        ({"bos_token_id": 10**6}, "bos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"add_bos_token": 3}, "add_bos_token"),
        ({"pre": 3}, "tokenizer.ggml.pre"),
    ],
)
def test_broken_metadata_is_a_model_file_error(changes, message) -> None:
    with pytest.raises(ModelFileError, match=message):
        byte_level(**changes)


def test_broken_scores_are_a_model_file_error() -> None:
    with pytest.raises(ModelFileError, match="scores"):
        sentencepiece(scores=[0.5])


def test_the_garbage_collector_is_left_as_it_was() -> None:
    assert gc.isenabled()
    byte_level()
    with pytest.raises(ModelFileError):
        byte_level(merges=["zz yy"])
    assert gc.isenabled()
