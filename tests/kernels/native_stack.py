"""A decoder with random weights written straight on `Ops`: what a recording is tested and timed with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonet.kernels.ops import AttentionInputs, LayerCache, Ops, PackedLinear, QKVLayout


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    dim: int
    vocab: int


SMOLLM2_135M = Shape(30, 576, 1536, 9, 3, 64, 49_152)
QWEN2_05B = Shape(24, 896, 4864, 14, 2, 64, 151_936)
TINY = Shape(2, 96, 144, 6, 2, 32, 200)


@dataclass(frozen=True, slots=True)
class Buffers:
    """The fixed inputs of a step, as large as the largest step."""

    token_ids: torch.Tensor
    rows: torch.Tensor
    inputs: AttentionInputs

    @staticmethod
    def make(tokens: int, sequences: int, rows: int, max_blocks: int) -> Buffers:
        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32)

        inputs = AttentionInputs(
            ints(tokens),
            ints(sequences + 1),
            ints(sequences),
            ints(sequences, max_blocks),
            ints(tokens),
            tokens,
            0,
        )
        return Buffers(ints(tokens), ints(rows), inputs)

    def fill(
        self, spans: list[tuple[int, int]], block_size: int, generator: torch.Generator
    ) -> int:
        """A step that computes tokens [start, stop) of each sequence and samples its last one; the token count."""
        inputs, first = self.inputs, 0
        for seq, (start, stop) in enumerate(spans):
            count, last = stop - start, first + stop - start
            blocks = (
                torch.arange(inputs.block_table.shape[1]) + 1 + seq * inputs.block_table.shape[1]
            )
            inputs.block_table[seq] = blocks
            positions = torch.arange(start, stop)
            inputs.positions[first:last] = positions
            inputs.slots[first:last] = (
                blocks[positions // block_size] * block_size + positions % block_size
            )
            inputs.query_start[seq] = first
            inputs.query_start[seq + 1] = last
            inputs.kv_len[seq] = stop
            self.token_ids[first:last] = torch.randint(0, 200, (count,), generator=generator)
            self.rows[seq] = last - 1
            first = last
        return first

    def live(self, tokens: int, sequences: int) -> Buffers:
        """The same step in buffers that are exactly large enough."""
        inputs = self.inputs
        exact = AttentionInputs(
            inputs.positions[:tokens],
            inputs.query_start[: sequences + 1],
            inputs.kv_len[:sequences],
            inputs.block_table[:sequences],
            inputs.slots[:tokens],
            tokens,
            0,
        )
        return Buffers(self.token_ids[:tokens], self.rows[:sequences], exact)


class Stack:
    """Embedding, layers, final norm and tied logits."""

    def __init__(
        self, ops: Ops, shape: Shape, num_blocks: int, block_size: int = 16, quantize=None
    ) -> None:
        torch.manual_seed(0)
        self.ops, self.shape, self.block_size = ops, shape, block_size
        self.layout = QKVLayout(shape.heads, shape.kv_heads, shape.dim)
        quantize = quantize or (lambda weight, bits: weight)

        def linear(outputs: int, inputs: int, bits: int = 4) -> PackedLinear:
            return ops.pack(quantize(torch.randn(outputs, inputs) / inputs**0.5, bits))

        self.table = linear(shape.vocab, shape.hidden, 8)
        width = (shape.heads + 2 * shape.kv_heads) * shape.dim
        self.layers = [
            (
                linear(width, shape.hidden),
                linear(shape.hidden, shape.heads * shape.dim),
                linear(2 * shape.ffn, shape.hidden),
                linear(shape.hidden, shape.ffn),
            )
            for _ in range(shape.layers)
        ]
        self.norm = torch.ones(shape.hidden)
        self.caches: list[LayerCache] = [
            ops.allocate_cache(num_blocks, block_size, shape.kv_heads, shape.dim)
            for _ in range(shape.layers)
        ]
        angles = torch.arange(8192).unsqueeze(1) / 10_000 ** (
            torch.arange(shape.dim // 2) / shape.dim * 2
        )
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)

    def forward(self, buffers: Buffers) -> torch.Tensor:
        ops, inputs = self.ops, buffers.inputs
        residual = ops.embed(buffers.token_ids, self.table, 1.0)
        x = ops.rms_norm(residual, self.norm, 1e-5)
        for index, ((qkv, out, gate_up, down), cache) in enumerate(
            zip(self.layers, self.caches, strict=True)
        ):
            if index:
                x = ops.add_rms_norm(x, residual, self.norm, 1e-5)
            q = ops.rope_store(
                ops.linear(x, qkv), self.layout, self.cos_sin, cache, inputs, None, None, 1e-5
            )
            mixed = ops.attention(
                q, self.layout, cache, inputs, scale=self.shape.dim**-0.5, window=None, softcap=None
            )
            x = ops.add_rms_norm(ops.linear(mixed, out), residual, self.norm, 1e-5)
            x = ops.linear(ops.gated(ops.linear(x, gate_up), "silu"), down)
        x = ops.add_rms_norm(x, residual, self.norm, 1e-5)
        return ops.logits(ops.gather_rows(x, buffers.rows), self.table, None)
