"""A response as a stream: every change of its state and its items is an event with a number."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import orjson

from nonet.core.errors import NonetError
from nonet.server.errors import event_of
from nonet.server.generation import ChoiceText, Generation, Usage
from nonet.server.openai.responses.answer import ResponseHead, Status
from nonet.server.openai.responses.output import Event, OutputItems

__all__ = ["ResponseEvents"]

FAILURE_CODES = {"rate_limit_error": "rate_limit_exceeded"}


class ResponseEvents:
    """Events of one stream. They end with response.completed, response.incomplete or response.failed."""

    def __init__(self, head: ResponseHead, output: OutputItems, generation: Generation) -> None:
        self._head = head
        self._output = output
        self._generation = generation  # for the usage at the end
        self._number = 0
        self._status: Status = "completed"

    def opening(self, usage: Usage) -> bytes:
        begun = self._head.response("in_progress", [])
        return self._written(
            [
                {"type": "response.created", "response": begun},
                {"type": "response.in_progress", "response": begun},
            ]
        )

    def piece(self, piece: ChoiceText) -> bytes:
        events = self._output.take(piece)
        if piece.finish_reason is not None:
            is_cut = piece.finish_reason == "length"
            self._status = "incomplete" if is_cut else "completed"
            events += self._output.close(is_cut=is_cut)
        return self._written(events)

    @cached_property
    def response(self) -> dict[str, Any]:
        """The whole of it; first asked for once the last piece was taken."""
        return self._head.response(self._status, self._output.items, self._generation.usage)

    def ending(self, usage: Usage) -> bytes:
        return self._written([{"type": f"response.{self._status}", "response": self.response}])

    def failure(self, error: NonetError) -> bytes:
        told = orjson.loads(event_of(error))["error"]
        reason = {
            "code": FAILURE_CODES.get(told["type"], "server_error"),
            "message": told["message"],
        }
        events = self._output.close(is_cut=True)
        failed = self._head.response("failed", self._output.items, error=reason)
        return self._written([*events, {"type": "response.failed", "response": failed}])

    def _written(self, events: list[Event]) -> bytes:
        blocks = []
        for event in events:
            kind = event["type"].encode()
            body = orjson.dumps({**event, "sequence_number": self._number})
            blocks.append(b"event: " + kind + b"\ndata: " + body + b"\n\n")
            self._number += 1
        return b"".join(blocks)
