"""Flags made from the configuration's fields: an option is declared once, and help, types and file keys agree."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from nonet.config.load import load
from nonet.config.options import Option, options, sections

__all__ = ["ENGINE", "JsonFlag", "configured"]

# What an engine in this process needs; the server's own options are for `serve` alone.
ENGINE = ("model", "cache", "scheduler", "speculation", "runtime", "lora")

JsonFlag = Annotated[bool, Parameter(help="print JSON", negative=(), show_default=False)]


def configured(
    verb: Callable[..., int], *names: str, model_first: bool = False
) -> Callable[..., int]:
    """`verb(loaded, ...)` as a command: one flag per option of the named sections, and `--config` for a TOML file.

    A flag that is not given leaves the option to environment, file and default. With `model_first` the model may be
    given without its flag.
    """
    rows = [row for row in options().values() if row.section in names]
    own = list(inspect.signature(verb, eval_str=True).parameters.values())[1:]
    made = [_parameter(row, model_first) for row in rows]
    signature = inspect.Signature(
        sorted([*own, _config_parameter(), *made], key=lambda parameter: parameter.kind)
    )

    def run(*arguments: Any, **keywords: Any) -> int:
        given = signature.bind(*arguments, **keywords).arguments
        flags = {row.name: given.pop(row.name, None) for row in rows}
        loaded = load(
            flags={name: value for name, value in flags.items() if value is not None},
            environ=os.environ,
            file=given.pop("config", None),
        )
        return verb(loaded, **given)

    run.__signature__ = signature  # type: ignore[attr-defined]  # what cyclopts reads
    run.__doc__ = verb.__doc__
    return run


def _config_parameter() -> inspect.Parameter:
    note = Parameter(help="TOML file with one table per section", group=_group("configuration"))
    return inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, note],
    )


def _parameter(row: Option, model_first: bool) -> inspect.Parameter:
    is_model = model_first and row.name == "model"
    default = row.default
    note = Parameter(
        help=row.doc.text,
        group="Parameters" if is_model else _group(row.section),
        show_default=(lambda _: str(default)) if default not in (None, ()) else False,
        negative_iterable=(),
        name=None if row.doc.alias is None else (row.flag, f"--{row.doc.alias}"),
    )
    return inspect.Parameter(
        row.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD if is_model else inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[row.type | None, note],
    )


def _group(section: str) -> Group:
    order = ("configuration", *sections())
    return Group(section.capitalize(), sort_key=100 + order.index(section))
