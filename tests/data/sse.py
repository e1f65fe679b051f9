"""Server-sent events as tests read them."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["order", "parse_events"]


def parse_events(text: str) -> list[tuple[str, Any]]:
    """(event name, data) of each event; comments are left out, data that is no JSON stays text."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line[0] != ":")
        if "data" in fields:
            data = fields["data"].strip()
            events.append((fields.get("event", ""), json.loads(data) if data[0] == "{" else data))
    return events


def order(events: list[tuple[str, Any]]) -> list[str]:
    """Names of the events without pings; a run of equal ones is one."""
    names = [name for name, _ in events if name != "ping"]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
