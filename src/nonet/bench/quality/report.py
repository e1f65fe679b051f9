"""Tables of quality, each figure with its interval and, against the reference, the difference item by item."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from nonet.bench.provenance import device_facts, library_versions, source_commit
from nonet.bench.quality.base import Measure, TaskResult
from nonet.bench.quality.statistics import Interval, paired_interval
from nonet.config.machine import Machine
from nonet.core.errors import ConfigError

__all__ = ["Figure", "QualityReport", "Row", "TaskTable", "describe", "make_report", "make_table"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of one configuration.

    `difference` is this less the reference, item by item; of an exponent (perplexity) the ratio less one.
    """

    name: str
    interval: Interval
    difference: Interval | None
    items: list[float]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration's answers to a task."""

    configuration: str
    figures: list[Figure]
    details: dict[str, object]
    notes: list[str]
    duration_s: float


class TaskTable(msgspec.Struct, frozen=True, kw_only=True):
    """One task, the reference's row first."""

    task: str
    data: str
    sha256: str
    rows: list[Row]


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes."""

    kind: str = "quality"
    started_at: str
    command: list[str]
    commit: str | None
    device: dict[str, str | int | None]
    libraries: dict[str, str]
    configurations: dict[str, dict[str, object]]  # by name, resolved
    tables: list[TaskTable]


def make_report(
    command: Sequence[str],
    machine: Machine,
    configurations: dict[str, dict[str, object]],
    tables: list[TaskTable],
) -> QualityReport:
    """The report of finished tasks; commit and versions are looked up here."""
    return QualityReport(
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        command=[Path(command[0]).name, *command[1:]],
        commit=source_commit(),
        device=device_facts(machine),
        libraries=library_versions(),
        configurations=configurations,
        tables=tables,
    )


def make_table(
    spec: str, names: Sequence[str], results: Sequence[TaskResult], seconds: Sequence[float]
) -> TaskTable:
    """ConfigError where configurations did not get the same items, as with another tokenizer."""
    first = results[0]
    for name, result in zip(names, results, strict=True):
        if result.sha256 != first.sha256:
            raise ConfigError(
                f"{name} and {names[0]} read different items of {spec}, so they cannot be compared; measure them apart"
            )
    known = {measure.name: measure for measure in first.measures}
    rows = [
        Row(
            configuration=name,
            figures=[_figure(m, known.get(m.name) if number else None) for m in result.measures],
            details=result.details,
            notes=result.notes,
            duration_s=round(took, 3),
        )
        for number, (name, result, took) in enumerate(zip(names, results, seconds, strict=True))
    ]
    return TaskTable(task=spec, data=first.data, sha256=first.sha256, rows=rows)


def describe(tables: Sequence[TaskTable]) -> str:
    """The tables for a terminal or a README, as Markdown."""
    return "\n\n".join(_describe_one(table) for table in tables)


def _figure(measure: Measure, reference: Measure | None) -> Figure:
    difference = None
    if reference is not None:
        difference = paired_interval(measure.items, reference.items)
        if measure.is_exponent:
            ratio = difference.exponent()
            difference = Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1, ratio.n)
    return Figure(
        name=measure.name, interval=measure.interval, difference=difference, items=measure.items
    )


def _describe_one(table: TaskTable) -> str:
    names: list[str] = []
    for row in table.rows:
        names += [figure.name for figure in row.figures if figure.name not in names]
    lines = [
        f"{table.task}: {table.data}, sha256 {table.sha256[:12]}, 95 % intervals",
        "",
        f"| configuration | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in table.rows:
        by_name = {figure.name: figure for figure in row.figures}
        cells = [_cell(by_name[name]) if name in by_name else "" for name in names]
        lines.append(f"| {row.configuration} | {' | '.join(cells)} |")
    notes = sorted({note for row in table.rows for note in row.notes})
    return "\n".join([*lines, *(f"\nnote: {note}" for note in notes)])


def _cell(figure: Figure) -> str:
    over = figure.interval
    text = f"{_short(over.value)} [{_short(over.low)}, {_short(over.high)}]"
    if figure.difference is None:
        return text
    away = figure.difference
    is_none = away.low <= 0 <= away.high
    said = "no difference" if is_none else f"{_signed(away.value)}"
    return f"{text}; {said} [{_signed(away.low)}, {_signed(away.high)}]"


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def _signed(value: float) -> str:
    return f"{value:+.3g}"
