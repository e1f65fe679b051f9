"""Linear layers with slots: those that no adapter touches launch nothing, and recordings follow when one comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from nonet.kernels.ops import (
    Activation,
    LowRankFactors,
    LowRankInner,
    PackedLinear,
    Product,
    Recording,
    StepShape,
)
from nonet.kernels.reference.ops import ReferenceOps
from nonet.kernels.wrapped import WrappedOps
from nonet.lora.adapter import Adapter, HostFactors
from nonet.lora.layers import AdapterLayers, LoraOps

NAMES = ("gate", "up", "down")  # the first two are one layer
WIDTH = 6
SHAPE = StepShape(5, 5, 5, 1)
SHAPES = dict.fromkeys(NAMES, (WIDTH, WIDTH))


@dataclass
class Tape:
    """Runs again what was launched, on the memory it was launched on, as a CUDA graph does; nothing of why."""

    calls: list[Callable[[], object]] = field(default_factory=list)
    output: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    num_replays: int = 0
    num_ahead: int = 0

    def replay(self, shape: StepShape) -> torch.Tensor:
        self.num_replays += 1
        for call in self.calls:
            call()
        return self.output[: shape.num_rows]

    def record_ahead(self) -> bool:
        self.num_ahead += 1
        return self.num_ahead < 3


class TapeOps(WrappedOps):
    """The reference with recordings, and lists of what was launched for the layers and of what was added to."""

    def __init__(self) -> None:
        super().__init__(ReferenceOps(torch.float32, torch.device("cpu")))
        self.tapes: list[Tape] = []
        self.launched: list[str] = []
        self.added: list[LowRankFactors] = []
        self._recorded: Tape | None = None

    def linear(self, x: torch.Tensor, weight: PackedLinear) -> Product:
        self.launched.append("linear")
        out = self.inner.linear(x, weight)
        self._keep(lambda: out.copy_(self.inner.linear(x, weight)))
        return out

    def gated(self, gate_up: Product, activation: Activation) -> torch.Tensor:
        out = self.inner.gated(gate_up, activation)
        self._keep(lambda: out.copy_(self.inner.gated(gate_up, activation)))
        return out

    def lora_inner(
        self, x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> LowRankInner:
        self.launched.append("inner")
        inner = self.inner.lora_inner(x, factors, slots)
        self._keep(lambda: inner.copy_(self.inner.lora_inner(x, factors, slots)))
        return inner

    def lora_add(
        self, out: Product, inner: LowRankInner, factors: LowRankFactors, slots: torch.Tensor
    ) -> Product:
        self.launched.append("add")
        self._keep(lambda: self._add(out, inner, factors, slots))
        return self._add(out, inner, factors, slots)

    def _add(
        self, out: Product, inner: LowRankInner, factors: LowRankFactors, slots: torch.Tensor
    ) -> Product:
        self.added.append(factors)
        return self.inner.lora_add(out, inner, factors, slots)

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        tape = self._recorded = Tape()
        tape.output = forward(largest)
        self._recorded = None
        self.tapes.append(tape)
        return tape

    def _keep(self, call: Callable[[], object]) -> None:
        if self._recorded is not None:
            self._recorded.calls.append(call)


class Weights:
    """Implements `layers.parameters.Parameters` with a number drawn for each name."""

    def __init__(self, ops: TapeOps) -> None:
        self._ops = ops
        self.dense = {name: torch.randn(WIDTH, WIDTH) for name in NAMES}

    def linear(self, *names: str, bias: bool = False) -> PackedLinear:
        return self._ops.pack(torch.cat([self.dense[name] for name in names]))

    def norm(self, name: str) -> torch.Tensor:
        raise NotImplementedError

    def embedding(self, name: str) -> PackedLinear:
        raise NotImplementedError


class Model:
    """A gated MLP: two layers with slots, over buffers as a runner has them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.tapes = TapeOps()
        self.ops = LoraOps(self.tapes)
        self.ops.rows.slots = torch.zeros(SHAPE.num_tokens, dtype=torch.int32)
        self.weights = Weights(self.tapes)
        self.layers = AdapterLayers(self.weights, self.ops, SHAPES, num_slots=2, max_rank=4)
        self.linears = [self.layers.linear("gate", "up"), self.layers.linear("down")]
        self.x = torch.randn(SHAPE.num_tokens, WIDTH)
        self.adapters: dict[int, dict[str, torch.Tensor]] = {}  # what a slot adds to each matrix

    def forward(self, shape: StepShape) -> torch.Tensor:
        both = self.ops.linear(self.x[: shape.num_tokens], self.linears[0])
        out: torch.Tensor = self.ops.linear(self.ops.gated(both, "silu"), self.linears[1])
        return out

    def store(self, slot: int, *targets: str, rank: int = 2) -> None:
        """A made-up adapter of these matrices."""
        hosts: list[HostFactors | None] = []
        self.adapters[slot] = {}
        for layer in self.layers.layers:
            mine = [name for name in layer.names if name in targets]
            if not mine:
                hosts.append(None)
                continue
            first = torch.randn(len(layer.names), rank, WIDTH)
            second = torch.randn(rank, WIDTH * len(layer.names))
            for part, name in enumerate(layer.names):
                columns = slice(part * WIDTH, (part + 1) * WIDTH)
                if name not in targets:
                    first[part], second[:, columns] = 0, 0
                self.adapters[slot][name] = second[:, columns].T @ first[part]
            ranks = tuple(rank if name in targets else 0 for name in layer.names)
            hosts.append(HostFactors(first, second, ranks))
        self.layers.store(Adapter(f"a{slot}", f"a{slot}@0", rank, tuple(hosts)), slot)

    def fill(self, *slots: int) -> None:
        """The slot of each token of the step, whose other inputs are new too."""
        self.ops.rows.slots.copy_(torch.tensor(slots))
        self.ops.rows.in_use = any(slots)
        self.x.normal_()
        self.tapes.added.clear()

    def merged(self) -> torch.Tensor:
        """Each token by the matrices of its own adapter."""
        rows = []
        for x, slot in zip(self.x, self.ops.rows.slots.tolist(), strict=True):
            more = self.adapters.get(slot, {})
            gate, up, down = (self.weights.dense[name] + more.get(name, 0) for name in NAMES)
            rows.append(down @ (torch.nn.functional.silu(gate @ x) * (up @ x)))
        return torch.stack(rows)


@pytest.fixture
def model() -> Model:
    return Model()


def test_untouched_layers_launch_nothing(model: Model) -> None:
    both, down = (linear.factors for linear in model.linears)
    model.store(1, "gate")
    model.fill(0, 1, 1, 0, 1)
    torch.testing.assert_close(model.forward(SHAPE), model.merged())
    assert [id(factors) for factors in model.tapes.added] == [id(both)]
    model.store(2, "down")
    model.fill(0, 1, 2, 0, 2)
    torch.testing.assert_close(model.forward(SHAPE), model.merged())
    assert [id(factors) for factors in model.tapes.added] == [id(both), id(down)]
    model.fill(0, 0, 0, 0, 0)
    torch.testing.assert_close(model.forward(SHAPE), model.merged())
    assert not model.tapes.added


def test_the_first_product_is_asked_for_before_the_base(model: Model) -> None:
    """So that it may run beside it."""
    model.store(1, "up")
    model.fill(1, 0, 0, 0, 1)
    model.forward(SHAPE)
    assert model.tapes.launched == ["inner", "linear", "add", "linear"]


def test_a_recording_is_made_anew_for_further_layers(model: Model) -> None:
    recording = model.ops.record(model.forward, SHAPE)
    assert recording is not None
    (plain,) = model.tapes.tapes

    def replay(*slots: int) -> int:
        """How many layers were added to."""
        model.fill(*slots)
        torch.testing.assert_close(recording.replay(SHAPE), model.merged())
        return len(model.tapes.added)

    assert replay(0, 0, 0, 0, 0) == 0
    model.store(1, "gate")
    replay(1, 0, 1, 0, 0)
    assert replay(0, 1, 1, 1, 0) == 1
    assert len(model.tapes.tapes) == 2
    model.store(2, "gate", "up", rank=4)  # no further layer
    assert replay(2, 1, 2, 0, 1) == 1
    assert len(model.tapes.tapes) == 2
    model.store(1, "up", "down")
    replay(2, 1, 2, 0, 1)
    assert replay(0, 1, 2, 1, 2) == 2
    assert len(model.tapes.tapes) == 3
    model.store(1, "gate")  # the layers stay recorded
    assert replay(1, 1, 2, 0, 0) == 2
    assert replay(0, 0, 0, 0, 0) == 0
    assert len(model.tapes.tapes) == 3
    assert plain.num_replays == 2, "steps without an adapter keep theirs"
    assert recording.num_replays == 8, "those of the recording that was given up count"


def test_steps_without_an_adapter_are_recorded_ahead(model: Model) -> None:
    recording = model.ops.record(model.forward, SHAPE)
    assert recording is not None
    assert [recording.record_ahead() for _ in range(3)] == [True, True, False]
    assert [tape.num_ahead for tape in model.tapes.tapes] == [3]
    model.store(1, "gate")
    model.fill(1, 0, 0, 0, 0)
    with pytest.raises(AssertionError):  # what was recorded now would add an adapter
        recording.record_ahead()


def test_the_comparison_sees_a_recording_that_lacks_a_layer(model: Model) -> None:
    recording = model.ops.record(model.forward, SHAPE)
    assert recording is not None
    model.store(1, "gate")
    model.fill(1, 1, 1, 1, 1)
    recording.replay(SHAPE)
    model.store(1, "gate", "down")
    stale = model.tapes.tapes[1].replay(SHAPE)
    assert not torch.allclose(stale, model.merged(), rtol=0.1)


def test_an_implementation_without_recordings_stays_without() -> None:
    ops = LoraOps(ReferenceOps(torch.float32, torch.device("cpu")))
    assert ops.record(lambda shape: torch.zeros(shape.num_rows), SHAPE) is None
