"""From the text of an answer's choices to text and tool calls, piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from nonet.gateway.answer import CallDelta, ChoiceText
from nonet.server.parse.base import Arguments, CallBegin, Event, Said, ToolParser

__all__ = ["CallFinder", "whole_calls"]


class CallFinder:
    """One parser per choice. A call's id follows from the answer's name, so a replayed answer repeats it."""

    def __init__(
        self, parsers: Sequence[ToolParser], name: str, call_id: Callable[[str], str]
    ) -> None:
        self._parsers = parsers
        self._name = name
        self._call_id = call_id
        self._num_calls = [0] * len(parsers)

    def split(self, piece: ChoiceText) -> ChoiceText:
        """The piece with its calls taken out of the text; the one given stays as it is."""
        parser = self._parsers[piece.choice]
        events = parser.feed(piece.text) if piece.text else []
        if piece.finish_reason is not None:
            events += parser.finish()
        text = "".join([event.text for event in events if isinstance(event, Said)])
        calls = self._calls(piece.choice, events)
        ends = piece.finish_reason == "stop" and self._num_calls[piece.choice] > 0
        return msgspec.structs.replace(piece, text=text, calls=calls, ends_in_calls=ends)

    def _calls(self, choice: int, events: Sequence[Event]) -> list[CallDelta]:
        """One delta per call that the events belong to."""
        found: dict[int, CallDelta] = {}
        for event in events:
            if isinstance(event, CallBegin):
                index = self._num_calls[choice]
                self._num_calls[choice] += 1
                found[index] = CallDelta(index, self._new_id(choice, index), event.name)
            elif isinstance(event, Arguments):
                index = self._num_calls[choice] - 1
                found.setdefault(index, CallDelta(index)).arguments += event.text
        return list(found.values())

    def _new_id(self, choice: int, index: int) -> str:
        seed = f"{self._name}/{choice}/{index}"
        return self._call_id(hashlib.sha256(seed.encode()).hexdigest())


def whole_calls(deltas: Sequence[CallDelta]) -> list[CallDelta]:
    """One complete entry per call."""
    found: dict[int, CallDelta] = {}
    for delta in deltas:
        call = found.setdefault(delta.index, CallDelta(delta.index, delta.call_id, delta.name))
        call.arguments += delta.arguments
    return list(found.values())
