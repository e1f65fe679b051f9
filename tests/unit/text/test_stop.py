"""Stop strings against a naive oracle, however the text is cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonet.text.stop import StopMatcher

texts = st.text("ab<|", max_size=30)
stop_lists = st.lists(st.text("ab<|", min_size=1, max_size=6), min_size=1, max_size=4)


def oracle(
    text: str, stops: list[str], include: bool, first_end: int = 0
) -> tuple[str, str | None]:
    """Try every end, then every stop string from the longest."""
    for end in range(first_end, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if end >= len(stop) and text[:end].endswith(stop):
                return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


def run(
    text: str, cuts: list[int], make: Callable[[], StopMatcher]
) -> tuple[list[str], str | None]:
    matcher = make()
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    pieces = [matcher.feed(text[a:b]).text for a, b in itertools.pairwise(bounds)]
    return [*pieces, matcher.finish()], matcher.stop


@settings(max_examples=400, deadline=None)
@given(texts, stop_lists, st.booleans(), st.lists(st.integers(0, 30), max_size=10))
def test_equals_the_oracle_for_every_cut(
    text: str, stops: list[str], include: bool, cuts: list[int]
) -> None:
    pieces, stop = run(text, cuts, lambda: StopMatcher(stops, include))
    assert ("".join(pieces), stop) == oracle(text, stops, include)


@settings(max_examples=300, deadline=None)
@given(texts, stop_lists, st.integers(0, 30))
def test_matches_that_end_early_are_passed_over(text: str, stops: list[str], first: int) -> None:
    matcher = StopMatcher(stops)
    pieces = [matcher.feed(char, may_stop=end >= first).text for end, char in enumerate(text, 1)]
    shown = "".join(pieces) + matcher.finish()
    assert (shown, matcher.stop) == oracle(text, stops, False, first)


@settings(max_examples=300, deadline=None)
@given(texts, stop_lists)
def test_holds_back_only_what_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for end, char in enumerate(text, 1):
        found = matcher.feed(char)
        shown += found.text
        if found.stop is not None:
            return
        held = text[len(shown) : end]
        assert any(stop.startswith(held) and stop != held for stop in stops) or not held
        longer = text[len(shown) - 1 : end] if shown else ""
        assert not any(longer and stop.startswith(longer) for stop in stops), (
            "shown although it may still stop"
        )


@pytest.mark.parametrize(
    ("text", "stops", "shown", "stop"),
    [
        ("one two", ["two"], "one ", "two"),
        ("abcabd", ["abd"], "abc", "abd"),
        ("aab", ["ab"], "a", "ab"),
        ("xyz", ["yz", "xyz"], "", "xyz"),
        ("abcd", ["abcd", "bc"], "a", "bc"),
        ("é🙂é", ["🙂"], "é", "🙂"),
        ("nothing", ["stop"], "nothing", None),
        ("sto", ["stop"], "sto", None),
    ],
)
def test_examples(text: str, stops: list[str], shown: str, stop: str | None) -> None:
    for cuts in ([], list(range(len(text)))):
        pieces, found = run(text, cuts, lambda: StopMatcher(stops))
        assert ("".join(pieces), found) == (shown, stop)


def test_with_the_stop_string_shown_nothing_is_held_back() -> None:
    matcher = StopMatcher(["stop"], include_stop=True)
    assert [matcher.feed(piece).text for piece in ("one st", "op", "two")] == ["one st", "op", ""]
    assert matcher.stop == "stop"


def test_long_stop_strings_cost_nothing_until_they_match() -> None:
    stops = [chr(0x4E00 + index) * 4096 for index in range(64)]
    matcher = StopMatcher(stops)
    assert matcher.feed("plain text " * 1000).text == "plain text " * 1000
    assert max(len(pattern._borders) for pattern in matcher._patterns) <= 2


def test_the_oracle_rejects_a_matcher_that_forgets_the_border_of_a_failed_match() -> None:
    class Forgetful(StopMatcher):
        def _advance(self, char: str) -> str | None:
            for pattern in self._patterns:
                if pattern.text[pattern.matched] != char:
                    pattern.matched = 0
            return super()._advance(char)

    pieces, stop = run("ababac", [], lambda: Forgetful(["abac"]))
    assert ("".join(pieces), stop) != oracle("ababac", ["abac"], False), "the mutant would pass"
