"""What form an answer takes, for every dialect: tools that it may call, a shape to keep to, how its text is read.

Use: `form = await answer_form(state, use, shape)`, render `form.messages(...)` with `form.template_tools`, sample with
`form.shaped(params)`, and hand `form.reader(...)` to the `Generation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.core.sampling_params import SamplingParams
from nonet.server.calls import CallFinder
from nonet.server.reader import AnswerReader
from nonet.server.shapes import AskedShape
from nonet.server.state import ServerState
from nonet.server.thoughts import ThoughtSupport
from nonet.server.tools import ToolSupport, ToolUse

__all__ = ["AnswerForm", "answer_form"]

_ANY_OBJECT = '{"type": "object"}'


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The decisions about one call's answer."""

    support: ToolSupport
    thoughts: ThoughtSupport
    use: ToolUse | None
    grammar: Grammar | None

    @property
    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the chat template is to list."""
        return self.support.template_tools(self.use)

    def messages(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The conversation as the chat template can take it."""
        return self.support.plain_history(messages, self.use)

    def shaped(self, params: SamplingParams, vocab_size: int) -> SamplingParams:
        """The sampling that keeps to the form."""
        shows = self.use is not None and self.support.shows_control_tokens
        shows = shows or (self._may_think and self.thoughts.shows_control_tokens)
        if self.grammar is None and not shows:
            return params
        params = msgspec.structs.replace(
            params,
            grammar=self.grammar,
            skip_special_tokens=params.skip_special_tokens and not shows,
        )
        params.verify(vocab_size)
        return params

    def reader(self, name: str, num_choices: int, prompt: str) -> AnswerReader | None:
        """Finds thoughts and calls in the answer called `name` to a rendered prompt; None when there can be neither."""
        thoughts = self.thoughts.finder(prompt, num_choices) if self._may_think else None
        calls: CallFinder | None = None
        if self.use is not None:
            parsers = [self.support.parser() for _ in range(num_choices)]
            calls = CallFinder(parsers, name, self.support.call_id)
        return None if thoughts is None and calls is None else AnswerReader(thoughts, calls)

    @property
    def _may_think(self) -> bool:
        """A grammar holds the whole answer to a shape, which leaves no room for thoughts."""
        return self.grammar is None and self.thoughts.is_known


async def answer_form(
    state: ServerState, use: ToolUse | None, shape: AskedShape | None
) -> AnswerForm:
    """Settle and compile what the answer must keep to. InvalidRequestError for what cannot be promised."""
    support = state.tools
    grammar: Grammar | None = None
    if use is not None:
        schema = None if use.is_required else _answer_schema(shape)
        if use.needs_grammar or schema is not None:
            grammar = await state.grammars.made(lambda: support.grammar(use, schema), "tools")
    elif shape is not None:
        asked = shape.grammar
        grammar = await state.grammars.made(lambda: asked, shape.param)
    return AnswerForm(support, state.thoughts, use, grammar)


def _answer_schema(shape: AskedShape | None) -> str | None:
    """What an answer must satisfy that calls no tool."""
    if shape is None:
        return None
    match shape.grammar.kind:
        case "json_schema":
            return shape.grammar.text
        case "json_object":
            return _ANY_OBJECT
    raise InvalidRequestError(
        f"{shape.param} cannot be had together with tools; set tool_choice to 'none' or leave one of them out",
        shape.param,
    )
