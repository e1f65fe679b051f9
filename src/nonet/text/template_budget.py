"""What rendering one chat template may use up: time, memory, and the size of any one value."""

from __future__ import annotations

import time
from collections.abc import ItemsView, KeysView, ValuesView
from dataclasses import dataclass

from jinja2.utils import Namespace

__all__ = ["Budget", "TemplateLimitError", "TemplateLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """Far above any real chat, far below what would hurt a server."""

    max_template_chars: int = 128 * 1024
    max_value_chars: int = (
        16 * 1024 * 1024
    )  # of the rendered text, and of any value on the way to it
    max_total_chars: int = 128 * 1024 * 1024  # of all values made in one rendering together
    max_items: int = 1024 * 1024  # of one list
    max_seconds: float = 2.0


class TemplateLimitError(Exception):
    """The template used up its budget."""


class Budget:
    """One rendering's account. Every step of the template passes through here, so it ends soon after the limit.

    No single step can take long, because none is given a value beyond `max_value_chars`. A list that holds one big list
    many times is small in memory and huge as text; `weigh` is what it would come to as text, and that is limited too.
    """

    __slots__ = ("_deadline", "_limits", "_spent", "_weights")

    def __init__(self, limits: TemplateLimits) -> None:
        self._limits = limits
        self._deadline = time.monotonic() + limits.max_seconds
        self._spent = 0
        # id -> (container, weight). Containers never change in the sandbox; being kept here, their ids stay taken.
        self._weights: dict[int, tuple[object, int]] = {}

    def tick(self) -> None:
        """One step of the template."""
        if time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it ran for more than {self._limits.max_seconds:g} s")

    def admit(self, value: object) -> object:
        """Account for a value that a step made, and return it."""
        self.tick()
        if type(value) is str:
            self.reserve(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.reserve_items(len(value))
            self.weigh(value)
        elif isinstance(value, int) and value.bit_length() > 4096:
            raise TemplateLimitError("a number has more than 4096 bits")
        return value

    def reserve(self, num_chars: int) -> None:
        """Refuse a text of that length, or account for it; to be called before it is made where the length is known."""
        if num_chars > self._limits.max_value_chars:
            raise TemplateLimitError(
                f"a text grew beyond {self._limits.max_value_chars} characters"
            )
        self._spend(num_chars)

    def reserve_items(self, num_items: int) -> None:
        """The same for a list."""
        if num_items > self._limits.max_items:
            raise TemplateLimitError(f"a list grew beyond {self._limits.max_items} items")
        self._spend(4 * num_items)

    def weigh(self, value: object) -> int:
        """About how many characters `value` comes to as text; refused when that is too much."""
        if type(value) is str:
            return len(value)
        if isinstance(value, Namespace):
            raise TemplateLimitError("a namespace was put into a list, a map or another namespace")
        if not isinstance(value, (list, tuple, dict, KeysView, ValuesView, ItemsView)):
            return 8
        known = self._weights.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, dict):
            weight = sum(self.weigh(key) + self.weigh(item) for key, item in value.items())
        else:
            weight = sum(self.weigh(item) for item in value)
        return self._weighed(value, weight + 2 * len(value) + 2)

    def weigh_sum(self, left: object, right: object, total: object) -> None:
        """Weigh the concatenation of two lists without walking through them."""
        self._weighed(total, self.weigh(left) + self.weigh(right))

    def text(self, value: object) -> str:
        """`str(value)`, refused while it is still only a promise of a huge text."""
        if type(value) is str:
            return value
        self.reserve(self.weigh(value))
        return str(value)

    def _weighed(self, value: object, weight: int) -> int:
        if weight > self._limits.max_value_chars:
            raise TemplateLimitError(
                f"a value would come to more than {self._limits.max_value_chars} characters"
            )
        self._weights[id(value)] = (value, weight)
        return weight

    def _spend(self, num_chars: int) -> None:
        self._spent += num_chars
        if self._spent > self._limits.max_total_chars:
            raise TemplateLimitError(
                f"it made more than {self._limits.max_total_chars} characters of text in all"
            )
