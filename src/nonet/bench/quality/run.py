"""Every task on every configuration, one model in memory at a time, the reference first."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nonet.bench.quality import TASKS
from nonet.bench.quality.base import Subject, Task, TaskResult
from nonet.bench.quality.distribution_store import DistributionStore
from nonet.bench.quality.report import TaskTable, make_table
from nonet.core.errors import ConfigError

__all__ = ["Candidate", "run_tasks"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration to measure: what it is called, and how its model is loaded."""

    name: str
    open: Callable[[], AbstractContextManager[Subject]]


def run_tasks(
    candidates: Sequence[Candidate],
    specs: Sequence[str],
    environ: Mapping[str, str],
    on_step: Callable[[str], None] = lambda _: None,
) -> list[TaskTable]:
    """One table a task; the first candidate is the reference of the others. `on_step` is told what was done."""
    names = [candidate.name for candidate in candidates]
    for kind, given in (("configuration", names), ("task", specs)):
        twice = sorted({one for one in given if list(given).count(one) > 1})
        if twice:
            raise ConfigError(f"the {kind} {twice[0]!r} is given twice")
    tasks: list[Task] = [TASKS.build(spec) for spec in specs]
    found: list[list[TaskResult]] = [[] for _ in tasks]
    seconds: list[list[float]] = [[] for _ in tasks]
    with tempfile.TemporaryDirectory(prefix="nonet-quality-") as folder:
        stores = _stores(Path(folder), len(tasks), has_others=len(candidates) > 1)
        for candidate in candidates:
            with candidate.open() as subject:
                for number, (task, store) in enumerate(zip(tasks, stores, strict=True)):
                    began = time.monotonic()
                    found[number].append(task.measure(subject, environ, store))
                    seconds[number].append(time.monotonic() - began)
                    store.end_of_reference()
                    on_step(f"{candidate.name}: {specs[number]}, {seconds[number][-1]:.0f} s")
    return [
        make_table(spec, names, results, took)
        for spec, results, took in zip(specs, found, seconds, strict=True)
    ]


def _stores(folder: Path, count: int, *, has_others: bool) -> list[DistributionStore]:
    """One for each task, recording first where there is something to compare."""
    stores = []
    for number in range(count):
        mine = folder / str(number)
        mine.mkdir()
        stores.append(DistributionStore(mine, is_recording=has_others))
    return stores
