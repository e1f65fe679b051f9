"""Where a step runs: here, in the engine's own process and thread."""

from __future__ import annotations

from dataclasses import dataclass

from nonet.core.step import StepPlan, StepResult
from nonet.runner.runner import Runner, RunnerTimes

__all__ = ["Flight", "LocalExecutor"]


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that was launched and not yet collected."""

    result: StepResult


class LocalExecutor:
    """Runs each step when it is launched; collecting it costs nothing."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @property
    def times(self) -> RunnerTimes:
        """Where the seconds of all steps so far went."""
        return self.runner.times

    def launch(self, plan: StepPlan) -> Flight:
        """Start the step; may return before it is done."""
        return Flight(self.runner.execute(plan))

    def collect(self, flight: Flight) -> StepResult:
        """Wait for a launched step; flights are collected in the order they were launched."""
        return flight.result
