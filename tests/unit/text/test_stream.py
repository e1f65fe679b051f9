"""Text streams: what is shown, what is billed, and where each token's text begins."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vocabularies import byte_level_metadata

from nonet.core.sampling_params import SamplingParams
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.stream import TextDelta, TextStream
from nonet.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(vocabulary_from_gguf(byte_level_metadata()))
END = TOKENIZER.eos_ids[0]


def stream(**params) -> TextStream:
    return TextStream(TOKENIZER, SamplingParams(**params))


def ids(text: str) -> list[int]:
    """One token for each byte."""
    return list(text.encode())


def test_the_docstring_example() -> None:
    found = stream(stop=["\n"]).feed(ids("a\nb"))
    assert found == TextDelta(text="a", num_tokens=2, stop_string="\n", text_offsets=[0, 1])


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab<é🙂", max_size=20),
    st.lists(st.text("ab<é", min_size=1, max_size=3), max_size=2),
    st.booleans(),
    st.integers(0, 12),
    st.lists(st.integers(0, 40), max_size=6),
)
def test_cutting_into_calls_changes_nothing(text, stops, include, min_tokens, cuts) -> None:
    tokens = ids(text)
    params = {"stop": stops, "include_stop_str_in_output": include, "min_tokens": min_tokens}
    one = stream(**params)
    whole = one.feed(tokens, "length")
    cut = stream(**params)
    bounds = [0, *sorted(c for c in cuts if c <= len(tokens)), len(tokens)]
    deltas = [cut.feed(tokens[a:b]) for a, b in itertools.pairwise(bounds)]
    deltas.append(cut.feed([], "length"))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert (
        sum(delta.num_tokens for delta in deltas)
        == whole.num_tokens
        == one.num_tokens
        == cut.num_tokens
    )
    assert [offset for delta in deltas for offset in delta.text_offsets] == whole.text_offsets
    assert [delta.stop_string for delta in deltas if delta.stop_string] == (
        [whole.stop_string] if whole.stop_string else []
    )
    assert one.is_finished
    assert cut.is_finished


@settings(max_examples=300, deadline=None)
@given(st.text("abc", max_size=20), st.text("abc", min_size=1, max_size=3), st.integers(0, 12))
def test_stops_at_the_first_match_that_ends_at_or_after_min_tokens(text, stop, min_tokens) -> None:
    found = stream(stop=[stop], min_tokens=min_tokens).feed(ids(text), "length")
    ends = [
        end for end in range(1, len(text) + 1) if text[:end].endswith(stop) and end >= min_tokens
    ]
    if ends:
        assert found.text == text[: ends[0] - len(stop)]
        assert (found.num_tokens, found.stop_string) == (ends[0], stop)
    else:
        assert (found.text, found.num_tokens, found.stop_string) == (text, len(text), None)


def test_overshoot_is_neither_returned_nor_billed() -> None:
    one = stream(stop=["b"])
    assert one.feed(ids("abcd")) == TextDelta(
        text="a", num_tokens=2, stop_string="b", text_offsets=[0, 1]
    )
    assert one.feed(ids("more"), "length") == TextDelta(text="", num_tokens=0)
    assert one.num_tokens == 2


def test_a_stop_string_inside_one_token() -> None:
    hello = TOKENIZER.token_to_id("hello")
    assert stream(stop=["l"]).feed([hello, 65]).text == "he"
    assert stream(stop=["l"], include_stop_str_in_output=True).feed([hello, 65]).text == "hel"


def test_held_back_text_comes_with_the_end() -> None:
    one = stream(stop=["stop"])
    assert one.feed(ids("a sto")).text == "a "
    assert one.feed([], "length") == TextDelta(text="sto", num_tokens=0)


def test_half_a_character_at_the_end_is_replaced() -> None:
    assert stream().feed([65, 0xC3], "length").text == "A\ufffd"
    assert stream(stop=["x"]).feed([65, 0xC3], "length").text == "A\ufffd"


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "abc")])
def test_the_stop_token_counts_and_shows_only_when_asked(include: bool, text: str) -> None:
    params = {"stop_token_ids": [99], "include_stop_str_in_output": include}
    found = stream(**params).feed(ids("abc"), "stop", stop_token_id=99)
    assert (found.text, found.num_tokens, found.text_offsets) == (text, 3, [0, 1, 2])


def test_a_stop_token_that_the_engine_left_out_hides_nothing() -> None:
    assert stream().feed(ids("ab"), "stop", stop_token_id=END).text == "ab"
    assert stream().feed([], "stop", stop_token_id=END) == TextDelta(text="", num_tokens=0)
    assert stream().feed(ids("ab"), "length", stop_token_id=98).text == "ab"


def test_end_of_sequence_is_hidden_even_when_special_tokens_show() -> None:
    assert stream(skip_special_tokens=False).feed([65, END], "stop", END).text == "A"
    assert stream(skip_special_tokens=False).feed([65, END], "length").text == "A<|end|>"
    assert stream(include_stop_str_in_output=True).feed([65, END], "stop", END).text == "A"


def test_a_stop_string_before_the_end_wins_over_the_finish_reason() -> None:
    found = stream(stop=["b"]).feed([*ids("abc"), END], "stop", END)
    assert (found.text, found.num_tokens, found.stop_string) == ("a", 2, "b")


def test_offsets_count_characters_from_where_the_text_begins() -> None:
    one = TextStream(TOKENIZER, SamplingParams(), text_offset=10)
    hello = TOKENIZER.token_to_id("hello")
    assert one.feed([hello, *ids("é"), END, 65]).text_offsets == [10, 15, 15, 16, 16]
    assert one.feed([66]).text_offsets == [17]


def test_offsets_run_on_while_text_is_held_back() -> None:
    one = stream(stop=["abc"])
    assert one.feed(ids("ab")) == TextDelta(text="", num_tokens=2, text_offsets=[0, 1])
    assert one.feed(ids("x")) == TextDelta(text="abx", num_tokens=1, text_offsets=[2])
