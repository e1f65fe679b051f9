"""Tools in a conversation, for every dialect: what the prompt says of them, the grammar of calls, and the parser.

A dialect hands over tools and choice in OpenAI's form and gets a `ToolUse`. It renders `template_tools` and the
messages of `plain_history`, samples under `grammar`, and gives the answer's text to `parser`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nonet.core.errors import InvalidRequestError
from nonet.core.grammar import Grammar
from nonet.server.limits import check_depth, check_length, check_text
from nonet.server.parse import TOOL_FORMATS, detected_format
from nonet.server.parse.base import ToolFormat, ToolParser
from nonet.server.tool_grammar import CallRules, Tool, call_grammar
from nonet.text.chat_template import ChatTemplate
from nonet.text.tokenizer import Tokenizer

__all__ = ["ToolSupport", "ToolUse", "checked_tools"]

_NAME = re.compile(r"[A-Za-z0-9_.:/-]+")

INTRODUCTION = (
    "You may call functions to help with the user's request. These JSON objects describe them:\n"
)
HOW_TO_CALL = "To call functions, write nothing but the calls, each like this:\n"
RESULT = "<tool_response>\n{}\n</tool_response>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """How one call may use tools."""

    tools: tuple[Tool, ...]
    definitions: list[dict[str, Any]]  # as the client gave them, for the template
    is_required: bool = False
    allows_many: bool = True

    @property
    def needs_grammar(self) -> bool:
        """Whether anything was promised that the model alone would not keep."""
        return (
            self.is_required or not self.allows_many or any(tool.is_strict for tool in self.tools)
        )


class ToolSupport:
    """What is known of the served model's way with tools."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, name: str = "auto"
    ) -> None:
        """`name` is a tool format, or "auto": what the template shows. UnknownNameError for another."""
        source = template.source if template is not None else ""
        self.name = detected_format(source) if name == "auto" else name
        self._format: ToolFormat = TOOL_FORMATS.build(self.name)
        self._tokenizer = tokenizer
        self._template_lists_tools = re.search(r"\btools\b", source) is not None
        self._template_writes_calls = "tool_calls" in source

    @property
    def shows_control_tokens(self) -> bool:
        """Whether calls hold control tokens, which must not be left out of the text then."""
        frame = self._format.frame
        text = frame.opening + frame.head + frame.neck + frame.tail + frame.between
        return any(self._tokenizer.token_text(i) in text for i in self._tokenizer.special_ids)

    def parser(self) -> ToolParser:
        return self._format.parser()

    def call_id(self, digest: str) -> str:
        """An id for a call, from hexadecimal digits; some templates accept one form only."""
        return self._format.frame.id_prefix + digest[: self._format.frame.id_digits]

    def template_tools(self, use: ToolUse | None) -> list[dict[str, Any]] | None:
        """What the template is to list, if it does that."""
        return use.definitions if use is not None and self._template_lists_tools else None

    def plain_history(
        self, messages: list[dict[str, Any]], use: ToolUse | None
    ) -> list[dict[str, Any]]:
        """The messages for a template that knows nothing of tools: definitions, calls and results become text."""
        if not self._template_writes_calls:
            messages = [self._without_calls(message) for message in messages]
        if use is None or self._template_lists_tools:
            return messages
        introduction = self._introduction(use)
        if messages and messages[0]["role"] == "system":
            first = messages[0]
            content = f"{first['content']}\n\n{introduction}"
            return [{**first, "content": content}, *messages[1:]]
        return [{"role": "system", "content": introduction}, *messages]

    def grammar(self, use: ToolUse, answer_schema: str | None = None) -> Grammar | None:
        """The grammar that keeps what was promised; None when nothing was.

        `answer_schema` is what an answer that is no call must satisfy.
        """
        if not use.needs_grammar and answer_schema is None:
            return None
        rules = CallRules(
            tools=use.tools,
            is_required=use.is_required,
            allows_many=use.allows_many,
            answer_schema=None if use.is_required else answer_schema,
        )
        return Grammar("lark", call_grammar(rules, self._format.frame, self._control_tokens()))

    def _control_tokens(self) -> dict[str, int]:
        """Control tokens by their text: a grammar must ask for them by number."""
        return {self._tokenizer.token_text(i): i for i in self._tokenizer.special_ids}

    def _introduction(self, use: ToolUse) -> str:
        lines = "\n".join(
            json.dumps(one["function"], ensure_ascii=False) for one in use.definitions
        )
        example = self._format.frame.written([("function-name", '{"argument": "value"}')])
        return f"{INTRODUCTION}{lines}\n\n{HOW_TO_CALL}{example}"

    def _without_calls(self, message: dict[str, Any]) -> dict[str, Any]:
        """One message with its calls written out, or as what the user hands in."""
        if message["role"] == "tool":
            return {"role": "user", "content": RESULT.format(message["content"])}
        calls = message.get("tool_calls")
        if not calls:
            return message
        written = self._format.frame.written([_written(call) for call in calls])
        texts = [text for text in (message["content"], written) if text]
        kept = {key: value for key, value in message.items() if key != "tool_calls"}
        return {**kept, "content": "\n".join(texts)}


def checked_tools(
    definitions: Sequence[Mapping[str, Any]] | None,
    choice: str | Mapping[str, Any] | None,
    allows_many: bool | None = None,
) -> ToolUse | None:
    """Tools and choice in OpenAI's form; None when the model is to use none. InvalidRequestError for what is wrong.

    A choice that names a function is one call of it.
    """
    mode, names = _read_choice(choice)
    is_named = isinstance(choice, Mapping) and _function_name(choice) is not None
    if not definitions:
        if mode == "required":
            raise InvalidRequestError(
                "tool_choice asks for a call, but there are no tools; give some", "tool_choice"
            )
        return None
    check_length("tools", len(definitions), "tools")
    check_depth(list(definitions), "tools")
    tools = [_tool(f"tools[{number}]", one) for number, one in enumerate(definitions)]
    known = [tool.name for tool in tools]
    if len(set(known)) < len(known):
        raise InvalidRequestError("two tools have one name; rename one", "tools")
    for name in names or ():
        if name not in known:
            raise InvalidRequestError(
                f"tool_choice names {name[:100]!r}; the tools are {', '.join(known)[:500]}",
                "tool_choice",
            )
    if mode == "none":
        return None
    return ToolUse(
        tools=tuple(tool for tool in tools if names is None or tool.name in names),
        definitions=[dict(one) for one in definitions],
        is_required=mode == "required",
        allows_many=allows_many is not False and not is_named,
    )


def _tool(where: str, given: Mapping[str, Any]) -> Tool:
    function = given.get("function")
    if given.get("type") != "function" or not isinstance(function, dict):
        raise InvalidRequestError(
            f"{where} is no function; give {{'type': 'function', 'function': {{...}}}}", "tools"
        )
    name, description = function.get("name"), function.get("description")
    parameters = function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{where} needs a name of letters, digits and _ - . : / only", "tools"
        )
    check_length("name", len(name), "tools")
    if description is not None:
        if not isinstance(description, str):
            raise InvalidRequestError(f"{where} has a description that is no text", "tools")
        check_text(description, "tools")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequestError(f"{where} has parameters that are no JSON Schema object", "tools")
    return Tool(name, parameters or {}, function.get("strict") is True)


def _read_choice(
    choice: str | Mapping[str, Any] | None,
) -> tuple[Literal["auto", "none", "required"], list[str] | None]:
    """The mode, and the names of the tools that may be used where only some may."""
    if choice is None or choice == "auto":
        return "auto", None
    if choice == "none":
        return "none", None
    if choice in ("required", "any"):
        return "required", None
    if isinstance(choice, Mapping):
        name = _function_name(choice)
        if name is not None:
            return "required", [name]
        allowed = choice.get("allowed_tools", choice)
        if choice.get("type") == "allowed_tools" and isinstance(allowed, dict):
            listed = allowed.get("tools")
            names = [_function_name(one) for one in listed] if isinstance(listed, list) else []
            found = [name for name in names if name is not None]
            if found and len(found) == len(names) and allowed.get("mode") in ("auto", "required"):
                return allowed["mode"], found
    raise InvalidRequestError(
        "tool_choice is none of 'auto', 'none', 'required' and "
        "{'type': 'function', 'function': {'name': ...}}",
        "tool_choice",
    )


def _function_name(given: object) -> str | None:
    """The function that `{"type": "function", "function": {"name": ...}}` names."""
    if not isinstance(given, Mapping) or given.get("type") != "function":
        return None
    function = given.get("function")
    name = function.get("name") if isinstance(function, Mapping) else given.get("name")
    return name if isinstance(name, str) else None


def _written(call: Mapping[str, Any]) -> tuple[str, str]:
    """Name and arguments of a call in a message."""
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError("a message has a tool call without a function", "messages")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return str(function.get("name", "")), arguments or "{}"
