"""Streaming detokenisation equals decoding at once, however the tokens are cut into calls."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_vocabularies import byte_level_metadata, sentencepiece_metadata

from nonet.text.detokenize import Detokenizer
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.tokenizer import Tokenizer

BYTE_LEVEL = Tokenizer(vocabulary_from_gguf(byte_level_metadata()))
SENTENCEPIECE = Tokenizer(vocabulary_from_gguf(sentencepiece_metadata(add_space_prefix=False)))
BASIC_PLANE = st.characters(
    max_codepoint=0xFFFF, exclude_categories=["Cs"]
)  # SmolLM2 lacks bytes that others need
relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150
)


def in_chunks(ids: list[int], data: st.DataObject) -> list[list[int]]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def streamed(tokenizer: Tokenizer, chunks: list[list[int]], skip: bool) -> list[str]:
    stream = Detokenizer(tokenizer, skip)
    return [*(stream.feed(chunk) for chunk in chunks), stream.finish()]


@pytest.mark.models
@relaxed
@given(data=st.data(), skip=st.booleans())
def test_any_ids_of_real_vocabularies(
    real_tokenizer: Tokenizer, data: st.DataObject, skip: bool
) -> None:
    low = st.integers(
        0, min(600, real_tokenizer.vocab_size - 1)
    )  # bytes and control tokens are here
    ids = data.draw(st.lists(low | st.integers(0, real_tokenizer.vocab_size - 1), max_size=30))
    assert "".join(streamed(real_tokenizer, in_chunks(ids, data), skip)) == real_tokenizer.decode(
        ids, skip
    )


@pytest.mark.models
@relaxed
@given(
    data=st.data(),
    text=st.text(BASIC_PLANE, max_size=40) | st.text("🙂👩‍💻é中\u0301 a", max_size=20),
)
def test_real_text_shows_no_broken_characters(
    real_tokenizer: Tokenizer, data: st.DataObject, text: str
) -> None:
    ids = real_tokenizer.encode(text, add_special=False)
    pieces = streamed(real_tokenizer, in_chunks(ids, data), False)
    assert "".join(pieces) == real_tokenizer.decode(ids, skip_special=False)
    assert "\ufffd" in text or "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    "tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte level", "sentencepiece"]
)
@relaxed
@given(data=st.data(), skip=st.booleans())
def test_any_ids_of_small_vocabularies(
    tokenizer: Tokenizer, data: st.DataObject, skip: bool
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert "".join(streamed(tokenizer, in_chunks(ids, data), skip)) == tokenizer.decode(ids, skip)


def test_a_character_waits_for_its_last_byte() -> None:
    assert streamed(BYTE_LEVEL, [[b] for b in "é🙂!".encode()], True) == [
        "",
        "é",
        "",
        "",
        "",
        "🙂",
        "!",
        "",
    ]


def test_a_broken_sequence_is_replaced_once_it_is_certain() -> None:
    assert streamed(BYTE_LEVEL, [[0xF0], [0x9F], [0x41]], True) == ["", "", "\ufffdA", ""]
    assert streamed(BYTE_LEVEL, [[0x41], [0xF0, 0x9F]], True) == ["A", "", "\ufffd"]
    assert streamed(BYTE_LEVEL, [[0xFF], [0x41]], True) == ["\ufffd", "A", ""]


def test_special_tokens_are_dropped_or_named() -> None:
    end = BYTE_LEVEL.eos_ids[0]
    assert streamed(BYTE_LEVEL, [[65, end], [66]], True) == ["A", "B", ""]
    assert streamed(BYTE_LEVEL, [[65, end], [66]], False) == ["A<|end|>", "B", ""]


def test_a_dropped_token_does_not_break_a_character() -> None:
    end = BYTE_LEVEL.eos_ids[0]
    assert streamed(BYTE_LEVEL, [[0xC3], [end], [0xA9]], True) == ["", "", "é", ""]


def test_an_output_keeps_the_space_that_parts_it_from_the_prompt() -> None:
    tokenizer = Tokenizer(vocabulary_from_gguf(sentencepiece_metadata()))
    ids = tokenizer.encode("ab", add_special=False)
    assert tokenizer.decode(ids) == "ab"
    assert streamed(tokenizer, [ids], True) == [" ab", ""]


def test_the_property_finds_a_detokenizer_that_decodes_token_by_token() -> None:
    ids = list("é".encode())
    naive = "".join(BYTE_LEVEL.decode([i]) for i in ids)
    assert naive != BYTE_LEVEL.decode(ids), "the mutant would pass"
