"""System prompt, messages and tools of Anthropic's form, checked and made into what a chat template takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.server.anthropic.schemas import Block, Message, Prompt, ToolChoice
from nonet.server.limits import check_depth, check_length, check_text
from nonet.server.tools import ToolUse, checked_tools

__all__ = ["asked_tools", "continued_text", "template_messages", "tool_use"]

ROLES = ("user", "assistant", "system")
HIDDEN = ("thinking", "redacted_thinking")
MODES = {"auto": "auto", "any": "required", "none": "none"}  # of tool_choice, in OpenAI's words


def template_messages(
    system: str | list[Block] | None, messages: Sequence[Message]
) -> list[dict[str, Any]]:
    """OpenAI's form of the conversation: text joined, neighbours of one role made one, tool results as turns."""
    check_length("messages", len(messages), "messages")
    if not messages:
        raise InvalidRequestError("messages is empty; give at least one message", "messages")
    plain: list[dict[str, Any]] = []
    system_text = _system_text(system)
    if system_text:
        plain.append({"role": "system", "content": system_text})
    for number, message in enumerate(messages):
        for turn in _turns(f"messages[{number}]", message):
            _append(plain, turn)
    return plain


def continued_text(messages: Sequence[Message]) -> str | None:
    """The text of a last assistant message, which the model is to continue; None where a user spoke last."""
    last = messages[-1]
    if last.role != "assistant":
        return None
    blocks = _blocks(last.content)
    if any(block.type == "tool_use" for block in blocks):
        raise InvalidRequestError(
            "the last message is a call of a tool; give its tool_result in a user message",
            "messages",
        )
    text = _joined("the last message", blocks)
    if not text or text != text.rstrip():
        raise InvalidRequestError(
            "the last assistant message is empty or ends in whitespace, so it cannot be continued",
            "messages",
        )
    return text


def tool_use(body: Prompt) -> ToolUse | None:
    """How the answer may use tools; InvalidRequestError for what is wrong with them or with the choice."""
    choice = body.tool_choice
    allows_many = None if choice is None else not choice.disable_parallel_tool_use
    return checked_tools(asked_tools(body), _choice(choice), allows_many)


def asked_tools(body: Prompt) -> list[dict[str, Any]]:
    """The tools in OpenAI's form; InvalidRequestError for those that a server would have to run."""
    tools = body.tools or []
    check_length("tools", len(tools), "tools")
    check_depth(tools, "tools")
    return [_tool(f"tools[{number}]", tool) for number, tool in enumerate(tools)]


def _choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    if choice.type == "tool" and choice.name is not None:
        return {"type": "function", "function": {"name": choice.name}}
    if choice.type not in MODES:
        raise InvalidRequestError(
            f"tool_choice has type {choice.type[:50]!r}; allowed: {', '.join(MODES)}, and tool with a name",
            "tool_choice",
        )
    return MODES[choice.type]


def _tool(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    kind, name, schema = tool.get("type"), tool.get("name"), tool.get("input_schema")
    if kind not in (None, "custom"):
        raise InvalidRequestError(
            f"{where} has type {str(kind)[:50]!r}; this server takes tools that the client runs, type 'custom'",
            "tools",
        )
    if not isinstance(name, str) or not name or not isinstance(schema, dict):
        raise InvalidRequestError(f"{where} needs a name and an input_schema object", "tools")
    check_length("name", len(name), "tools")
    description = tool.get("description")
    function: dict[str, Any] = {"name": name, "parameters": schema}
    if tool.get("strict") is True:
        function["strict"] = True
    if isinstance(description, str):
        check_text(description, "tools")
        function["description"] = description
    return {"type": "function", "function": function}


def _system_text(system: str | list[Block] | None) -> str:
    if system is None:
        return ""
    text = _joined("system", _blocks(system))
    check_text(text, "system")
    return text


def _turns(where: str, message: Message) -> list[dict[str, Any]]:
    """One message as turns of a template: results of tools before the user's own words."""
    if message.role not in ROLES:
        raise InvalidRequestError(
            f"{where} has role {message.role[:50]!r}; allowed: {', '.join(ROLES)}", "messages"
        )
    blocks = _blocks(message.content)
    check_length("content_parts", len(blocks), "messages")
    calls = [block for block in blocks if block.type == "tool_use"]
    results = [block for block in blocks if block.type == "tool_result"]
    said = [block for block in blocks if block.type not in ("tool_use", "tool_result", *HIDDEN)]
    text = _joined(where, said)
    if calls and message.role != "assistant":
        raise InvalidRequestError(
            f"{where} has a tool_use block, but role {message.role}", "messages"
        )
    if message.role == "user":
        turns = [_result(where, block) for block in results]
        return [*turns, {"role": "user", "content": text}] if said or not results else turns
    if results:
        raise InvalidRequestError(
            f"{where} has a tool_result block, but role {message.role}", "messages"
        )
    turn: dict[str, Any] = {"role": message.role, "content": text}
    thought = "\n".join(block.thinking for block in blocks if block.thinking)
    if thought and message.role == "assistant":
        check_text(thought, "messages")
        turn["reasoning_content"] = thought  # for templates that tell it
    if calls:
        check_length("tool_calls", len(calls), "messages")
        turn["tool_calls"] = [_call(where, block) for block in calls]
    return [turn]


def _call(where: str, block: Block) -> dict[str, Any]:
    if block.id is None or block.name is None or block.input is None:
        raise InvalidRequestError(f"{where} has a tool_use without id, name or input", "messages")
    for name in (block.id, block.name):
        check_length("name", len(name), "messages")
    check_depth(block.input, "messages")
    return {
        "id": block.id,
        "type": "function",
        "function": {"name": block.name, "arguments": block.input},
    }


def _result(where: str, block: Block) -> dict[str, Any]:
    if block.tool_use_id is None:
        raise InvalidRequestError(f"{where} has a tool_result without tool_use_id", "messages")
    check_length("name", len(block.tool_use_id), "messages")
    blocks = _blocks(block.content or "")
    check_length("content_parts", len(blocks), "messages")
    text = _joined(where, blocks)
    return {
        "role": "tool",
        "content": f"Error: {text}" if block.is_error else text,
        "tool_call_id": block.tool_use_id,
    }


def _blocks(content: str | list[Block]) -> list[Block]:
    return [Block(type="text", text=content)] if isinstance(content, str) else content


def _joined(where: str, blocks: Sequence[Block]) -> str:
    texts: list[str] = []
    for block in blocks:
        if block.type != "text":
            raise InvalidRequestError(
                f"{where} has a block of type {block.type[:50]!r}, which this server cannot take here; give text",
                "messages",
            )
        if block.text is None:
            raise InvalidRequestError(f"{where} has a text block without text", "messages")
        check_text(block.text, "messages")
        texts.append(block.text)
    return "\n".join(texts)


def _append(plain: list[dict[str, Any]], turn: dict[str, Any]) -> None:
    """Add a turn; one by the speaker of the last becomes a part of it."""
    last = plain[-1] if plain else None
    if last is None or last["role"] != turn["role"] or turn["role"] not in ROLES:
        plain.append(turn)
        return
    last["content"] = "\n".join(text for text in (last["content"], turn["content"]) if text)
    if "tool_calls" in turn:
        last["tool_calls"] = [*last.get("tool_calls", ()), *turn["tool_calls"]]
