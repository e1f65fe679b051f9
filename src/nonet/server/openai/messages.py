"""Messages of a chat, checked and made into what a chat template takes."""

from __future__ import annotations

from typing import Any

from nonet.core.errors import InvalidRequestError
from nonet.server.limits import check_depth, check_length
from nonet.server.openai.schemas import ChatMessage, ContentPart
from nonet.server.prompts import check_text

__all__ = ["template_messages"]

ROLES = ("system", "developer", "user", "assistant", "tool")


def template_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as plain dicts: parts joined, `developer` as `system`."""
    check_length("messages", len(messages), "messages")
    if not messages:
        raise InvalidRequestError("messages is empty; give at least one message", "messages")
    return [_template_message(number, message) for number, message in enumerate(messages)]


def _template_message(number: int, message: ChatMessage) -> dict[str, Any]:
    where = f"messages[{number}]"
    if message.role not in ROLES:
        raise InvalidRequestError(
            f"{where} has role {message.role[:50]!r}; allowed: {', '.join(ROLES)}", "messages"
        )
    content = message.content
    text = _joined(where, content) if isinstance(content, list) else content
    if text is None and message.role != "assistant":
        raise InvalidRequestError(f"{where} has no content; give a text", "messages")
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text or "",
    }
    for field, value in (("name", message.name), ("tool_call_id", message.tool_call_id)):
        if value is not None:
            check_length("name", len(value), "messages")
            plain[field] = value
    if message.reasoning_content and message.role == "assistant":
        check_text(message.reasoning_content, "messages")
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        check_length("tool_calls", len(message.tool_calls), "messages")
        check_depth(message.tool_calls, "messages")
        plain["tool_calls"] = message.tool_calls
    if text is not None:
        check_text(text, "messages")
    return plain


def _joined(where: str, parts: list[ContentPart]) -> str:
    check_length("content_parts", len(parts), "messages")
    texts: list[str] = []
    for part in parts:
        if part.type != "text":
            raise InvalidRequestError(
                f"{where} has a part of type {part.type[:50]!r}; this server takes text parts only",
                "messages",
            )
        if part.text is None:
            raise InvalidRequestError(f"{where} has a text part without text", "messages")
        texts.append(part.text)
    return "\n".join(texts)
