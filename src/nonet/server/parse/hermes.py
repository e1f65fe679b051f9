"""Calls as Hermes, Qwen and SmolLM2 write them: JSON in <tool_call> tags, between texts.

Idea: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, once per call; SmolLM2 was taught a list in one pair
of tags, which is read as well.
Reference: github.com/NousResearch/Hermes-Function-Calling; the chat templates of Qwen2.5.
Cost: nothing to speak of.
Good for: Hermes 2 and 3, Qwen2.5 and 3, SmolLM2, and models that know no format.
Conflicts: none.
"""

from __future__ import annotations

from nonet.server.parse.base import Frame, ToolParser
from nonet.server.parse.tagged import CallList, TaggedParser

__all__ = ["Hermes"]


class Hermes:
    """<tool_call> tags."""

    frame = Frame(
        sign="<tool_call>",
        head='<tool_call>\n{"name": "',
        neck='", "arguments": ',
        tail="}\n</tool_call>",
        between="\n",
    )

    def parser(self) -> ToolParser:
        return TaggedParser("<tool_call>", lambda: CallList("</tool_call>"))
