"""Typed reading of values that a model file gives: each is checked for its type and range before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from nonet.core.errors import ModelFileError

__all__ = ["Fields"]

MAX_INTEGER = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Fields:
    """A table of untyped values; `where` begins every complaint. A missing value and null are the same.

    >>> Fields({"heads": 9}, "config.json").integer("heads")
    9
    """

    values: Mapping[str, object]
    where: str

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, low: int = 1, high: int = MAX_INTEGER) -> int:
        value = self._given(key)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise self._wrong(key, "a whole number")
        if not low <= value <= high:
            raise self._wrong(key, f"a number from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int = 1, high: int = MAX_INTEGER) -> int | None:
        return self.integer(key, low, high) if self.has(key) else None

    def number(self, key: str, low: float = 0.0, high: float = 1e30) -> float:
        """A finite number above or equal to `low`."""
        value = self._given(key)
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise self._wrong(key, "a finite number")
        if not low <= value <= high:  # type: ignore[operator]
            raise self._wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)  # type: ignore[arg-type]

    def optional_number(self, key: str, low: float = 0.0, high: float = 1e30) -> float | None:
        return self.number(key, low, high) if self.has(key) else None

    def boolean(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str) -> str:
        value = self._given(key)
        if type(value) is not str:
            raise self._wrong(key, "a string")
        return value

    def table(self, key: str) -> Fields:
        """A nested table; empty where there is none."""
        value = self.values.get(key)
        if value is None:
            return Fields({}, f"{self.where}: {key}")
        if not isinstance(value, dict):
            raise self._wrong(key, "a table")
        return Fields(value, f"{self.where}: {key}")

    def items(self, key: str) -> list[object]:
        """A list; a single value counts as a list of one, and none as an empty list."""
        value = self.values.get(key)
        if value is None:
            return []
        return value if isinstance(value, list) else [value]

    def token_ids(self, key: str, below: int = MAX_INTEGER) -> list[int]:
        """One id or a list of ids, all `below` a bound; a negative one, written for "none", is left out."""
        ids: list[int] = []
        for item in self.items(key):
            if type(item) is not int or item >= below:
                raise self._wrong(key, f"a token id (or a list of them) below {below}")
            if item >= 0:
                ids.append(item)
        return ids

    def _given(self, key: str) -> object:
        value = self.values.get(key)
        if value is None:
            raise ModelFileError(f"{self.where} does not give {key}")
        return value

    def _wrong(self, key: str, wanted: str) -> ModelFileError:
        shown = repr(self.values[key])
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelFileError(f"{self.where}: {key} is {shown}; {wanted} is needed")
