"""Thoughts told from answers: however a text is cut, its parts and counts are the same."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from tests.system.tiny_text import write_tokenizer

from nonet.core.errors import UnknownNameError
from nonet.gateway.answer import ChoiceText
from nonet.server.parse.base import Said
from nonet.server.parse.thoughts import THOUGHT_FORMATS, ThoughtFormat, ThoughtParser
from nonet.server.thoughts import ThoughtFinder, ThoughtSupport
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer, load_tokenizer

THINK = THOUGHT_FORMATS["think"]
# text, whether the prompt opened the thought, what was thought, what was said, tokens (bytes here) of the thought
CASES = [
    ("<think>\nhm\n</think>\n\nYes", False, "hm", "Yes", 19),
    ("hm\n</think>\n\nYes", True, "hm", "Yes", 11),
    (
        "<think>a < b, </thin air</think>Yes </think>",
        False,
        "a < b, </thin air",
        "Yes </think>",
        32,
    ),
    ("<think>\n\n</think>\n\nYes", False, "", "Yes", 17),
    ("Yes <think>no</think>", False, "", "Yes <think>no</think>", 0),
    ("<thinking>", False, "", "<thinking>", 0),
    ("<think>hm", False, "hm", "", 9),
    ("<think>hm</thi", False, "hm</thi", "", 14),
    ("\n<think>a\n\nb</think>", False, "a\n\nb", "", 20),
    ("", True, "", "", 0),
    (" Yes\n", False, "", " Yes\n", 0),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder)
    return load_tokenizer(folder)


def read(
    tokenizer: Tokenizer, text: str, cuts: list[int], *, is_open: bool
) -> tuple[str, str, int]:
    finder = ThoughtFinder(tokenizer, THINK, is_open, 1)
    bounds = [0, *sorted(cuts), len(text)]
    thought = said = ""
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = text[start:end]
        ends = "stop" if number == len(bounds) - 2 else None
        piece = ChoiceText(0, part, token_ids=[*part.encode()], finish_reason=ends)
        read = finder.split(piece)
        assert piece.text == part
        thought, said = thought + read.thought, said + read.text
    return thought, said, finder.num_tokens


@pytest.mark.parametrize(("text", "is_open", "thought", "said", "num_tokens"), CASES)
def test_any_cut_gives_the_same(
    tokenizer: Tokenizer, text: str, is_open: bool, thought: str, said: str, num_tokens: int
) -> None:
    draw = random.Random(text)
    cuts = [[], list(range(1, len(text)))]
    cuts += [[draw.randint(0, len(text)) for _ in range(draw.randint(1, 6))] for _ in range(200)]
    for one in cuts:
        assert read(tokenizer, text, one, is_open=is_open) == (thought, said, num_tokens), one


class HoldsNothingBack(ThoughtParser):
    """A mutant: a mark that arrives in two pieces is missed."""

    def feed(self, text: str) -> list[Any]:
        events = super().feed(text)
        if self._state == "inside":
            events.append(Said(self._held))
            self._held = ""
        return events


def test_a_parser_that_holds_nothing_back_is_caught(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonet.server.thoughts.ThoughtParser", HoldsNothingBack)
    text, is_open, thought, said, _ = CASES[0]
    assert read(tokenizer, text, [text.index("k>\n\n")], is_open=is_open)[:2] != (thought, said)


def test_choices_are_read_apart(tokenizer: Tokenizer) -> None:
    finder = ThoughtFinder(tokenizer, THINK, False, 2)
    for choice, text in ((0, "<think>a"), (1, "b"), (0, "</think>c"), (1, "d")):
        finder.split(ChoiceText(choice, text, token_ids=[*text.encode()]))
    ends = [finder.split(ChoiceText(choice, finish_reason="stop")).text for choice in (0, 1)]
    assert ends == ["", ""]
    assert finder.num_tokens == len("<think>a</think>")


@pytest.mark.parametrize(
    ("template", "name", "form"),
    [
        ("{{ '<think>\\n\\n</think>' }}", "auto", THINK),
        ("{{ '[THINK]' }}{{ '[/THINK]' }}", "auto", THOUGHT_FORMATS["bracketed"]),
        ("{{ messages }}", "auto", None),
        ("{{ messages }}", "think", THINK),
        ("{{ '</think>' }}", "none", None),
    ],
)
def test_the_template_tells(
    tokenizer: Tokenizer, template: str, name: str, form: ThoughtFormat | None
) -> None:
    support = ThoughtSupport(tokenizer, ChatTemplate(template, {}), name)
    assert support.is_known == (form is not None)
    assert (support.finder("", 1) is None) == (form is None)
    if form is not None:
        inside = support.finder(f"<|start|>assistant\n{form.opening}\n", 1)
        assert inside is not None
        assert inside.split(ChoiceText(0, f"x{form.closing}y")).thought == "x"
        assert support.finder(f"{form.opening}{form.closing}", 1) is not None


def test_an_unknown_parser_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownNameError, match="no reasoning parser named 'thinkk'"):
        ThoughtSupport(tokenizer, None, "thinkk")
