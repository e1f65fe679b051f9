"""A forward pass as a list of native calls, run again in one call for any number of rows up to the recorded ones."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from nonet.kernels.native.library import Library, LinearArgs, Op
from nonet.kernels.native.memory import Arena
from nonet.kernels.ops import StepShape

__all__ = ["Entry", "NativeRecording", "RowKind", "Tape", "fuse_gates", "time_program"]

# Columns that fit the scratch in which a linear layer gates a row (kProductScratchBytes of csrc/linear.h).
_MOST_GATED_COLUMNS = 32_768


class RowKind(IntEnum):
    """What counts the rows of a value: the index into the live counts of a step."""

    TOKENS = 0
    SEQUENCES = 1
    ROWS = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation of a tape. `reads` and `writes` are the addresses of the intermediates that it touches."""

    label: str
    kernel: str
    args: ctypes.Structure
    reads: frozenset[int]
    writes: int


class Tape:
    """Operations in the order they were asked for, and the memory of what flows between them."""

    def __init__(self) -> None:
        self.arena = Arena()
        self.entries: list[Entry] = []
        self._gating: torch.Tensor | None = None  # kept from reuse while the next layer may read it
        self._kept: list[object] = []

    def append(
        self,
        label: str,
        kernel: str,
        args: ctypes.Structure,
        out: torch.Tensor,
        operands: tuple[Any, ...],
    ) -> None:
        """Operands that are no intermediates (weights, caches, inputs) must outlive the recording."""
        self._gating = operands[0] if kernel == "gated" else None
        reads = set()
        for operand in operands:
            if isinstance(operand, torch.Tensor) and self.arena.kind_of(operand, -1) >= 0:
                reads.add(operand.untyped_storage().data_ptr())
            else:
                self._kept.append(operand)
        self.entries.append(
            Entry(label, kernel, args, frozenset(reads), out.untyped_storage().data_ptr())
        )


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
        self.num_replays = 0
        self._tape = tape
        entries = fuse_gates(tape.entries, output.untyped_storage().data_ptr())
        self.labels = tuple(entry.label for entry in entries)
        self._args = [entry.args for entry in entries]
        self._program = (Op * len(entries))(
            *(
                Op(library.address_of[entry.kernel], ctypes.addressof(entry.args))
                for entry in entries
            )
        )
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
        self.num_replays += 1
        return self.output[: shape.num_rows]

    def record_ahead(self) -> bool:
        return False  # one recording serves all shapes

    def timed_replay(self, shape: StepShape) -> list[float]:
        """Replay, and return the seconds of each operation; `labels` names them."""
        seconds = (ctypes.c_double * len(self.labels))()
        self._run(shape, seconds)
        return list(seconds)

    def _run(self, shape: StepShape, seconds: ctypes.Array[ctypes.c_double] | None) -> None:
        self._dims[:] = [shape.num_tokens, shape.num_seqs, shape.num_rows]
        team = self._library.team(self._threads)
        self._library.run(team, self._program, len(self.labels), self._dims, *self._bytes, seconds)


def fuse_gates(entries: list[Entry], output: int) -> list[Entry]:
    """Lets a linear layer do the gating before it, as part of rounding its input, where nobody else reads the result.

    A step of many tokens thus saves writing and reading the gated values once each.
    """
    fused: list[Entry] = []
    for index, entry in enumerate(entries):
        before = fused[-1] if fused else None
        if (
            before is not None
            and before.kernel == "gated"
            and isinstance(entry.args, LinearArgs)
            and entry.reads == {before.writes}
            and entry.writes not in before.reads
            and before.args.columns <= _MOST_GATED_COLUMNS
            and not _is_read(before.writes, entries[index + 1 :], output)
        ):
            args = type(entry.args).from_buffer_copy(entry.args)
            args.x, args.gate = before.args.gate_up, before.args.gate
            fused[-1] = Entry(entry.label, entry.kernel, args, before.reads, entry.writes)
        else:
            fused.append(entry)
    return fused


def _is_read(address: int, entries: list[Entry], output: int) -> bool:
    """Whether what lies at `address` now is read by one of `entries`, or is the recording's output."""
    for entry in entries:
        if address in entry.reads:
            return True
        if entry.writes == address:
            return False
    return address == output


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
