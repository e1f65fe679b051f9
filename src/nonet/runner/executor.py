"""Where a step runs: here, in the engine's own process and thread, on a device that may work while the host plans."""

from __future__ import annotations

from nonet.core.step import StepPlan, StepResult
from nonet.runner.runner import LaunchedStep, Runner, RunnerTimes

__all__ = ["LocalExecutor"]


class LocalExecutor:
    """Hands steps to the runner. On a CPU a launched step is done; on a GPU it is only asked for."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    @property
    def times(self) -> RunnerTimes:
        """Where the seconds of all steps so far went."""
        return self.runner.times

    @property
    def num_recorded(self) -> int:
        """Steps that replayed a recording."""
        recording = self.runner.recording
        return 0 if recording is None else recording.num_replays

    def record_ahead(self) -> bool:
        """As `Runner.record_ahead`."""
        return self.runner.record_ahead()

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Start the step; may return before it is done."""
        return self.runner.launch(plan)

    def collect(self, step: LaunchedStep) -> StepResult:
        """Wait for a launched step; they are collected in the order they were launched."""
        return self.runner.collect(step)
