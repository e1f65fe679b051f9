"""What a tool format must answer, and what its parser finds.

A parser gets the text of one choice in any pieces and gives events whose joined content does not depend on how the text
was cut. Text is held back only while it may still be the beginning of a call. Model output is never evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Arguments", "CallBegin", "Event", "Frame", "Said", "ToolFormat", "ToolParser"]


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is meant for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of the function `name` begins; its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the current call's arguments, as JSON text."""

    text: str


Event = Said | CallBegin | Arguments


class ToolParser(Protocol):
    """Reads one choice."""

    def feed(self, text: str) -> list[Event]:
        """What became certain with this text."""
        ...

    def finish(self) -> list[Event]:
        """What was held back; the text is complete. Call it once."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """The text around calls: `opening`, then for each call `head` name `neck` arguments `tail`, with `between` between
    calls, then `closing`. The arguments are JSON.

    `sign` is how a call makes itself known, the beginning of `opening` and `head`. With `at_start` a text either begins
    with it or holds no call. Ids of calls are `id_prefix` and `id_digits` hexadecimal digits.
    """

    sign: str
    head: str
    neck: str
    tail: str
    opening: str = ""
    between: str = ""
    closing: str = ""
    at_start: bool = False
    id_prefix: str = "call_"
    id_digits: int = 24

    def written(self, calls: list[tuple[str, str]]) -> str:
        """The text of calls, each a name and its arguments as JSON.

        >>> Frame("<", "<f>", ":", "</f>", between=" ").written([("a", "{}"), ("b", "{}")])
        '<f>a:{}</f> <f>b:{}</f>'
        """
        texts = [f"{self.head}{name}{self.neck}{arguments}{self.tail}" for name, arguments in calls]
        return self.opening + self.between.join(texts) + self.closing


class ToolFormat(Protocol):
    """How one family of models writes calls."""

    @property
    def frame(self) -> Frame:
        """How a call is written when a grammar holds the model to it, and in the history of a conversation."""
        ...

    def parser(self) -> ToolParser: ...
