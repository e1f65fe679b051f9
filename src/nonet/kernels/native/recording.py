"""A forward pass as a list of native calls, run again in one call for any number of rows up to the recorded ones."""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch

from nonet.kernels.native.library import Library, Op
from nonet.kernels.native.memory import Arena
from nonet.kernels.ops import StepShape

__all__ = ["NativeRecording", "RowKind", "Tape", "time_program"]


class RowKind(IntEnum):
    """What counts the rows of a value: the index into the live counts of a step."""

    TOKENS = 0
    SEQUENCES = 1
    ROWS = 2


class Tape:
    """Operations in the order they were asked for, and the memory of what flows between them."""

    def __init__(self) -> None:
        self.arena = Arena()
        self.labels: list[str] = []
        self.ops: list[Op] = []
        self.kept: list[object] = []

    def append(
        self, label: str, op: Op, args: ctypes.Structure, operands: tuple[object, ...]
    ) -> None:
        """Operands that are no intermediates (weights, caches, inputs) must outlive the recording."""
        self.labels.append(label)
        self.ops.append(op)
        self.kept.append(args)
        self.kept.extend(operand for operand in operands if not self._is_intermediate(operand))

    def _is_intermediate(self, operand: object) -> bool:
        return isinstance(operand, torch.Tensor) and self.arena.kind_of(operand, -1) >= 0


class NativeRecording:
    """Implements `kernels.ops.Recording`. The output's live rows are the step's sampled rows."""

    def __init__(
        self,
        tape: Tape,
        output: torch.Tensor,
        library: Library,
        threads: int,
        scratch_bytes: int,
        shared_bytes: int,
    ) -> None:
        self.output = output
        self.labels = tuple(tape.labels)
        self._tape = tape
        self._program = (Op * len(tape.ops))(*tape.ops)
        self._library = library
        self._threads = threads
        self._bytes = (scratch_bytes, shared_bytes)
        self._dims = (ctypes.c_int32 * 3)()

    @property
    def arena_bytes(self) -> int:
        """Memory that intermediates and the output take."""
        return self._tape.arena.num_bytes

    def replay(self, shape: StepShape) -> torch.Tensor:
        self._run(shape, None)
        return self.output[: shape.num_rows]

    def timed_replay(self, shape: StepShape) -> list[float]:
        """Replay, and return the seconds of each operation; `labels` names them."""
        seconds = (ctypes.c_double * len(self.labels))()
        self._run(shape, seconds)
        return list(seconds)

    def _run(self, shape: StepShape, seconds: ctypes.Array[ctypes.c_double] | None) -> None:
        self._dims[:] = [shape.num_tokens, shape.num_seqs, shape.num_rows]
        team = self._library.team(self._threads)
        self._library.run(team, self._program, len(self.labels), self._dims, *self._bytes, seconds)


def time_program(
    recording: NativeRecording, shape: StepShape, repeats: int = 5
) -> dict[str, float]:
    """Seconds of a step by operation name, from the fastest of `repeats` replays, largest first."""
    runs = [recording.timed_replay(shape) for _ in range(repeats)]
    fastest = min(runs, key=sum)
    totals: dict[str, float] = {}
    for label, seconds in zip(recording.labels, fastest, strict=True):
        totals[label] = totals.get(label, 0.0) + seconds
    return dict(sorted(totals.items(), key=lambda item: -item[1]))
