"""The skeleton every decoder-only transformer shares; a family supplies its block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from nonet.core.model_spec import ModelSpec
from nonet.kernels.ops import Ops
from nonet.layers.forward_step import ForwardStep
from nonet.layers.parameters import Parameters
from nonet.layers.rotary import cos_sin_table

__all__ = ["Block", "BlockFactory", "Decoder"]


class Block(Protocol):
    """One layer. The residual stream is updated in place; what is returned is normed for the next layer.

    The norm that follows a block is handed in, because it is fused with the block's last addition. With `rows` (int32
    [R]) only these tokens go on after attention: what is returned is [R, M], and `residual` is not to be used again.
    """

    input_norm: torch.Tensor

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        step: ForwardStep,
        next_norm: torch.Tensor,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


BlockFactory = Callable[[ModelSpec, int, Ops, Parameters, torch.Tensor], Block]


class Decoder:
    """Embedding, blocks, final norm and output head. Holds no state between calls but its weights."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        parameters: Parameters,
        block: BlockFactory,
        max_model_len: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.spec = spec
        self._ops = ops
        # Hugging Face rounds the scale to the weights' dtype before it multiplies.
        self._embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=ops.dtype))
        full = cos_sin_table(spec.rope, spec.head_dim, max_model_len, spec.max_position).to(
            ops.device
        )
        local = full
        if spec.rope_local is not None:
            local = cos_sin_table(spec.rope_local, spec.head_dim, max_model_len, spec.max_position)
            local = local.to(ops.device)
        self._embedding = parameters.embedding("model.embed_tokens")
        self._blocks: list[Block] = []
        for index, window in enumerate(spec.windows):
            table = full if window is None else local
            self._blocks.append(block(spec, index, ops, parameters, table))
            if progress is not None:
                progress(index + 1, spec.num_layers)
        self._norm = parameters.norm("model.norm")
        self._head = self._embedding if spec.tie_embeddings else parameters.linear("lm_head")

    def hidden(self, step: ForwardStep) -> torch.Tensor:
        """Final normed hidden states [T, M]; writes the step's KV."""
        return self._run(step, None)

    def _run(self, step: ForwardStep, rows: torch.Tensor | None) -> torch.Tensor:
        """[T, M], or [R, M] of `rows`: in the last layer only they go on once their keys and values are stored."""
        ops, eps = self._ops, self.spec.norm_eps
        residual = ops.embed(step.token_ids, self._embedding, self._embedding_scale)
        x = ops.rms_norm(residual, self._blocks[0].input_norm, eps)
        norms = [block.input_norm for block in self._blocks[1:]] + [self._norm]
        for block, next_norm in zip(self._blocks[:-1], norms[:-1], strict=True):
            x = block(x, residual, step, next_norm)
        return self._blocks[-1](x, residual, step, norms[-1], rows)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [R, M] to float32 logits [R, V]."""
        return self._ops.logits(hidden, self._head, self.spec.logit_softcap)

    def forward(self, step: ForwardStep) -> torch.Tensor:
        """Logits [R, V] of the step's `rows`."""
        if self._ops.needs_all_rows:
            return self.logits(self._ops.gather_rows(self.hidden(step), step.rows))
        return self.logits(self._run(step, None if step.wants_all else step.rows))
