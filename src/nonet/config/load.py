"""One precedence for every option: flags or keywords, then environment, then TOML file, then defaults.

The environment variable of an option is `NONET_<SECTION>_<FIELD>`; a file has one table per section:

    [server]
    port = 8080
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nonet.config.convert import as_text, convert
from nonet.config.options import Option, options, sections
from nonet.config.schema import Config
from nonet.core.catalogue import did_you_mean
from nonet.core.errors import ConfigError, UnknownNameError

__all__ = ["Loaded", "as_environment", "changed", "from_options", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and for each option that is not at its default where the value came from."""

    config: Config
    sources: dict[str, str]  # "server.port" -> "--port" | "NONET_SERVER_PORT" | "nonet.toml:2"


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    source: str
    is_text: bool = False


def load(
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Loaded:
    """The configuration of one process. `flags` maps option names to values; no environment is read unless handed over.

    >>> load(flags={"port": 0}, environ={"NONET_SERVER_PORT": "80"}).config.server.port
    0
    """
    rows = options()
    given: dict[str, _Given] = {}
    given.update(_from_file(file, rows) if file is not None else {})
    given.update(_from_environment(environ or {}, rows))
    given.update(_from_flags(flags or {}, rows))
    values: dict[str, dict[str, Any]] = {section: {} for section in sections()}
    for name, item in given.items():
        row = rows[name]
        values[row.section][name] = convert(row, item.value, item.source, item.is_text)
    built: dict[str, Any] = {section: cls(**values[section]) for section, cls in sections().items()}
    return Loaded(Config(**built), {rows[name].key: item.source for name, item in given.items()})


def from_options(given: Mapping[str, object]) -> Config:
    """The configuration of `LLM(...)`: its keywords are option names; neither environment nor file is read.

    >>> from_options({"model": "smollm2", "num_blocks": 100}).cache.num_blocks
    100
    """
    return load(flags=given).config


def changed(config: Config, given: Mapping[str, str], source: str) -> Config:
    """The configuration with options changed to values given as text; `source` is named in what goes wrong.

    >>> changed(from_options({"seed": 1}), {"quant": "int8"}, "--with").model.weight_format
    'int8'
    """
    rows = options()
    named = _with_full_names(given, rows)
    _refuse_unknown(named, rows)
    values: dict[str, dict[str, Any]] = {section: {} for section in sections()}
    for name, text in named.items():
        values[rows[name].section][name] = convert(rows[name], text, source, is_text=True)
    return replace(
        config,
        **{section: replace(getattr(config, section), **new) for section, new in values.items()},
    )


def as_environment(config: Config) -> dict[str, str]:
    """The variables that make another process load the same configuration; what is at its default is left out.

    >>> as_environment(from_options({"port": 0, "prefix_cache": False}))
    {'NONET_CACHE_PREFIX_CACHE': 'false', 'NONET_SERVER_PORT': '0'}
    """
    found: dict[str, str] = {}
    for row in options().values():
        value = getattr(getattr(config, row.section), row.name)
        if value != row.default:
            found[row.variable] = as_text(value)
    return found


def _from_flags(flags: Mapping[str, object], rows: Mapping[str, Option]) -> dict[str, _Given]:
    named = _with_full_names(flags, rows)
    _refuse_unknown(named, rows)
    return {name: _Given(value, rows[name].flag) for name, value in named.items()}


def _with_full_names(given: Mapping[str, object], rows: Mapping[str, Option]) -> dict[str, object]:
    """Second names replaced by the options they stand for."""
    full = {row.doc.alias: name for name, row in rows.items() if row.doc.alias is not None}
    return {full.get(name, name): value for name, value in given.items()}


def _refuse_unknown(given: Mapping[str, object], rows: Mapping[str, Option]) -> None:
    for name in given:
        if name not in rows:
            raise UnknownNameError(f"no option named {name!r}. {did_you_mean(name, sorted(rows))}")


def _from_environment(environ: Mapping[str, str], rows: Mapping[str, Option]) -> dict[str, _Given]:
    """Variables of a section must name a field; others (NONET_CACHE, NONET_DATA) belong to other parts."""
    by_variable = {row.variable: row for row in rows.values()}
    prefixes = tuple(f"NONET_{section}_".upper() for section in sections())
    found: dict[str, _Given] = {}
    for variable in sorted(environ):
        if variable in by_variable:
            name = by_variable[variable].name
            found[name] = _Given(environ[variable], variable, is_text=True)
        elif variable.startswith(prefixes):
            prefix = next(p for p in prefixes if variable.startswith(p))
            known = sorted(v for v in by_variable if v.startswith(prefix))
            raise UnknownNameError(
                f"environment variable {variable} sets no option. {did_you_mean(variable, known)}"
            )
    return found


def _from_file(file: Path, rows: Mapping[str, Option]) -> dict[str, _Given]:
    text = _read(file)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None
    found: dict[str, _Given] = {}
    for section, table in tables.items():
        where = f"{file}:{_line(text, section, None)}"
        if section not in sections():
            known = sorted(sections())
            raise UnknownNameError(
                f"{where}: no section [{section}]. {did_you_mean(section, known)}"
            )
        if not isinstance(table, dict):
            raise ConfigError(
                f"{where}: {section} is a section; write [{section}] above its options"
            )
        for name, value in table.items():
            where = f"{file}:{_line(text, section, name)}"
            known = sorted(row.name for row in rows.values() if row.section == section)
            if name not in known:
                raise UnknownNameError(
                    f"{where}: section [{section}] has no option {name!r}. "
                    f"{_other_section(name, rows) or did_you_mean(name, known)}"
                )
            found[name] = _Given(value, where)
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"cannot read the configuration file {file}: {reason}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: byte {error.start} is invalid") from None


def _other_section(name: str, rows: Mapping[str, Option]) -> str:
    return f"It belongs under [{rows[name].section}]." if name in rows else ""


def _line(text: str, section: str, name: str | None) -> int:
    """The line that mentions a section or one of its keys: for messages only, so a plain search is enough."""
    header = re.compile(rf"\s*\[\s*{re.escape(section)}\s*\]|\s*{re.escape(section)}\s*[.=]")
    key = re.compile(
        rf"\s*(?:{re.escape(section)}\s*\.\s*)?[\"']?{re.escape(name or '')}[\"']?\s*="
    )
    inside, first = False, 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header.match(line):
            inside, first = True, number
            if name is None:
                return number
        elif line.lstrip().startswith("["):
            inside = False
        if inside and name is not None and key.match(line):
            return number
    return first
