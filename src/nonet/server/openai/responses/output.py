"""Items of a response's output as the model writes them, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nonet.core.outputs import TokenLogprob
from nonet.gateway.answer import CallDelta
from nonet.server.generation import ChoiceText
from nonet.server.openai.responses.items import Item, new_id

__all__ = ["Event", "Logprobs", "OutputItems"]

Event = dict[str, Any]  # without its sequence number
Logprobs = Callable[[Sequence[TokenLogprob]], list[dict[str, Any]]]


class OutputItems:
    """Thoughts, messages and calls in the order in which they come; one item is open at a time.

    `items` are complete once `close` was called. With `logprobs` the tokens of messages are reported.
    """

    def __init__(self, logprobs: Logprobs | None = None) -> None:
        self._logprobs = logprobs
        self._is_open = False
        self.items: list[Item] = []

    def take(self, piece: ChoiceText) -> list[Event]:
        """A piece: what was thought comes before what was said, and calls come last."""
        events: list[Event] = []
        if piece.thought:
            events += self._write("reasoning", piece.thought, [])
        if piece.text:
            logprobs = self._logprobs(piece.logprobs) if self._logprobs is not None else []
            events += self._write("message", piece.text, logprobs)
        for call in piece.calls:
            events += self._call(call)
        return events

    def close(self, *, is_cut: bool = False) -> list[Event]:
        """End the open item; `is_cut` when the model would have gone on."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self.items[-1]
        item["status"] = "incomplete" if is_cut else "completed"
        done = self._item_event("response.output_item.done", item)
        if item["type"] == "function_call":
            said = {"name": item["name"], "arguments": item["arguments"]}
            return [self._event("response.function_call_arguments.done", said), done]
        part = item["content"][0]
        said = {"content_index": 0, "text": part["text"]}
        if item["type"] == "message":
            ended = self._event("response.output_text.done", {**said, "logprobs": part["logprobs"]})
        else:
            ended = self._event("response.reasoning_text.done", said)
        part_done = self._event("response.content_part.done", {"content_index": 0, "part": part})
        return [ended, part_done, done]

    def _write(self, kind: str, text: str, logprobs: list[dict[str, Any]]) -> list[Event]:
        """More of a message or of a thought."""
        events: list[Event] = []
        if not self._is_open or self.items[-1]["type"] != kind:
            events = self.close() + self._open_text(kind)
        part = self.items[-1]["content"][0]
        part["text"] += text
        delta: dict[str, Any] = {"content_index": 0, "delta": text}
        if kind == "message":
            part["logprobs"] += logprobs
            events.append(
                self._event("response.output_text.delta", {**delta, "logprobs": logprobs})
            )
        else:
            events.append(self._event("response.reasoning_text.delta", delta))
        return events

    def _open_text(self, kind: str) -> list[Event]:
        item: Item = {"id": new_id("msg"), "type": kind, "role": "assistant"}
        if kind == "reasoning":
            item = {"id": new_id("rs"), "type": kind, "summary": []}
        added = self._open({**item, "status": "in_progress", "content": []})
        self.items[-1]["content"] = [_empty_part(kind)]
        shown = {"content_index": 0, "part": _empty_part(kind)}
        return [added, self._event("response.content_part.added", shown)]

    def _call(self, call: CallDelta) -> list[Event]:
        events: list[Event] = []
        if call.call_id:
            item = {
                "id": new_id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": "",
            }
            events = [*self.close(), self._open(item)]
        if call.arguments:
            self.items[-1]["arguments"] += call.arguments
            events.append(
                self._event("response.function_call_arguments.delta", {"delta": call.arguments})
            )
        return events

    def _open(self, item: Item) -> Event:
        self.items.append(item)
        self._is_open = True
        return self._item_event("response.output_item.added", dict(item))  # as it is now; it grows

    def _item_event(self, kind: str, item: Item) -> Event:
        return {"type": kind, "output_index": len(self.items) - 1, "item": item}

    def _event(self, kind: str, fields: dict[str, Any]) -> Event:
        """An event within the last item."""
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}
        return {"type": kind, **place, **fields}


def _empty_part(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
