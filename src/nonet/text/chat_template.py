"""A conversation to the text that a model was trained on, by the Jinja2 template that comes with the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError

from nonet.core.errors import (
    ConfigError,
    InvalidRequestError,
    ModelFileError,
    UnsupportedModelError,
)
from nonet.text.template_budget import Budget, TemplateLimitError, TemplateLimits
from nonet.text.template_filters import BudgetContext
from nonet.text.template_sandbox import RefusedByTemplateError, TemplateSandbox
from nonet.text.tokenizer import Tokenizer

__all__ = ["TEMPLATE_KWARGS", "ChatTemplate"]

TEMPLATE_KWARGS: frozenset[str] = frozenset(
    {
        "add_vision_id", "builtin_tools", "citation_mode", "clear_thinking", "custom_tools", "date_string", "documents",
        "enable_thinking", "model_identity", "preserve_thinking", "python_tools", "reasoning_effort", "safety_mode",
        "thinking", "thinking_budget", "tools_in_user_message", "xml_tools",
    }
)  # fmt: skip
"""What a request may set in a template; a closed list, as this door has led to the tokenizer's options elsewhere."""


class ChatTemplate:
    """A compiled template; immutable, `render` may be called from any thread.

    >>> template = ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    >>> template.render([{"role": "user", "content": "hello"}])
    '<user>hello'
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        """`special_tokens` are the template's `bos_token`, `eos_token` and so on. ModelFileError for a bad template."""
        self._limits = limits or TemplateLimits()
        if len(source) > self._limits.max_template_chars:
            raise ModelFileError(
                f"the chat template has {len(source)} characters; at most {self._limits.max_template_chars} are allowed"
            )
        self.source = source
        self._special_tokens = dict(special_tokens or {})
        sandbox = TemplateSandbox(self._limits)
        try:
            self._takes_parts = _loops_over_content(sandbox.parse(source))
            self._template = sandbox.from_string(source)
        except TemplateError as error:
            raise ModelFileError(f"the chat template is not valid: {error}") from None
        except (SyntaxError, RecursionError, MemoryError):
            raise ModelFileError("the chat template is nested too deeply") from None

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, file: Path | None = None) -> ChatTemplate:
        """The template in `file`, else the model's own; UnsupportedModelError for a model without one.

        A base model was never trained on conversations, so none is made up for it.
        """
        if file is not None:
            try:
                source = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"the chat template {file} cannot be read: {error}") from None
            return cls(source, tokenizer.special_tokens)
        if tokenizer.chat_template is None:
            raise UnsupportedModelError(
                "the model has no chat template, so it knows no conversations. Use text completion, or give a "
                "template file that fits the model"
            )
        return cls(tokenizer.chat_template, tokenizer.special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages, in OpenAI's form; begin and end of sequence are in it where they belong.

        Content given as a list of text parts is joined by newlines, unless the template takes parts itself. Arguments
        of tool calls, which are JSON in a string, are handed to the template as the object they describe. Raises
        InvalidRequestError when the template refuses the messages or exceeds its limits.
        """
        variables: dict[str, Any] = dict(self._special_tokens)
        variables |= _checked_kwargs(template_kwargs or {})
        try:
            plain = [_plain(message) for message in messages]
            variables |= {
                "messages": [self._prepare(message, i) for i, message in enumerate(plain)],
                "tools": None if tools is None else _plain(tools),
                "add_generation_prompt": add_generation_prompt,
            }
            return self._run(variables)
        except RefusedByTemplateError as error:
            raise InvalidRequestError(
                f"the model's chat template refuses this: {error}", "messages"
            ) from None
        except TemplateLimitError as error:
            raise InvalidRequestError(
                f"the chat template was stopped: {error}", "messages"
            ) from None
        except RecursionError:
            raise InvalidRequestError(
                "messages or chat template are nested too deeply", "messages"
            ) from None
        except (
            TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, MemoryError,
        ) as error:  # fmt: skip
            # Whatever the template's expressions can raise on messages that they were not written for.
            raise InvalidRequestError(
                f"the model's chat template cannot take these messages: {str(error)[:500]}",
                "messages",
            ) from None

    def _run(self, variables: dict[str, Any]) -> str:
        context = self._template.new_context(variables)
        assert isinstance(context, BudgetContext)
        context.budget = Budget(self._limits)
        pieces: list[str] = []
        num_chars = 0
        for piece in self._template.root_render_func(context):
            num_chars += len(piece)
            if num_chars > self._limits.max_value_chars:
                raise TemplateLimitError(
                    f"the prompt grew beyond {self._limits.max_value_chars} characters"
                )
            pieces.append(piece)
        return "".join(pieces)

    def _prepare(self, message: Any, index: int) -> dict[str, Any]:
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidRequestError(f"{where} is not an object", "messages")
        content = message.get("content")
        if isinstance(content, list) and not self._takes_parts:
            message["content"] = "\n".join(_part_text(part, where) for part in content)
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                function["arguments"] = _parsed_arguments(function["arguments"], where)
        return message


def _checked_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name not in TEMPLATE_KWARGS:
            raise InvalidRequestError(
                f"chat_template_kwargs has {name!r}; allowed are {', '.join(sorted(TEMPLATE_KWARGS))}",
                "chat_template_kwargs",
            )
    try:
        return {name: _plain(value) for name, value in kwargs.items()}
    except RecursionError:
        raise InvalidRequestError(
            "chat_template_kwargs is nested too deeply", "chat_template_kwargs"
        ) from None


def _plain(value: Any) -> Any:
    """A copy made of JSON's types alone: a template must never get hold of an object with methods of its own."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise InvalidRequestError(
        f"a message holds a {type(value).__name__}, which is no JSON value", "messages"
    )


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise InvalidRequestError(
        f"{where}.content has a part of type {kind!r}; this model takes text only", "messages"
    )


def _parsed_arguments(text: str, where: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        raise InvalidRequestError(
            f"{where}.tool_calls has function arguments that are not valid JSON", "messages"
        ) from None


def _loops_over_content(template: nodes.Template) -> bool:
    """Whether the template walks through the parts of a message's content, directly or by a name set to it."""
    names = {
        assign.target.name
        for assign in template.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(_unfiltered(assign.node))
    }
    walked = [_unfiltered(loop.iter) for loop in template.find_all(nodes.For)]
    return any(
        _is_content(node) or (isinstance(node, nodes.Name) and node.name in names)
        for node in walked
    )


def _unfiltered(node: nodes.Node) -> nodes.Node:
    while isinstance(node, nodes.Filter) and node.node is not None:
        node = node.node
    return node


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return (
        isinstance(node, nodes.Getitem)
        and isinstance(node.arg, nodes.Const)
        and node.arg.value == "content"
    )
