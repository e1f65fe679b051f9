"""The least that a step must do: floating-point operations, and bytes that must move through the device's memory.

Operations: two for each weight of a linear and token, two for each weight of the output head and sampled token, and
4 H D for each query and visible entry in each layer (Q K^T and P V). In the last layer only sampled tokens go on after
attention, so what lies beyond counts for them alone. Bytes: every weight once a step (but of an untied
token table, of which only rows are read), every visible KV entry once for each sequence, every new entry written once.
Activations are left out: fused kernels need not move them, and in decode they are under 1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from nonet.config.memory import DTYPE_BYTES
from nonet.config.resolved import Resolved
from nonet.core.model_spec import ModelSpec

__all__ = ["ModelWork", "Work"]

BEFORE_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True, slots=True)
class Work:
    """Of one step, or of several together."""

    flops: float
    num_bytes: float


@dataclass(frozen=True, slots=True)
class ModelWork:
    """Counts for a model as it is held by an engine."""

    spec: ModelSpec
    resolved: Resolved

    @property
    def layer_weights(self) -> int:
        """Weights in the linears of all layers."""
        each = sum(outputs * inputs for outputs, inputs in self.spec.linears.values())
        return self.spec.num_layers * each

    def products(self, tokens: int, sampled: int) -> float:
        """Operations in the linears and the output head of a step."""
        linears = self.spec.linears.items()
        tail = sum(
            outputs * inputs for name, (outputs, inputs) in linears if name not in BEFORE_ATTENTION
        )
        weights = tokens * (self.layer_weights - tail) + sampled * (tail + self._head_weights)
        return 2.0 * weights

    @property
    def weight_bytes(self) -> float:
        """Read by every step that samples: all but an untied token table."""
        held = self.resolved.memory.weight_bytes
        if self.spec.tie_embeddings:
            return held
        return held - self.spec.vocab_size * self.spec.hidden_size * self._table_weight_bytes

    @property
    def kv_bytes_per_layer(self) -> float:
        """Keys and values of one token in one layer."""
        largest = max(len(group.layers) for group in self.resolved.groups)
        return self.resolved.memory.kv_bytes_per_block / (self.resolved.block_size * largest)

    def decode(self, batch: int, context: float) -> Work:
        """One step of `batch` sequences, each with `context` entries once its token is stored."""
        visible = batch * self._visible(context)
        flops = self.products(batch, batch) + self._attention(visible)
        written = batch * self.spec.num_layers * self.kv_bytes_per_layer
        return Work(flops, self.weight_bytes + visible * self.kv_bytes_per_layer + written)

    def prefill(self, batch: int, length: int) -> Work:
        """`batch` whole prompts and the first token of each, in as few steps as the token budget allows."""
        tokens = batch * length
        visible = batch * sum(self._causal(length, window) for window in self.spec.windows)
        flops = self.products(tokens, batch)
        steps = -(-tokens // self.resolved.max_tokens_per_step)
        kv = tokens * self.spec.num_layers * self.kv_bytes_per_layer
        # What a step wrote is read back at least once, by the queries of the same prompt.
        return Work(flops + self._attention(visible), steps * self.weight_bytes + 2 * kv)

    @property
    def _head_weights(self) -> int:
        return self.spec.vocab_size * self.spec.hidden_size

    @property
    def _table_weight_bytes(self) -> float:
        """fp8 keeps the token table in the model's dtype; elsewhere the mean over all weights is near enough."""
        if self.resolved.weight_format.startswith("fp8"):
            return DTYPE_BYTES[self.resolved.dtype]
        return self.resolved.memory.weight_bytes / self.spec.num_parameters

    def _attention(self, visible: float) -> float:
        return 4.0 * self.spec.num_heads * self.spec.head_dim * visible

    def _visible(self, context: float) -> float:
        """Entries that one query sees, over all layers."""
        return sum(min(context, window or context) for window in self.spec.windows)

    @staticmethod
    def _causal(length: int, window: int | None) -> float:
        """Pairs of query and visible entry of one prompt in one layer."""
        wide = min(length, window or length)
        return wide * (wide + 1) / 2 + (length - wide) * wide
