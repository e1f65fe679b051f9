"""Requests of the user's own for the ladder: a JSONL file, one request a line, as a server's log may hold them.

Fields that say where and how a request is sent, not what it asks, are the ladder's to set, and are dropped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nonet.bench.workload import WorkItem, Workload
from nonet.core.errors import ConfigError

__all__ = ["json_rows", "read_jsonl"]

DEFAULT_OUTPUT = 128
OUTPUT_FIELDS = ("max_tokens", "max_completion_tokens")
OWN_FIELDS = ("messages", "arrival_s", *OUTPUT_FIELDS)
DROPPED_FIELDS = ("model", "stream", "stream_options")
# Such an answer ends where its shape does, so its end is not ignored as it is for equal work elsewhere.
SHAPING_FIELDS = (
    "response_format", "tools", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip


def read_jsonl(path: Path) -> Workload:
    """One JSON object a line with `messages`, `max_tokens` (128) and, if known, `arrival_s`; ordered by arrival.

    Other fields go into the request's body. ConfigError names the line that is not understood.
    """
    items = [_item(row, f"{path}, line {number}") for number, row in _numbered(path)]
    if not items:
        raise ConfigError(f"{path} holds no requests; give one JSON object a line")
    return Workload(path.name, tuple(sorted(items, key=lambda item: item.arrival_s)))


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; ConfigError names a line that is none."""
    return (row for _, row in _numbered(path))


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    raise ConfigError(f"{path}, line {number} is not JSON") from None
                if not isinstance(row, dict):
                    raise ConfigError(f"{path}, line {number} is not a JSON object")
                yield number, row
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8") from None


def _item(row: Mapping[str, Any], where: str) -> WorkItem:
    extra = {name: value for name, value in row.items() if name not in OWN_FIELDS + DROPPED_FIELDS}
    if any(extra.get(name) for name in SHAPING_FIELDS):
        extra.setdefault("ignore_eos", False)
    return WorkItem(
        (),
        _output_len(row, where),
        _arrival(row, where),
        messages=_messages(row, where),
        extra=extra,
    )


def _messages(row: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], ...]:
    given = row.get("messages")
    rows = given if isinstance(given, list) else []
    if not rows or not all(
        isinstance(one, dict) and isinstance(one.get("role"), str) for one in rows
    ):
        raise ConfigError(f"{where}: give messages, a list of objects with role and content")
    found = tuple({**one, "content": _text(one.get("content"), where)} for one in rows)
    if found[0]["content"] is None:
        raise ConfigError(f"{where}: the first message has no content; give it as text")
    return found


def _text(content: object, where: str) -> str | None:
    """Text parts are joined, as the server does."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [
        one.get("text") for one in parts if isinstance(one, dict) and one.get("type") == "text"
    ]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"{where}: the content of a message is no text; give a text, or parts of type text"
        )
    return "\n".join(map(str, texts))


def _output_len(row: Mapping[str, Any], where: str) -> int:
    for name in OUTPUT_FIELDS:
        value = row.get(name)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise ConfigError(f"{where}: {name} is {value!r}; give a whole number of at least 1")
        return value
    return DEFAULT_OUTPUT


def _arrival(row: Mapping[str, Any], where: str) -> float:
    value = row.get("arrival_s")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(
            f"{where}: arrival_s is {value!r}; give seconds of at least 0, or leave it out"
        )
    return float(value)
