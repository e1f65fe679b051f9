"""Calls as Llama 3 writes them: the whole answer is a JSON object with `name` and `parameters`.

Idea: `{"name": ..., "parameters": {...}}`, several with semicolons between; <|python_tag|> may stand in front. An
answer that begins otherwise holds no call.
Reference: the prompt formats and chat templates of Llama 3.1 and 3.2.
Cost: nothing to speak of.
Good for: Llama 3.1 and later.
Conflicts: none.
"""

from __future__ import annotations

from nonet.server.parse.base import Frame, ToolParser
from nonet.server.parse.leading import LeadingParser

__all__ = ["Llama3"]


class Llama3:
    """JSON objects from the first character on."""

    frame = Frame(
        sign="{",
        head='{"name": "',
        neck='", "parameters": ',
        tail="}",
        between="; ",
        at_start=True,
    )

    def parser(self) -> ToolParser:
        return LeadingParser(prefix="<|python_tag|>")
