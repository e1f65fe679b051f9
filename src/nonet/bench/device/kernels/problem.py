"""One operation at one size: what to call, and the least work that it must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import torch

from nonet.bench.device.ceilings import Ceilings
from nonet.bench.device.timing import copies_for, median_seconds
from nonet.core.model_spec import ModelSpec
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import Ops

__all__ = ["Bench", "Calls", "Measured", "Problem", "measure"]

Calls = Sequence[Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and on what shapes: the implementation of the kernels, and the model whose layers give the sizes."""

    ops: Ops
    spec: ModelSpec
    weight_formats: tuple[str, ...]
    kv_format: KVFormat | None
    block_size: int
    rows: tuple[int, ...] = ()  # of linear layers and the output head; none: few to many

    @property
    def device(self) -> torch.device:
        return self.ops.device

    @property
    def is_gpu(self) -> bool:
        return self.ops.device.type == "cuda"

    @property
    def element_bytes(self) -> int:
        return self.ops.dtype.itemsize

    @property
    def activation_bytes(self) -> int:
        """Between two operations an implementation has numbers of its own choice; its table of tokens shows which."""
        return self._activation_dtype.itemsize

    def random(self, *shape: int) -> torch.Tensor:
        """Normal numbers in the dtype of weights."""
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(self.ops.dtype)

    def activations(self, *shape: int) -> torch.Tensor:
        """Normal numbers as one operation hands them to the next."""
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(
            self._activation_dtype
        )

    @property
    def _activation_dtype(self) -> torch.dtype:
        ids = torch.zeros(1, dtype=torch.int32, device=self.device)
        return self.ops.embed(ids, self.ops.pack(self.random(64, 64)), 1.0).dtype

    def copies(self, num_bytes: int) -> int:
        return copies_for(num_bytes, self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`make` builds inputs and returns calls on different memory, so nothing is built for a size that is not run.

    `num_bytes` must move (each input read once, each output written once) and `flops` must be done by one call.
    `rivals` do the same by other means; one that cannot run says so when it is made or called.
    """

    case: dict[str, str | int]
    num_bytes: int
    flops: int
    make: Callable[[], Calls]
    arithmetic: str = ""  # the product it is held to; the kernels' dtype where empty
    is_recorded: bool = True
    rivals: dict[str, Callable[[], Calls]] = field(default_factory=dict)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Medians. Shares are of the measured peaks; `error` stands where a size could not be run."""

    kernel: str
    case: dict[str, str | int]
    num_bytes: int
    flops: int
    seconds: float | None = None
    bandwidth_share: float | None = None
    compute_share: float | None = None
    rivals: dict[str, float | str] = {}
    error: str | None = None


def measure(kernel: str, problem: Problem, bench: Bench, ceilings: Ceilings) -> Measured:
    """A size that does not fit or that an implementation refuses is a result, not a failure of the benchmark."""
    rivals = {}
    for name, make in problem.rivals.items():
        seconds, error = _time(make, bench.device, problem.is_recorded)
        rivals[name] = error if seconds is None else seconds
    seconds, error = _time(problem.make, bench.device, problem.is_recorded)
    measured = Measured(
        kernel=kernel,
        case=problem.case,
        num_bytes=problem.num_bytes,
        flops=problem.flops,
        rivals=rivals,
    )
    if seconds is None:
        return msgspec.structs.replace(measured, error=error)
    arithmetic = problem.arithmetic or str(bench.ops.dtype).removeprefix("torch.")
    return msgspec.structs.replace(
        measured,
        seconds=seconds,
        bandwidth_share=problem.num_bytes / seconds / ceilings.copy_bytes_per_s,
        compute_share=problem.flops / seconds / ceilings.peak(arithmetic),
    )


def _time(
    make: Callable[[], Calls], device: torch.device, is_recorded: bool
) -> tuple[float | None, str]:
    try:
        with torch.inference_mode():
            return median_seconds(make(), device, is_recorded=is_recorded), ""
    except Exception as error:  # see `measure`
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, lines[0][:120]
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
