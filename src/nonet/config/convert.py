"""One value of one option: from text, TOML or Python to its type, or a sentence that says what is allowed."""

from __future__ import annotations

import os
import types
from typing import Any, Literal, get_args, get_origin

import msgspec

from nonet.config.options import Option
from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError

__all__ = ["allowed", "as_text", "convert"]

_YES = ("true", "1", "yes", "on")
_NO = ("false", "0", "no", "off")


def convert(option: Option, value: object, source: str, is_text: bool) -> object:
    """`value` as the option's type; text comes from the environment and is parsed. ConfigError names the source."""
    if is_text:
        assert isinstance(value, str)
        value = _parse(option.type, value)
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    try:
        typed: object = msgspec.convert(value, option.type, strict=not is_text)
    except msgspec.ValidationError:
        raise ConfigError(_refusal(option, value, source)) from None
    if isinstance(typed, int | float) and not isinstance(typed, bool):
        below = option.doc.minimum is not None and typed < option.doc.minimum
        above = option.doc.maximum is not None and typed > option.doc.maximum
        if below or above or typed != typed:
            raise ConfigError(_refusal(option, value, source))
    return typed


def allowed(option: Option) -> str:
    """What an option accepts, for messages and help.

    >>> from nonet.config.options import options
    >>> allowed(options()["port"])
    'an integer from 0 to 65535'
    """
    kinds = [kind for kind in _alternatives(option.type) if kind is not type(None)]
    return " or ".join(_kind(kind) for kind in kinds) + _bounds(option)


def as_text(value: object) -> str:
    """A value as an environment variable carries it; `convert` reads it back."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _parse(wanted: Any, text: str) -> object:
    kinds = _alternatives(wanted)
    if type(None) in kinds and text.strip().lower() in ("", "none"):
        return None
    if bool in kinds and text.strip().lower() in (*_YES, *_NO):
        return text.strip().lower() in _YES
    if any(get_origin(kind) is tuple for kind in kinds):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _refusal(option: Option, value: object, source: str) -> str:
    message = f"{source}: {option.name} is {value!r}; give {allowed(option)}"
    choices = [str(c) for kind in _alternatives(option.type) for c in _choices(kind)]
    if choices and isinstance(value, str):
        return f"{message}. {did_you_mean(value, choices)}"
    return message


def _alternatives(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _kind(kind: Any) -> str:
    if _choices(kind):
        return "one of the known values"
    if get_origin(kind) is tuple:
        return "a list of texts"
    return {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[kind]


def _bounds(option: Option) -> str:
    low, high = option.doc.minimum, option.doc.maximum
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    return f" of at least {low:g}" if low is not None else ""
