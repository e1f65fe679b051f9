"""What a model thinks before it answers, told from the answer.

Models that think put it between two marks at the beginning of the output. Some templates write the opening mark
themselves, as the end of the prompt; the output then begins inside.
"""

from __future__ import annotations

from dataclasses import dataclass

from nonet.server.parse.base import Said

__all__ = ["THOUGHT_FORMATS", "Thought", "ThoughtFormat", "ThoughtParser", "detected_thoughts"]


@dataclass(frozen=True, slots=True)
class Thought:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ThoughtFormat:
    """The marks around thoughts."""

    opening: str
    closing: str

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt leaves the model inside.

        >>> ThoughtFormat("<think>", "</think>").is_open("<|im_start|>assistant\\n<think>\\n")
        True
        """
        return prompt.rstrip().endswith(self.opening)


THOUGHT_FORMATS = {
    "think": ThoughtFormat("<think>", "</think>"),
    "bracketed": ThoughtFormat("[THINK]", "[/THINK]"),
    "seed": ThoughtFormat("<seed:think>", "</seed:think>"),
}


def detected_thoughts(template: str) -> ThoughtFormat | None:
    """The format whose marks a chat template knows; None for a model that was not taught to think.

    >>> detected_thoughts("{{ '<think>\\n\\n</think>' }}").opening
    '<think>'
    """
    return next((one for one in THOUGHT_FORMATS.values() if one.closing in template), None)


class ThoughtParser:
    """Reads one choice. Text is held back only while it may be part of a mark, or a line break beside one.

    >>> parser = ThoughtParser(THOUGHT_FORMATS["think"])
    >>> parser.feed("<think>\\nhm"), parser.feed("\\n</think>\\n\\nYes"), parser.finish()
    ([Thought(text='hm')], [Said(text='Yes')], [])
    """

    def __init__(self, form: ThoughtFormat, *, is_open: bool = False) -> None:
        self._form = form
        self._held = ""
        self._state = "inside" if is_open else "start"
        self.has_begun = is_open  # there was an opening mark
        self._is_edge = True  # nothing of this part was given yet, so white space is dropped

    @property
    def is_thinking(self) -> bool:
        """Whether the next text may be a thought."""
        return self._state in ("start", "inside")

    def feed(self, text: str) -> list[Thought | Said]:
        self._held += text
        events: list[Thought | Said] = []
        if self._state == "start":
            self._begin()
        if self._state == "inside":
            events += self._think()
        if self._state == "after":
            said = self._held.lstrip() if self._is_edge else self._held
            self._held = ""
            if said:
                self._is_edge = False
                events.append(Said(said))
        return events

    def finish(self) -> list[Thought | Said]:
        held, self._held = self._held, ""
        if self._state == "start":
            return [Said(held)] if held else []
        held = held.strip() if self._is_edge else held.rstrip()
        return [Thought(held)] if held and self._state == "inside" else []

    def _begin(self) -> None:
        """Whether the output begins with the opening mark, as soon as that can be known."""
        text, opening = self._held.lstrip(), self._form.opening
        if text.startswith(opening):
            self._state, self._held = "inside", text[len(opening) :]
            self.has_begun = True
        elif not opening.startswith(text):
            self._state, self._is_edge = "after", False

    def _think(self) -> list[Thought | Said]:
        thought, mark, rest = self._held.partition(self._form.closing)
        if mark:
            thought, self._held = thought.rstrip(), rest
        else:
            keep = _overlap(thought, self._form.closing)
            certain = thought[: len(thought) - keep].rstrip()
            thought, self._held = certain, thought[len(certain) :]
        if self._is_edge:
            thought = thought.lstrip()
        self._is_edge = self._is_edge and not thought
        if mark:
            self._state, self._is_edge = "after", True
        return [Thought(thought)] if thought else []


def _overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    return next((size for size in range(len(mark) - 1, 0, -1) if text.endswith(mark[:size])), 0)
