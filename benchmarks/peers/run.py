"""All engines of one model, loaded side by side and measured in turn.

A shared machine changes its speed by a factor within minutes. Engines measured one after the other would be compared
across such changes; here each repeat of a case goes round all engines, so that what is compared was measured seconds
apart, and each turn begins on an idle machine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from peers.cases import Case, Job, Turn
from peers.idle import alone, busy_share, wait_until_idle
from peers.llama_cpp import LlamaCpp
from peers.plan import Entry
from peers.process import ProcessEngine
from peers.workdir import Workdir

__all__ = ["Row", "Runner"]

Result = TypeVar("Result")

WARM_UP_TOKENS = 16  # every shape of a case has come by then


@dataclass
class Row:
    """One engine's turns by case name, or, with `error` set, why there are none."""

    peer: str
    model: str
    weights: str
    version: str | None = None
    load_s: float | None = None
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    busy_before: list[float] = field(default_factory=list)  # share of the machine busy just before
    environment: dict[str, str] = field(default_factory=dict)  # what was set besides thread counts
    error: str | None = None


class _Engine(Protocol):
    version: str
    load_s: float | None

    def turn(self, case: Case, part: str) -> Turn: ...

    def close(self) -> None: ...


class Runner:
    """Runs the entries of one model."""

    def __init__(
        self, workdir: Workdir, job: Job, base_environment: dict[str, str], *,
        waits: bool, idle_timeout_s: float, timeout_s: float, locks: Sequence[Path],
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._workdir = workdir
        self._job = job
        self._base_environment = base_environment
        self._waits = waits
        self._idle_timeout_s = idle_timeout_s
        self._timeout_s = timeout_s
        self._locks = locks
        self._log = log

    def run(self, entries: Sequence[Entry], after_round: Callable[[list[Row]], None]) -> list[Row]:
        """Load every engine, warm it up, take turns. `after_round` sees the rows after each round."""
        rows = [Row(one.peer, one.model.title, one.label) for one in entries]
        engines: dict[int, _Engine] = {}
        try:
            for number, (entry, row) in enumerate(zip(entries, rows, strict=True)):
                engine = self._guarded(row, partial(self._start, entry, row))
                if engine is not None:
                    engines[number] = engine
            self._log(f"{len(engines)} of {len(rows)} engines are ready")
            for case in self._job.cases:
                for repeat in range(self._job.repeats):
                    with alone(self._locks):
                        self._round(case, repeat, engines, rows)
                    after_round(rows)
        finally:
            for engine in engines.values():
                engine.close()
        return rows

    def _start(self, entry: Entry, row: Row) -> _Engine:
        began = time.monotonic()
        job = dataclasses.replace(
            self._job, model_path=str(entry.model_path()), weights=entry.weights
        )
        python = entry.python()
        row.environment = entry.environment()
        engine: _Engine
        if entry.peer == "llama_cpp":
            engine = LlamaCpp(job, self._workdir.llama_programs(), self._workdir.llama_version())
        else:
            environment = {**self._base_environment, **row.environment}
            engine = ProcessEngine(entry.peer, python, job, environment, self._timeout_s)
            for case in job.cases:
                few = min(case.output_tokens, WARM_UP_TOKENS)
                engine.turn(dataclasses.replace(case, output_tokens=few), "warm-up")
        row.version, row.load_s = engine.version, engine.load_s
        self._log(f"{row.model}: {row.peer}, {row.weights} ready in {time.monotonic() - began:.0f} s")  # fmt: skip
        return engine

    def _round(self, case: Case, repeat: int, engines: dict[int, _Engine], rows: list[Row]) -> None:
        order = list(engines)
        shift = repeat % max(1, len(order))  # so that nobody always follows the same one
        for number in order[shift:] + order[:shift]:
            row = rows[number]
            row.busy_before.append(round(self._wait(), 3))
            turn = self._guarded(row, partial(engines[number].turn, case, str(repeat)))
            if turn is None:
                engines.pop(number).close()
            else:
                row.turns.setdefault(case.name, []).append(turn)
        self._log(f"{case.name}, round {repeat + 1} of {self._job.repeats}")

    def _wait(self) -> float:
        if not self._waits:
            return busy_share(0.1)
        return wait_until_idle(quiet_s=0.4, timeout_s=self._idle_timeout_s)

    def _guarded(self, row: Row, act: Callable[[], Result]) -> Result | None:
        """The result, or None with the reason in the row: one engine's failure does not end the others' run."""
        try:
            return act()
        except (RuntimeError, OSError, ValueError) as problem:
            row.error = str(problem)
            lines = row.error.strip().splitlines()
            self._log(f"{row.peer}, {row.weights} failed: {lines[-1] if lines else problem!r}")
            return None
