"""Grammars of tool calls: the frame of a model's format, written exactly, around arguments that satisfy their schema.

Three kinds: calls and nothing else; text in which every call that is begun becomes a right one; and either a call or an
answer of a given schema. Each tool's schema stays a document of its own, so that its `$ref`s mean what they did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.grammar.json_schema import embedded
from nonet.server.parse.base import Frame

__all__ = ["CallRules", "Tool", "call_grammar"]

MAX_CALLS = 16  # in one answer that a grammar holds to calls: a small model may know no end


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the client runs."""

    name: str
    parameters: dict[str, Any]  # JSON Schema
    is_strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """What an answer may be."""

    tools: tuple[Tool, ...]
    is_required: bool  # calls and nothing else
    allows_many: bool
    answer_schema: str | None = None  # of an answer that is no call; None: any text


def call_grammar(rules: CallRules, frame: Frame, control_tokens: Mapping[str, int]) -> str:
    """The grammar in Lark. `control_tokens` are the ids of those texts that are one control token each."""
    write = _Writer(control_tokens)
    lines = ["%llguidance {}"]
    calls = _calls(rules, frame, write)
    if rules.is_required:
        lines.append(f"start: {calls}")
    elif rules.answer_schema is not None:
        if frame.at_start:
            raise InvalidRequestError(
                "this model's tool calls are JSON themselves, so they cannot be had together with a response_format",
                "response_format",
            )
        lines += [f"start: {calls} | answer", f"answer: %json {embedded(rules.answer_schema)}"]
    elif frame.at_start:
        first = re.escape(frame.sign[0])
        lines += [f"start: {calls} | text", f"text: /([^{first}](.|\\n)*)?/"]
    else:
        lines += _calls_in_text(rules, frame, write)
    for number, tool in enumerate(rules.tools):
        after = write(f"{tool.name}{frame.neck}")
        lines.append(f"call_{number}: {after} arguments_{number} {write(frame.tail)}".rstrip())
        lines.append(f"arguments_{number}: %json {_arguments(tool)}")
    return "\n".join(lines) + "\n"


def _calls(rules: CallRules, frame: Frame, write: _Writer) -> str:
    """From `opening` to `closing`."""
    call = f"{write(frame.head)} ({_any_call(rules)})"
    more = f"({write(frame.between)} {call})" if frame.between else f"({call})"
    many = f" {more}{{0,{MAX_CALLS - 1}}}" if rules.allows_many else ""
    return f"{write(frame.opening)} {call}{many} {write(frame.closing)}".strip()


def _calls_in_text(rules: CallRules, frame: Frame, write: _Writer) -> list[str]:
    """Text; wherever the sign of a call is written, a call follows."""
    begun = frame.opening + frame.head
    rest = write(begun.removeprefix(frame.sign))
    more = (
        f"({write(frame.between)} {write(frame.head)} ({_any_call(rules)}))*"
        if frame.closing
        else ""
    )
    if not rules.allows_many:
        more = ""
    call = f"{rest} ({_any_call(rules)}) {more} {write(frame.closing)}".strip()
    if frame.sign in write.control_tokens:
        before = f"text {write(frame.sign)}"
        head: list[str] = []
    else:
        before = "sign"
        head = [f"sign[lazy]: /(.|\\n)*{_regex(frame.sign)}/"]
    some = "*" if rules.allows_many else "?"
    # After its only call an answer is over.
    start = f"({before} {call}){some} text" if rules.allows_many else f"text | {before} {call}"
    return [f"start: {start}", *head, "text: /(.|\\n)*/"]


def _any_call(rules: CallRules) -> str:
    return " | ".join(f"call_{number}" for number in range(len(rules.tools)))


def _arguments(tool: Tool) -> str:
    """The schema of the arguments, which are an object whether it says so or not."""
    schema = {"type": "object", **tool.parameters}
    return embedded(json.dumps(schema))


def _regex(text: str) -> str:
    """`text` within /.../ of Lark."""
    return re.escape(text).replace("/", "\\/")


class _Writer:
    """Texts as Lark literals; control tokens in them become token numbers."""

    def __init__(self, control_tokens: Mapping[str, int]) -> None:
        self.control_tokens = control_tokens
        names = sorted((name for name in control_tokens if name), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def __call__(self, text: str) -> str:
        parts = self._split.split(text) if self._split is not None else [text]
        return " ".join(
            f"<[{self.control_tokens[part]}]>"
            if part in self.control_tokens
            else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        )
