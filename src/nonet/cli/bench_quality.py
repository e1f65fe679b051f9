"""`nonet bench quality`: what configurations cost in quality, each measured on the same items."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from nonet.cli.bench_flags import JsonFile
from nonet.cli.flags import ENGINE, configured
from nonet.cli.terminal import note, progress
from nonet.config.load import Loaded, changed
from nonet.config.machine import Machine
from nonet.config.resolved import Resolved
from nonet.config.schema import Config
from nonet.core.errors import ConfigError

if TYPE_CHECKING:
    from nonet.bench.quality.run import Candidate
    from nonet.cli.quality_subject import LLMSubject

__all__ = ["command"]

_Options = Annotated[
    list[str] | None,
    Parameter(
        name="--with",
        help="another configuration: options to change, as in 'weight_format=int8 dtype=bfloat16'; may be repeated",
    ),
]


def bench_quality(
    loaded: Loaded,
    *,
    task: Annotated[
        list[str] | None,
        Parameter(
            help="what to measure: perplexity, continuation, piqa, gsm8k, passkey, longeval or jsonschema, with "
            "options as in perplexity:windows=32; may be repeated. Most read data sets under NONET_DATA"
        ),
    ] = None,
    against: Annotated[
        str | None,
        Parameter(
            help="the reference: options to change, as in 'dtype=float32 weight_format=dense'"
        ),
    ] = None,
    others: _Options = None,
    json: JsonFile = None,
    markdown: Annotated[Path | None, Parameter(help="write the tables to this file")] = None,
) -> int:
    """What configurations cost in quality: accuracy, perplexity and KL, with intervals."""
    from nonet.bench.quality.report import describe, make_report
    from nonet.bench.quality.run import run_tasks
    from nonet.bench.report import write_report

    configurations = _configurations(loaded.config, against, others or [])
    resolved: dict[str, dict[str, object]] = {}
    candidates = [_candidate(name, config, resolved) for name, config in configurations.items()]
    tables = run_tasks(candidates, task or ["perplexity"], os.environ, on_step=note)
    text = describe(tables)
    print(text)
    if markdown is not None:
        _write(markdown, text)
    if json is not None:
        report = make_report(sys.argv, Machine.detect(), resolved, tables)
        write_report(report, json)
        note(f"written to {json}")
    return 0


command = configured(bench_quality, *ENGINE, model_first=True)


def _configurations(base: Config, against: str | None, others: Sequence[str]) -> dict[str, Config]:
    """By name, the reference first: `against`, else the flags as they are; then the others, or else the flags."""
    found: dict[str, Config] = {}
    if against is not None:
        found[against] = _changed(base, against, "--against")
    if against is None or not others:
        found["as given"] = base
    for text in others:
        found[text] = _changed(base, text, "--with")
    return found


def _changed(base: Config, text: str, flag: str) -> Config:
    given: dict[str, str] = {}
    for part in text.split():
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(
                f"{flag}: {part!r} is not option=value; write options as in 'weight_format=int8 dtype=bfloat16'"
            )
        given[name.replace("-", "_")] = value
    return changed(base, given, flag)


def _candidate(name: str, config: Config, resolved: dict[str, dict[str, object]]) -> Candidate:
    """Loads its model when its turn comes, and leaves what it was resolved to in `resolved`."""
    from nonet.bench.quality.run import Candidate
    from nonet.cli.quality_subject import LLMSubject
    from nonet.engine.llm import LLM

    @contextmanager
    def open_subject() -> Iterator[LLMSubject]:
        with progress(f"loading {name}", "layers") as show:
            llm = LLM(config=config, load_progress=show)
        with llm:
            resolved[name] = _facts(llm.resolved)
            yield LLMSubject(llm)

    return Candidate(name, open_subject)


def _facts(resolved: Resolved) -> dict[str, object]:
    """For the report, with files by name: where they lie here is nobody else's matter."""
    facts: dict[str, object] = _by_name(msgspec.to_builtins(resolved))
    return facts


def _by_name(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _by_name(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_by_name(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
