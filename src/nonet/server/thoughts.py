"""What a model thinks before it answers, for every dialect: told from the answer, and counted."""

from __future__ import annotations

import msgspec

from nonet.core.catalogue import did_you_mean
from nonet.core.errors import UnknownNameError
from nonet.gateway.answer import ChoiceText
from nonet.server.parse.base import Said
from nonet.server.parse.thoughts import (
    THOUGHT_FORMATS,
    Thought,
    ThoughtFormat,
    ThoughtParser,
    detected_thoughts,
)
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer

__all__ = ["ThoughtFinder", "ThoughtSupport"]


class ThoughtSupport:
    """What is known of the served model's way of thinking."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, name: str = "auto"
    ) -> None:
        """`name` is a thought format, "none", or "auto": what the template shows. UnknownNameError for another."""
        self._tokenizer = tokenizer
        self._form = _format(name, template.source if template is not None else "")

    @property
    def shows_control_tokens(self) -> bool:
        """Whether a mark is a control token, which must not be left out of the text then."""
        form = self._form
        return form is not None and any(
            self._tokenizer.token_text(i) in (form.opening, form.closing)
            for i in self._tokenizer.special_ids
        )

    @property
    def is_known(self) -> bool:
        """Whether answers may hold thoughts at all."""
        return self._form is not None

    def finder(self, prompt: str, num_choices: int) -> ThoughtFinder | None:
        """Finds the thoughts in an answer to the rendered `prompt`; None when there can be none."""
        if self._form is None:
            return None
        return ThoughtFinder(self._tokenizer, self._form, self._form.is_open(prompt), num_choices)


class ThoughtFinder:
    """One parser per choice. `num_tokens` counts the tokens of thoughts, their marks included, however they came."""

    def __init__(
        self, tokenizer: Tokenizer, form: ThoughtFormat, is_open: bool, num_choices: int
    ) -> None:
        self.num_tokens = 0
        self._tokenizer = tokenizer
        self._closing = form.closing.encode()
        self._parsers = [ThoughtParser(form, is_open=is_open) for _ in range(num_choices)]
        self._ids: list[list[int]] = [[] for _ in range(num_choices)]  # while a choice thinks

    def split(self, piece: ChoiceText) -> ChoiceText:
        """The piece with its thoughts taken out of the text; the one given stays as it is."""
        parser = self._parsers[piece.choice]
        was_thinking = parser.is_thinking
        events = parser.feed(piece.text) if piece.text else []
        if piece.finish_reason is not None:
            events += parser.finish()
        if was_thinking:
            self._ids[piece.choice] += piece.token_ids
            if not parser.is_thinking or piece.finish_reason is not None:
                self.num_tokens += self._counted(piece.choice)
        said = "".join([event.text for event in events if isinstance(event, Said)])
        thought = "".join([event.text for event in events if isinstance(event, Thought)])
        return msgspec.structs.replace(piece, text=said, thought=thought)

    def _counted(self, choice: int) -> int:
        """Tokens up to the closing mark; all of them where it never came, none where no thought began."""
        ids, self._ids[choice] = self._ids[choice], []
        parser = self._parsers[choice]
        if not parser.has_begun:
            return 0
        if parser.is_thinking:
            return len(ids)
        parts = [self._tokenizer.token_bytes(token_id) for token_id in ids]
        end = b"".join(parts).find(self._closing) + len(self._closing)
        size = 0
        for number, part in enumerate(parts, 1):
            size += len(part)
            if size >= end:
                return number
        return len(ids)


def _format(name: str, template: str) -> ThoughtFormat | None:
    if name == "auto":
        return detected_thoughts(template)
    if name == "none":
        return None
    if name not in THOUGHT_FORMATS:
        known = sorted([*THOUGHT_FORMATS, "auto", "none"])
        raise UnknownNameError(f"no reasoning parser named {name!r}. {did_you_mean(name, known)}")
    return THOUGHT_FORMATS[name]
