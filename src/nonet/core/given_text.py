"""A text that a model is measured on: what it reads, and what it is made to say."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GivenText"]


@dataclass(frozen=True, slots=True)
class GivenText:
    """Token ids. With outputs, they are taken one step at a time and are what is looked at; without, the prompt is.

    Reading is fast; being made to say a text goes through everything that happens to a running sequence, such as the
    pruning of its cache.
    """

    prompt_ids: list[int]
    output_ids: list[int]

    @property
    def targets(self) -> list[int]:
        """The tokens whose distributions are looked at; the first of a text has none."""
        return self.output_ids or self.prompt_ids[1:]
