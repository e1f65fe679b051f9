"""Linear layers with adapter slots: what the model's layers get instead of plain ones when adapters are served.

Idea: y = W x + scale * B (A x), with A and B of the adapter of each token's own sequence. Reference: LoRA
(arXiv 2106.09685); many adapters in one batch: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285). Cost: rank *
(inputs + outputs) more weights to read for each adapter in a step, in the layers that one adds to; steps without one
run as if there were none.
Good for: many fine-tuned variants on the memory of one model. Conflicts: none; a quantised base is multiplied as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from nonet.kernels.ops import LowRankFactors, Ops, PackedLinear, Product, Recording, StepShape
from nonet.kernels.wrapped import WrappedOps
from nonet.layers.forward_step import AdapterRows
from nonet.layers.parameters import Parameters
from nonet.lora.adapter import Adapter, LayerShape

__all__ = ["AdaptedLinear", "AdapterLayers", "LoraOps"]


@dataclass(frozen=True, slots=True, eq=False)
class AdaptedLinear:
    """A packed linear layer and the slots beside it."""

    base: PackedLinear
    factors: LowRankFactors


class LoraOps(WrappedOps):
    """Adds each token's adapter to the linear layers that have slots; everything else is the inner implementation's.

    `rows` says which slot each token of the step has; whoever fills it does so before the forward pass. `touched` are
    the layers that some adapter in a slot has ever added to, and only grows: the others cost nothing.
    """

    def __init__(self, inner: Ops) -> None:
        super().__init__(inner)
        self.rows = AdapterRows(torch.zeros(0, dtype=torch.int32, device=inner.device))
        self.touched: set[AdaptedLinear] = set()

    @property
    def needs_all_rows(self) -> bool:
        return self.rows.in_use or self.inner.needs_all_rows

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> Product:
        if not isinstance(weight, AdaptedLinear):
            return self.inner.linear(x, weight)
        if not self.rows.in_use or weight not in self.touched:
            return self.inner.linear(x, weight.base)
        slots = self.rows.slots[: x.shape[0]]
        inner = self.inner.lora_inner(x, weight.factors, slots)
        out = self.inner.linear(x, weight.base)
        return self.inner.lora_add(out, inner, weight.factors, slots)

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        """Steps without an adapter replay the recording that they would have alone; others have one of their own."""
        assert not self.rows.in_use, "recorded before the first step"
        plain = self.inner.record(forward, largest)
        if plain is None:
            return None
        return _EitherRecording(self, plain, lambda: self.inner.record(forward, largest))


class _EitherRecording:
    """Knows the layers that the adapted steps' recording adds to: touched ones that it lacks make it anew."""

    def __init__(
        self, ops: LoraOps, plain: Recording, record: Callable[[], Recording | None]
    ) -> None:
        self._ops = ops
        self._plain = plain
        self._record = record
        self._adapted: Recording | None = None
        self._num_touched = 0  # when it was made
        self._num_given_up = 0  # replays of those that others took the place of

    @property
    def num_replays(self) -> int:
        adapted = 0 if self._adapted is None else self._adapted.num_replays
        return self._plain.num_replays + self._num_given_up + adapted

    def replay(self, shape: StepShape) -> torch.Tensor:
        if not self._ops.rows.in_use:
            return self._plain.replay(shape)
        return self._current().replay(shape)

    def record_ahead(self) -> bool:
        assert not self._ops.rows.in_use, "recorded ahead of steps without an adapter only"
        return self._plain.record_ahead()

    def _current(self) -> Recording:
        """Called in a step with an adapter, so what is recorded here adds adapters."""
        if self._adapted is not None and len(self._ops.touched) == self._num_touched:
            return self._adapted
        if self._adapted is not None:
            self._num_given_up += self._adapted.num_replays
            self._adapted = None  # its memory can serve the next one
        made = self._record()
        assert made is not None, "a recording was made before"
        self._adapted, self._num_touched = made, len(self._ops.touched)
        return made


class AdapterLayers:
    """The model's parameters with slots beside each linear layer of `shapes`; knows all slots, so it can fill them.

    Implements `layers.parameters.Parameters`. `shapes` is matrix name to (outputs, inputs).
    """

    def __init__(
        self,
        parameters: Parameters,
        ops: LoraOps,
        shapes: Mapping[str, tuple[int, int]],
        *,
        num_slots: int,
        max_rank: int,
    ) -> None:
        self._parameters = parameters
        self._ops = ops
        self._shapes = shapes
        self._num_slots = num_slots
        self._max_rank = max_rank
        self._linears: list[AdaptedLinear] = []
        self.layers: list[LayerShape] = []

    def linear(self, *names: str, bias: bool = False) -> PackedLinear:
        base = self._parameters.linear(*names, bias=bias)
        if any(name not in self._shapes for name in names):  # the output head
            return base
        outputs = tuple(self._shapes[name][0] for name in names)
        layer = LayerShape(names, outputs, self._shapes[names[0]][1])
        self.layers.append(layer)
        self._linears.append(AdaptedLinear(base, self._allocate(layer)))
        return self._linears[-1]

    def norm(self, name: str) -> torch.Tensor:
        return self._parameters.norm(name)

    def embedding(self, name: str) -> PackedLinear:
        return self._parameters.embedding(name)

    @torch.inference_mode()
    def store(self, adapter: Adapter, slot: int) -> None:
        """Copy an adapter into a slot, over whatever was there."""
        for linear, host in zip(self._linears, adapter.layers, strict=True):
            factors = linear.factors
            first, second = factors.first[slot - 1], factors.second[slot - 1]
            parts, rank = len(factors.ends), factors.rank
            used = 0 if host is None else host.second.shape[0]
            by_part = first.view(parts, rank, -1)
            by_part[:, used:].zero_()
            second[used:].zero_()
            assert factors.ranks is not None
            ranks = (0,) * parts if host is None else host.ranks
            factors.ranks[slot - 1] = torch.tensor(ranks, dtype=torch.int32)
            if host is not None:
                self._ops.touched.add(linear)
                by_part[:, :used].copy_(host.first)
                second[:used].copy_(host.second)

    def _allocate(self, layer: LayerShape) -> LowRankFactors:
        rows, columns = len(layer.names) * self._max_rank, sum(layer.outputs)
        first = torch.zeros(
            self._num_slots, rows, layer.inputs, dtype=self._ops.dtype, device=self._ops.device
        )
        second = torch.zeros(
            self._num_slots, self._max_rank, columns, dtype=self._ops.dtype, device=self._ops.device
        )
        ranks = torch.zeros(
            self._num_slots, len(layer.names), dtype=torch.int32, device=self._ops.device
        )
        return LowRankFactors(first, second, layer.ends, ranks)
