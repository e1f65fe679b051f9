"""The filters and methods that chat templates may use, each bounded before it makes anything big.

A short list of what templates in the wild need, not everything Jinja2 has: a function that is not listed cannot be
the way out. Results are those of Jinja2 as Hugging Face sets it up (no HTML escaping).
"""

from __future__ import annotations

import html
import json
import re
import string
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import filters as stock
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.utils import pass_context

from nonet.text.template_budget import Budget, TemplateLimitError

__all__ = [
    "ALLOWED_METHODS",
    "BudgetContext",
    "check_method",
    "check_percent_format",
    "safe_filters",
    "safe_format",
]


class BudgetContext(Context):
    """A rendering's variables, with its budget."""

    budget: Budget

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        context = super().derived(locals)
        assert isinstance(context, BudgetContext)
        context.budget = self.budget
        return context


ALLOWED_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        {
            "capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii",
            "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower",
            "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
            "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill",
        }
    ),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
}  # fmt: skip

_MAX_WIDTH = 10_000
_STOCK = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select", "selectattr",
    "sort", "title", "trim", "truncate", "unique", "upper",
)  # fmt: skip
_TAKES_LISTS = frozenset(
    {"groupby", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "unique"}
)


def safe_filters() -> dict[str, Callable[..., Any]]:
    """Name -> filter, for a sandbox whose contexts are BudgetContexts."""
    own: dict[str, Callable[..., Any]] = {
        "center": _center, "e": _escape, "escape": _escape, "format": _format, "indent": _indent, "join": _join,
        "list": _list, "replace": _replace, "safe": _safe, "string": _string, "sum": _sum, "tojson": _tojson,
    }  # fmt: skip
    return own | {name: _bounded(name, stock.FILTERS[name]) for name in _STOCK}


def check_method(
    budget: Budget, owner: object, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raise unless the template may call this method of a built-in value with these arguments."""
    if name not in ALLOWED_METHODS.get(type(owner), ()):
        raise SecurityError(f"templates may not call {name!r} of a {type(owner).__name__}")
    if not isinstance(owner, str):
        return
    if name == "replace":
        _check_replace(budget, owner, *args[:3])
    elif name in ("center", "ljust", "rjust", "zfill"):
        _check_width(*args[:1])
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args else kwargs.get("sep")
        if name != "splitlines" and isinstance(separator, str) and separator:
            budget.reserve_items(owner.count(separator) + 1)
        else:
            budget.reserve_items(len(owner) // 2)


def check_percent_format(text: str) -> None:
    """Refuse `%` formats that pad to a great or a computed width."""
    if re.search(r"%[^a-zA-Z%]*(\*|\d{5,})", text):
        raise TemplateLimitError("a format asks for a very wide field")


def safe_format(text: str) -> None:
    """Refuse `str.format` formats that pad to a great or a computed width."""
    for _, _, spec, _ in string.Formatter().parse(text):
        if spec and re.search(r"[{]|\d{5,}", spec):
            raise TemplateLimitError("a format asks for a very wide or computed field")


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja2, with its result accounted for."""
    kind = getattr(function, "jinja_pass_arg", None)
    takes_lists = name in _TAKES_LISTS

    @pass_context
    def bounded(context: BudgetContext, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = context.budget
        if takes_lists and isinstance(value, str):
            budget.reserve_items(len(value))
        if kind is None:
            result = function(value, *args, **kwargs)
        else:
            given = {
                "context": context,
                "eval_context": context.eval_ctx,
                "environment": context.environment,
            }
            result = function(given[kind.name], value, *args, **kwargs)
        return budget.admit(result)

    return bounded


@pass_context
def _center(context: BudgetContext, value: Any, width: int = 80) -> Any:
    _check_width(width)
    return context.budget.admit(context.budget.text(value).center(width))


@pass_context
def _escape(context: BudgetContext, value: Any) -> Any:
    return context.budget.admit(html.escape(context.budget.text(value)))


@pass_context
def _format(context: BudgetContext, value: Any, *args: Any, **kwargs: Any) -> Any:
    text = context.budget.text(value)
    check_percent_format(text)
    for arg in (*args, *kwargs.values()):
        context.budget.weigh(arg)
    return context.budget.admit(text % (kwargs or args))


@pass_context
def _indent(
    context: BudgetContext, value: Any, width: Any = 4, first: bool = False, blank: bool = False
) -> Any:
    text = context.budget.text(value)
    margin = len(width) if isinstance(width, str) else int(width)
    context.budget.reserve(len(text) + margin * (text.count("\n") + 1))
    return stock.do_indent(text, width, first, blank)


@pass_context
def _join(context: BudgetContext, value: Iterable[Any], d: Any = "", attribute: Any = None) -> Any:
    budget = context.budget
    if attribute is not None:
        value = map(stock.make_attrgetter(context.environment, attribute), value)
    separator = budget.text(d)
    pieces: list[str] = []
    for item in value:
        budget.tick()
        pieces.append(budget.text(item))
        budget.reserve(len(pieces[-1]) + len(separator))
    budget.reserve(sum(map(len, pieces)) + len(separator) * len(pieces))
    return separator.join(pieces)


@pass_context
def _list(context: BudgetContext, value: Any) -> Any:
    if isinstance(value, str):
        context.budget.reserve_items(len(value))
    return context.budget.admit(list(value))


@pass_context
def _replace(
    context: BudgetContext, value: Any, old: Any, new: Any, count: int | None = None
) -> Any:
    budget = context.budget
    text, before, after = budget.text(value), budget.text(old), budget.text(new)
    limit = -1 if count is None else count
    _check_replace(budget, text, before, after, limit)
    return text.replace(before, after, limit)


@pass_context
def _safe(context: BudgetContext, value: Any) -> Any:
    """Marks HTML that needs no escaping; as nothing is escaped here, the text itself."""
    return context.budget.text(value)


@pass_context
def _string(context: BudgetContext, value: Any) -> Any:
    return context.budget.text(value)


@pass_context
def _sum(
    context: BudgetContext, value: Iterable[Any], attribute: Any = None, start: Any = 0
) -> Any:
    """Numbers only: a sum of lists would copy them again and again."""
    if attribute is not None:
        value = map(stock.make_attrgetter(context.environment, attribute), value)
    total = start
    for item in value:
        if not isinstance(item, (int, float)) or not isinstance(total, (int, float)):
            raise TypeError("sum adds numbers only")
        total = context.budget.admit(total + item)
    return total


@pass_context
def _tojson(
    context: BudgetContext,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> Any:
    if isinstance(value, Undefined):
        raise TypeError("tojson was given an undefined value")
    widths = [len(indent) if isinstance(indent, str) else indent or 0, *map(len, separators or ())]
    if max(widths) > 16:
        raise TemplateLimitError("tojson is asked to indent very deeply")
    context.budget.weigh(value)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return context.budget.admit(text)


def _check_replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> None:
    num = text.count(old)
    if count >= 0:
        num = min(num, count)
    budget.reserve(max(0, len(text) + num * (len(new) - len(old))))


def _check_width(width: int = 0) -> None:
    if width > _MAX_WIDTH:
        raise TemplateLimitError(
            f"a text is padded to a width of {width}; at most {_MAX_WIDTH} is allowed"
        )
