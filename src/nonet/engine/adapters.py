"""Adapters around a model: its operations, its parameters and the pool, put together when the configuration asks."""

from __future__ import annotations

from pathlib import Path

from nonet.config.resolved import AdapterPlan
from nonet.core.model_spec import ModelSpec
from nonet.kernels.ops import Ops
from nonet.layers.parameters import Parameters
from nonet.lora.adapter import Adapter
from nonet.lora.checkpoint import read_adapter
from nonet.lora.layers import AdapterLayers, LoraOps
from nonet.lora.pool import AdapterPool

__all__ = ["AdapterParts"]


class AdapterParts:
    """`ops` and `wrap` go into the model; then `open` makes the pool, with the adapters of the configuration in it."""

    def __init__(self, plan: AdapterPlan, spec: ModelSpec, ops: Ops) -> None:
        self._plan = plan
        self._shapes = {
            f"model.layers.{layer}.{name}": shape
            for layer in range(spec.num_layers)
            for name, shape in spec.linears.items()
        }
        self.ops = LoraOps(ops)
        self._layers: AdapterLayers | None = None
        self._pool: AdapterPool | None = None

    def wrap(self, parameters: Parameters) -> AdapterLayers:
        """The parameters for the model, with slots beside its linear layers."""
        self._layers = AdapterLayers(
            parameters,
            self.ops,
            self._shapes,
            num_slots=self._plan.num_slots,
            max_rank=self._plan.max_rank,
        )
        return self._layers

    def open(self) -> AdapterPool:
        """Once the model is built. UserError when an adapter of the configuration cannot be used."""
        layers = self._layers
        assert layers is not None, "the model is built first"

        def read(name: str, folder: Path) -> Adapter:
            return read_adapter(
                name, folder, layers.layers, max_rank=self._plan.max_rank, dtype=self.ops.dtype
            )

        pool = AdapterPool(
            read,
            layers.store,
            num_slots=self._plan.num_slots,
            max_registered=self._plan.max_registered,
        )
        for name, folder in self._plan.modules:
            pool.register(name, Path(folder))
        self._pool = pool
        return pool

    def slot_of(self, adapter_id: str) -> int:
        """Where the adapter of a sequence that runs lies; 0 for none."""
        assert self._pool is not None
        return self._pool.slot_of(adapter_id)
