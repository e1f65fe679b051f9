"""Items of a conversation: as a client gives them, as they are stored, and as messages for a chat template."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.server.limits import check_length, check_text
from nonet.server.openai.responses.schemas import InputItem, Part

__all__ = ["Item", "given_items", "item_messages", "new_id"]

Item = dict[str, Any]  # in the API's own form, complete: what is stored and shown

ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def given_items(given: str | list[InputItem] | None) -> list[Item]:
    """The input, checked and complete: a text is a message of the user, every item has an id and a status."""
    if given is None or given == "" or given == []:
        raise InvalidRequestError("input is empty; give a text or a list of items", "input")
    if isinstance(given, str):
        check_text(given, "input")
        return [_message("user", given, None)]
    check_length("items", len(given), "input")
    return [_item(f"input[{number}]", item) for number, item in enumerate(given)]


def item_messages(instructions: str | None, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The conversation in the form that chat templates take. Calls join the message that they follow."""
    messages: list[dict[str, Any]] = []
    if instructions:
        check_text(instructions, "instructions")
        messages.append({"role": "system", "content": instructions})
    thought = ""
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            thought = "\n".join(part["text"] for part in item.get("content") or item["summary"])
            continue
        if kind == "function_call_output":
            messages.append(
                {"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]}
            )
        elif kind == "function_call":
            _add_call(messages, item, thought)
        else:
            text = "\n".join(part["text"] for part in item["content"])
            role = "system" if item["role"] == "developer" else item["role"]
            message = {"role": role, "content": text}
            if thought and role == "assistant":
                message["reasoning_content"] = thought
            messages.append(message)
        thought = ""
    return messages


def _add_call(messages: list[dict[str, Any]], item: Item, thought: str) -> None:
    call = {
        "id": item["call_id"],
        "type": "function",
        "function": {"name": item["name"], "arguments": item["arguments"]},
    }
    last = messages[-1] if messages else None
    if last is None or last["role"] != "assistant" or thought:
        last = {"role": "assistant", "content": ""}
        if thought:
            last["reasoning_content"] = thought
        messages.append(last)
    last["tool_calls"] = [*last.get("tool_calls", ()), call]


def _item(where: str, given: InputItem) -> Item:
    kind = given.type or "message"
    read = _READERS.get(kind)
    if read is None:
        raise InvalidRequestError(
            f"{where} has type {kind[:50]!r}; this server takes {', '.join(_READERS)}", "input"
        )
    for name in (given.id, given.call_id, given.name):
        if name is not None:
            check_length("name", len(name), "input")
            check_text(name, "input")
    return read(where, given)


def _read_message(where: str, given: InputItem) -> Item:
    if given.role not in ROLES:
        raise InvalidRequestError(
            f"{where} has role {str(given.role)[:50]!r}; allowed: {', '.join(ROLES)}", "input"
        )
    if given.content is None:
        raise InvalidRequestError(f"{where} has no content; give a text", "input")
    return _message(given.role, _text(where, given.content), given.id)


def _read_call(where: str, given: InputItem) -> Item:
    if given.call_id is None or given.name is None or given.arguments is None:
        raise InvalidRequestError(
            f"{where} is a function_call without call_id, name or arguments", "input"
        )
    check_text(given.arguments, "input")
    return {
        "id": given.id or new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "call_id": given.call_id,
        "name": given.name,
        "arguments": given.arguments,
    }


def _read_output(where: str, given: InputItem) -> Item:
    if given.call_id is None or given.output is None:
        raise InvalidRequestError(
            f"{where} is a function_call_output without call_id or output", "input"
        )
    return {
        "id": given.id or new_id("fco"),
        "type": "function_call_output",
        "status": "completed",
        "call_id": given.call_id,
        "output": _text(where, given.output),
    }


def _read_reasoning(where: str, given: InputItem) -> Item:
    content = _text(where, given.content or [])
    summary = [
        {"type": "summary_text", "text": _text(where, [part])} for part in given.summary or ()
    ]
    return {
        "id": given.id or new_id("rs"),
        "type": "reasoning",
        "summary": summary,
        "content": [{"type": "reasoning_text", "text": content}] if content else [],
    }


_READERS: dict[str, Callable[[str, InputItem], Item]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_output,
    "reasoning": _read_reasoning,
}


def _message(role: str, text: str, item_id: str | None) -> Item:
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    else:
        part = {"type": "input_text", "text": text}
    return {
        "id": item_id or new_id("msg"),
        "type": "message",
        "status": "completed",
        "role": role,
        "content": [part],
    }


def _text(where: str, content: str | list[Part]) -> str:
    if isinstance(content, str):
        check_text(content, "input")
        return content
    check_length("content_parts", len(content), "input")
    texts = []
    for part in content:
        if part.type not in TEXT_PARTS:
            raise InvalidRequestError(
                f"{where} has a part of type {part.type[:50]!r}; this server takes text only",
                "input",
            )
        if part.text is None:
            raise InvalidRequestError(f"{where} has a part without text", "input")
        check_text(part.text, "input")
        texts.append(part.text)
    return "\n".join(texts)
