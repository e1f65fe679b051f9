"""Names to classes, without importing them: an explicit lazy table per seam, and spec strings with knobs.

A spec string is `name` or `name:key=value,key=value`; the keys are the fields of the class's `Config`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from typing import Any, get_type_hints

from nonet.core.errors import ConfigError, UnknownNameError

__all__ = ["Catalogue", "did_you_mean", "parse_spec"]


class Catalogue:
    """Lazy table `name -> "module:Class"` of one seam.

    >>> table = Catalogue("clock", {"fake": "nonet.core.clock:FakeClock"})
    >>> table.load("fake").__name__
    'FakeClock'
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def names(self) -> list[str]:
        return sorted(self._entries)

    def order(self) -> list[str]:
        """The names as the table lists them, where that order means something."""
        return list(self._entries)

    def require(self, name: str) -> None:
        """UnknownNameError, which names the near misses, for a name that is not in the table."""
        if name not in self._entries:
            raise UnknownNameError(
                f"no {self.kind} named {name!r}. {did_you_mean(name, self.names())}"
            )

    def load(self, name: str) -> Any:
        """The class called `name`, which must be in the table."""
        self.require(name)
        module_name, _, attribute = self._entries[name].partition(":")
        return getattr(importlib.import_module(module_name), attribute)

    def build(self, spec: str) -> Any:
        """An object from a spec string: `Class(Class.Config(**knobs))`, or `Class()` when it has no Config."""
        _, cls, config = self.configured(spec)
        return cls() if config is None else cls(config)

    def configured(self, spec: str) -> tuple[str, Any, Any]:
        """Name, class and `Config` of a spec string; None for a class that has no Config."""
        name, knobs = parse_spec(spec)
        cls = self.load(name)
        config_cls = getattr(cls, "Config", None)
        if config_cls is not None:
            return name, cls, _config(self.kind, name, config_cls, knobs)
        if knobs:
            raise ConfigError(
                f"{self.kind} {name!r} takes no options; {spec!r} gives {', '.join(sorted(knobs))}"
            )
        return name, cls, None


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split `name:key=value,...`.

    >>> parse_spec("snapkv:window=32,budget=1024")
    ('snapkv', {'window': '32', 'budget': '1024'})
    """
    name, _, rest = spec.partition(":")
    knobs: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                f"{spec!r}: {part!r} is not key=value; write name:key=value,key=value"
            )
        knobs[key.strip()] = value.strip()
    return name.strip(), knobs


def did_you_mean(given: str, known: list[str]) -> str:
    """The tail of an error message: the near miss, if any, and all that is known."""
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Known: {', '.join(known)}"


def _config(kind: str, name: str, config_cls: type, knobs: dict[str, str]) -> Any:
    types = get_type_hints(config_cls)
    known = sorted(field.name for field in dataclasses.fields(config_cls))
    values: dict[str, Any] = {}
    for key, text in knobs.items():
        if key not in known:
            raise UnknownNameError(
                f"{kind} {name!r} has no option {key!r}. {did_you_mean(key, known)}"
            )
        values[key] = _convert(kind, name, key, text, types[key])
    return config_cls(**values)


def _convert(kind: str, name: str, key: str, text: str, wanted: Any) -> Any:
    if wanted is bool:
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off"):
            return False
        raise ConfigError(f"{kind} {name!r}: option {key} is {text!r}; give true or false")
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            raise ConfigError(
                f"{kind} {name!r}: option {key} is {text!r}; give a {wanted.__name__}"
            ) from None
    return text
