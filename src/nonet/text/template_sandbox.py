"""A Jinja2 environment for templates that come with models, which are programs by strangers.

Three walls. Jinja2's immutable sandbox keeps a template from Python's internals. A list of allowed filters, methods and
functions keeps out everything that no chat template needs. A budget of time, memory and sizes stops a template that
runs away: every loop iteration, call, comparison and operation passes through `Budget`, and none of them can take long
by itself. The counting happens in the thread that renders. A worker process would stop anything at all, but costs a
round trip per chat, a process to start, watch and replace, and a second copy of the messages; a normal chat renders
here in some tens of microseconds, in any number of threads.
"""

from __future__ import annotations

import datetime
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from nonet.text.template_budget import Budget, TemplateLimitError, TemplateLimits
from nonet.text.template_filters import (
    BudgetContext,
    check_method,
    check_percent_format,
    safe_filters,
    safe_format,
)

__all__ = ["RefusedByTemplateError", "TemplateSandbox"]


class RefusedByTemplateError(Exception):
    """The template called `raise_exception`: the messages do not fit it."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Compiles templates so that each of their steps is accounted for; contexts need their `budget` set."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    context_class = BudgetContext

    def __init__(self, limits: TemplateLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_finalize,
            extensions=[loopcontrols, _GenerationTag],
        )
        self._limits = limits
        self.filters = safe_filters() | _STEPS
        own_functions = {
            "dict": _make_dict,
            "namespace": _PlainNamespace,
            "raise_exception": _raise_exception,
            "range": self.globals["range"],
            "strftime_now": _strftime_now,
        }
        self.globals = dict(own_functions)
        self._functions = frozenset(own_functions.values())

    def concat(self, pieces: Iterable[str]) -> str:
        """Joins what a macro or a block wrote; the pieces are accounted for, their sum is not yet."""
        parts = list(pieces)
        if sum(map(len, parts)) > self._limits.max_value_chars:
            raise TemplateLimitError(
                f"a text grew beyond {self._limits.max_value_chars} characters"
            )
        return "".join(parts)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Runs a macro, one of our functions, or a listed method of a built-in value; nothing else."""
        budget = _budget(__context)
        budget.tick()
        if isinstance(__obj, types.BuiltinMethodType):
            method_args = {key: value for key, value in kwargs.items() if not key.startswith("_")}
            check_method(budget, __obj.__self__, __obj.__name__, args, method_args)
            if isinstance(__obj.__self__, str) and __obj.__name__ == "join":
                return __self.filters["join"](__context, *args, __obj.__self__)
            return budget.admit(__obj(*args, **method_args))
        if isinstance(__obj, types.MethodType):
            is_known = isinstance(__obj.__self__, LoopContext) and __obj.__name__ in (
                "cycle",
                "changed",
            )
        elif isinstance(__obj, _Format):
            is_known = True
            for value in (*args, *kwargs.values()):
                budget.weigh(value)
        else:
            is_known = isinstance(__obj, (Macro, BlockReference, LoopContext, Undefined)) or (
                isinstance(__obj, (types.FunctionType, type)) and __obj in __self._functions
            )
        if not is_known:
            raise SecurityError(f"templates may not call {type(__obj).__name__} objects")
        return budget.admit(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "*":
            _check_product(budget, left, right)
        elif operator == "**":
            _check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            check_percent_format(left)
            budget.weigh(right)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            budget.reserve(len(left) + len(right))
            return left + right
        elif operator == "+" and isinstance(left, list) and isinstance(right, list):
            budget.reserve_items(len(left) + len(right))
            total = left + right
            budget.weigh_sum(left, right, total)
            return total
        return budget.admit(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> _Format | None:
        run = super().wrap_str_format(value)
        return None if run is None else _Format(value.__self__, run)

    def _generate(
        self,
        source: nodes.Template,
        name: str | None,
        filename: str | None,
        defer_init: bool = False,
    ) -> str:
        return super()._generate(_Accounting().visit(source), name, filename, defer_init)


class _Accounting(NodeTransformer):
    """Rewrites a parsed template: what Jinja2 compiles to plain Python goes through a filter of `_STEPS` instead."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.generic_visit(node)
        rewrite = _REWRITES.get(type(node))
        return node if rewrite is None else rewrite(node)


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - the declaration that Jinja2 prescribes

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PlainNamespace(Namespace):
    """A template's variables that outlive a loop; holds plain values only."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"a namespace cannot have a variable named {name!r}")
        if isinstance(value, Namespace):
            raise SecurityError("a namespace cannot be put into a namespace")
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class _Format:
    """`str.format` of a template's text, with the sandbox around it."""

    __slots__ = ("_run", "_text")

    def __init__(self, text: str, run: Any) -> None:
        self._text = text
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        safe_format(self._text)
        result: str = self._run(*args, **kwargs)
        return result


def _budget(context: Context) -> Budget:
    assert isinstance(context, BudgetContext)
    return context.budget


def _step(name: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


def _counted(loop: nodes.For) -> nodes.For:
    loop.body.insert(0, nodes.ExprStmt(_step("_tick", nodes.Const(None, lineno=loop.lineno))))
    if isinstance(loop.test, nodes.Expr):
        loop.test = _step("_tick", loop.test)
    return loop


def _ticking(node: nodes.Expr) -> nodes.Expr:
    return _step("_tick", node)


def _admitted(node: nodes.Expr) -> nodes.Expr:
    return _step("_admit", node)


def _slice_admitted(node: nodes.Getitem) -> nodes.Expr:
    return _step("_admit", node) if isinstance(node.arg, nodes.Slice) else node


def _tuple_admitted(node: nodes.Tuple) -> nodes.Expr:
    return _step("_admit", node) if node.ctx == "load" else node


def _concatenated(node: nodes.Concat) -> nodes.Expr:
    return _step("_concat", nodes.List(node.nodes, lineno=node.lineno))


def _forbidden(node: nodes.Node) -> nodes.Node:
    raise TemplateSyntaxError(
        "a chat template stands alone: no include, import, extends or autoescape", node.lineno
    )


_REWRITES: Mapping[type[nodes.Node], Callable[[Any], nodes.Node]] = {
    nodes.Compare: _ticking,
    nodes.Concat: _concatenated,
    nodes.Dict: _admitted,
    nodes.Extends: _forbidden,
    nodes.For: _counted,
    nodes.FromImport: _forbidden,
    nodes.Getitem: _slice_admitted,
    nodes.Import: _forbidden,
    nodes.Include: _forbidden,
    nodes.List: _admitted,
    nodes.ScopedEvalContextModifier: _forbidden,
    nodes.Test: _ticking,
    nodes.Tuple: _tuple_admitted,
}


@pass_context
def _tick(context: BudgetContext, value: Any) -> Any:
    context.budget.tick()
    return value


@pass_context
def _admit(context: BudgetContext, value: Any) -> Any:
    return context.budget.admit(value)


@pass_context
def _concat(context: BudgetContext, values: list[Any]) -> Any:
    budget = context.budget
    texts = [budget.text(value) for value in values]
    budget.reserve(sum(map(len, texts)))
    return "".join(texts)


_STEPS = {"_admit": _admit, "_concat": _concat, "_tick": _tick}


@pass_context
def _finalize(context: BudgetContext, value: Any) -> Any:
    """Every `{{ value }}` on its way into the text."""
    if isinstance(value, (Undefined, Namespace)):
        return value
    if type(value) is str:
        context.budget.reserve(len(value))
        return value
    return context.budget.text(value)


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(times, int):
            budget.reserve(len(value) * max(times, 0))
            if not isinstance(value, str):
                budget.reserve(budget.weigh(value) * max(times, 0))
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() + right.bit_length() > 4096
    ):
        raise TemplateLimitError("a number has more than 4096 bits")


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > 4096:
        raise TemplateLimitError("a number has more than 4096 bits")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise RefusedByTemplateError(str(message)[:1000])


def _strftime_now(format: str) -> str:
    if len(format) > 128 or any(char.isdigit() for char in format):
        raise SecurityError("strftime_now takes a short format without widths")
    return datetime.datetime.now().astimezone().strftime(format)
