"""The step loop: plan, launch, collect, commit. It holds no tensor and knows no technique.

`depth` is how many steps may be in flight while the next is planned: 0 is the plain loop, 1 the overlapped one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from nonet.core.clock import Clock
from nonet.core.errors import ConfigError, InvalidRequestError
from nonet.core.messages import Answered, Command, EngineInfo, EngineStats
from nonet.core.outputs import SequenceDelta
from nonet.core.request import Request
from nonet.engine.preparations import Preparations
from nonet.runner.executor import LocalExecutor
from nonet.runner.runner import LaunchedStep
from nonet.scheduler.scheduler import Scheduler

__all__ = ["Commands", "Engine", "EngineParts", "EngineTimes"]


class Commands(Protocol):
    """Who carries out what the server asks for besides requests. Never blocks."""

    @property
    def is_busy(self) -> bool:
        """An answer is still to come."""
        ...

    def command(self, command: Command) -> None: ...

    def answers(self) -> list[Answered]:
        """Answers that became ready since the last call."""
        ...

    def close(self) -> None: ...


IDLE_WAIT_S = 0.005  # while all that there is to do waits for preparations


@dataclass(frozen=True, slots=True)
class EngineParts:
    """What `assemble` puts together."""

    scheduler: Scheduler
    executor: LocalExecutor
    clock: Clock
    info: EngineInfo
    depth: int
    close: Callable[[], None]
    preparations: Preparations = field(default_factory=Preparations)
    commands: Commands | None = None  # None: there is nothing to command


@dataclass(slots=True)
class EngineTimes:
    """Seconds since start, by part of the loop; the runner keeps its own for what happens inside a step."""

    plan_s: float = 0.0
    execute_s: float = 0.0
    apply_s: float = 0.0
    steps: int = 0
    overlapped_steps: int = 0  # planned while another was in flight


@dataclass(slots=True)
class Engine:
    """Requests in, token deltas out; one call of `step` is one step of the model.

    Not thread-safe: one thread owns it.
    """

    parts: EngineParts
    times: EngineTimes = field(default_factory=EngineTimes)
    _flying: deque[LaunchedStep] = field(default_factory=deque)

    @property
    def info(self) -> EngineInfo:
        return self.parts.info

    @property
    def has_work(self) -> bool:
        return bool(self._flying) or self.parts.scheduler.has_work

    def add(self, request: Request) -> None:
        """Queue a request. InvalidRequestError: it can never run. OverloadedError: the queue is full."""
        self._verify(request)
        tasks = self.parts.preparations.tasks(request)
        self.parts.scheduler.add(request, [task.blocker for task in tasks])
        self.parts.preparations.start(request.request_id, tasks)

    def abort(self, request_ids: Sequence[str], index: int | None = None) -> None:
        """Drop requests, or one choice of each; unknown ids are ignored. Their blocks are free within a step."""
        self.parts.scheduler.abort(request_ids, index)

    def step(self) -> list[SequenceDelta]:
        """Plan and run one step; returns what became known, aborts and rejections included."""
        scheduler, executor = self.parts.scheduler, self.parts.executor
        began = time.perf_counter()
        for end in self.parts.preparations.finished():
            scheduler.unblock(end.request_id, end.blocker, end.error)
        plan = scheduler.plan(self.parts.clock.now())
        planned = executed = time.perf_counter()
        if plan is not None:
            self.times.overlapped_steps += bool(self._flying)
            self._flying.append(executor.launch(plan))
            self.times.steps += 1
        if self._flying and (plan is None or len(self._flying) > self.parts.depth):
            result = executor.collect(self._flying.popleft())  # the only wait
            executed = time.perf_counter()
            scheduler.apply(result)
        elif plan is None and scheduler.has_work:
            self.parts.preparations.wait(IDLE_WAIT_S)
        self.times.plan_s += planned - began
        self.times.execute_s += executed - planned
        self.times.apply_s += time.perf_counter() - executed
        return scheduler.drain_deltas()

    def use_idle(self) -> bool:
        """A little of what spares later steps time; whether there is more of it. Only while there is no work."""
        assert not self._flying, "steps are under way"
        return self.parts.executor.record_ahead()

    @property
    def has_commands(self) -> bool:
        """A command has not been answered yet."""
        return self.parts.commands is not None and self.parts.commands.is_busy

    def command(self, command: Command) -> None:
        """Begin to carry it out, between steps; `answers` says how it went."""
        if self.parts.commands is None:
            raise ConfigError(
                "this engine serves no adapters; start it with lora_dir or lora_modules"
            )
        self.parts.commands.command(command)

    def answers(self) -> list[Answered]:
        return self.parts.commands.answers() if self.parts.commands is not None else []

    def stats(self) -> EngineStats:
        executor = self.parts.executor
        return msgspec.structs.replace(
            self.parts.scheduler.stats(),
            busy_s=executor.times.device_s,
            recorded_steps=executor.num_recorded,
            overlapped_steps=self.times.overlapped_steps,
        )

    def check_integrity(self) -> None:
        """AssertionError when the bookkeeping of blocks or sequences does not add up."""
        problems = self.parts.scheduler.check_integrity()
        if problems:
            raise AssertionError("; ".join(problems))

    def close(self) -> None:
        """Free threads and memory; the engine cannot be used afterwards."""
        self.parts.preparations.close()
        if self.parts.commands is not None:
            self.parts.commands.close()
        self.parts.close()

    def _verify(self, request: Request) -> None:
        info = self.parts.info
        request.params.verify(info.vocab_size)
        if request.adapter_id and self.parts.commands is None:
            raise InvalidRequestError("this engine serves no adapters", "model")
        if not request.prompt_ids:
            return  # the scheduler refuses it
        highest = max(request.prompt_ids)
        if highest >= info.vocab_size:
            raise InvalidRequestError(
                f"the prompt holds token id {highest}; the vocabulary has ids 0 to {info.vocab_size - 1}",
                "prompt",
            )
