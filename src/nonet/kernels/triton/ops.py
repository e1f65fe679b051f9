"""The operations of `kernels.ops` on an NVIDIA GPU: Triton kernels, and cuBLAS for dense linears."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

from nonet.core.errors import ConfigError
from nonet.kernels.entries import copy_all, read_all
from nonet.kernels.float8 import Float8Tensor
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.ops import (
    Activation,
    AttentionInputs,
    LayerCache,
    LowRankFactors,
    QKVLayout,
    Recording,
    SamplingKernels,
    StepShape,
    WeightMatrix,
)
from nonet.kernels.triton.attention import PagedAttention
from nonet.kernels.triton.cache import allocate_cache, stored_entries
from nonet.kernels.triton.coded import CodedLinear, can_pack, pack
from nonet.kernels.triton.coded import take_rows as take_coded_rows
from nonet.kernels.triton.compile_only import compile_only
from nonet.kernels.triton.gated import gated
from nonet.kernels.triton.graphs import GraphRecording
from nonet.kernels.triton.linear import (
    GROUP,
    MOST_ROWS_FLOAT8,
    DenseLinear,
    Float8Blocks,
    Float8Linear,
    Linears,
    float8_linear,
)
from nonet.kernels.triton.linear_coded import CodedLinears
from nonet.kernels.triton.linear_fixed import BLOCK, FixedLinears
from nonet.kernels.triton.linear_integers import (
    IntegerLinear,
    integer_linear,
    is_integer_linear,
    round_to_integers,
)
from nonet.kernels.triton.logits import logits, soft_cap
from nonet.kernels.triton.lora import expand, room_for_inner, shrink
from nonet.kernels.triton.quantize_rows import Rounded, quantize_blocks, quantize_rows
from nonet.kernels.triton.rms_norm import add_rms_norm, rms_norm
from nonet.kernels.triton.rope_store import rope_store
from nonet.kernels.triton.rows import take_rows
from nonet.kernels.triton.sampled_ids import take_sampled
from nonet.kernels.triton.sampling import TritonSampling
from nonet.kernels.triton.scaled import Scaled, settled
from nonet.kernels.triton.side_stream import SideStream

__all__ = ["TritonLinear", "TritonOps"]

TritonLinear = DenseLinear | Float8Linear | Float8Blocks | CodedLinear | IntegerLinear

# With fewer rows, one program a row is slower than many programs and a launch to round after them.
MANY_ROWS = 64


class TritonOps:
    """Everything in bfloat16 or float16 with float32 inside; float32 is exact and slow, for tests.

    >>> ops = TritonOps(torch.bfloat16, torch.device("cuda"))  # doctest: +SKIP
    >>> ops.linear(x, ops.pack(weight)).shape  # doctest: +SKIP
    torch.Size([8, 4096])
    """

    name = "triton"
    needs_all_rows = False
    rounds_groups = True  # where it is faster than a scale for the whole row

    def __init__(self, dtype: torch.dtype, device: torch.device, threads: int = 1) -> None:
        self.dtype = dtype
        self.device = device
        self.threads = threads  # the device does the work
        self.multiprocessors = _multiprocessors(device)
        self.paged_attention = PagedAttention(device, self.multiprocessors)
        self.linears = Linears(device, self.multiprocessors)
        self.coded_linears = CodedLinears(device, self.multiprocessors)
        self.fixed_linears = FixedLinears(device)
        self.side_stream = SideStream(device)
        self.sampling: SamplingKernels | None = TritonSampling()
        self.compile_only = compile_only if device.type == "cuda" else None
        self._has_float8 = False
        self._rounded: tuple[torch.Tensor, Rounded] | None = None

    @classmethod
    def create(cls, dtype: torch.dtype, device: torch.device, threads: int) -> TritonOps:
        """As the catalogue of kernels calls it."""
        return cls(dtype, device, threads)

    def pack(self, weight: WeightMatrix, bias: torch.Tensor | None = None) -> TritonLinear:
        """Codes and float8 stay as they are where a kernel reads them; only `linear` understands float8."""
        moved_bias = None if bias is None else bias.to(self.device, self.dtype)
        if isinstance(weight, Float8Tensor) and weight.inputs != "exact":
            return self._pack_float8(weight, moved_bias)
        if isinstance(weight, GroupwiseTensor) and is_integer_linear(weight):
            return integer_linear(weight, moved_bias, self.device)
        if not isinstance(weight, torch.Tensor) and weight.inputs not in ("free", "exact"):
            raise ConfigError(
                "the Triton kernels multiply integers on both sides where an output has one scale and inputs are "
                "rounded by token; use weight_format w8a8 without a group, or kernels reference"
            )
        is_wide = self.dtype == torch.float32
        if isinstance(weight, GroupwiseTensor) and can_pack(weight) and not is_wide:
            return pack(weight, moved_bias, self.device)
        dense = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
        return DenseLinear(dense.to(self.device, self.dtype).contiguous(), moved_bias)

    def _pack_float8(
        self, weight: Float8Tensor, bias: torch.Tensor | None
    ) -> Float8Linear | Float8Blocks:
        values, scale = weight.values.to(self.device).contiguous(), weight.scale.to(self.device)
        if weight.inputs == "token" and weight.is_by_output:
            self._has_float8 = True
            return Float8Linear(values, scale[:, 0].contiguous(), bias)
        if weight.inputs == "group" and weight.group == BLOCK:
            return Float8Blocks(values, scale.contiguous(), bias)
        raise ConfigError(
            "the Triton kernels round inputs to float8 by token with a scale for each output or for the tensor, or by "
            f"{BLOCK} inputs with a scale for as many; use weight_format fp8, or kernels reference"
        )

    def pack_float8(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Float8Linear:
        """A dense weight [N, K] rounded to float8 with a scale per output; `linear` alone understands it."""
        self._has_float8 = True
        moved = weight.to(self.device, torch.float32)
        return float8_linear(moved, None if bias is None else bias.to(self.device, self.dtype))

    def linear(self, x: torch.Tensor, weight: TritonLinear) -> torch.Tensor | Scaled:
        if isinstance(weight, DenseLinear):
            return self.linears.dense(x, weight)
        if isinstance(weight, CodedLinear):
            return self.coded_linears.any_rows(x, weight)
        if isinstance(weight, Float8Blocks):
            return self.float8_blocks(x, weight)
        if isinstance(weight, IntegerLinear):
            return self.integers(x, weight)
        return self.linears.float8(self._rounded_for(x, weight), weight, self.dtype)

    def integers(self, x: torch.Tensor, weight: IntegerLinear) -> torch.Tensor:
        codes, x_scale = round_to_integers(x)
        return self.fixed_linears(
            codes, weight.weight, weight.bias, self.dtype, x_scale=x_scale, scale=weight.scale
        )

    def float8_blocks(self, x: torch.Tensor, weight: Float8Blocks) -> torch.Tensor:
        rounded = quantize_blocks(x, BLOCK)
        return self.fixed_linears(
            rounded.codes,
            weight.weight,
            weight.bias,
            self.dtype,
            x_scale=rounded.scale,
            scale=weight.scales,
        )

    def _rounded_for(self, x: torch.Tensor, weight: Float8Linear) -> Rounded:
        rounded = self.rounded(x)
        if rounded.groups > 1 and not self.linears.takes_groups(x.shape[0], weight.weight):
            return quantize_rows(x)
        return rounded

    def rounded(self, x: torch.Tensor) -> Rounded:
        """x [T, K] in float8: as it was rounded where it was made, or rounded now."""
        made = self._rounded
        return made[1] if made is not None and made[0] is x else quantize_rows(x)

    def lora_inner(
        self, x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> torch.Tensor:
        inner = room_for_inner(x, factors)
        with self.side_stream.fork():
            shrink(x, factors, slots, inner)
        return inner

    def lora_add(
        self,
        out: torch.Tensor | Scaled,
        inner: torch.Tensor,
        factors: LowRankFactors,
        slots: torch.Tensor,
    ) -> torch.Tensor:
        value = settled(out)
        self.side_stream.join()
        expand(value, factors, slots, inner)
        return value

    def logits(
        self, x: torch.Tensor, weight: DenseLinear | CodedLinear, softcap: float | None
    ) -> torch.Tensor:
        if isinstance(weight, CodedLinear):
            return soft_cap(self.coded_linears(x, weight, torch.float32), softcap)
        return logits(x, weight.weight, weight.bias, softcap)

    def take_sampled(self, token_ids: torch.Tensor, sampled: torch.Tensor) -> None:
        take_sampled(token_ids, sampled)

    def embed(
        self, token_ids: torch.Tensor, table: DenseLinear | CodedLinear, scale: float
    ) -> torch.Tensor:
        if isinstance(table, CodedLinear):
            return take_coded_rows(table, token_ids, scale, self.dtype)
        return take_rows(table.weight, token_ids, scale)

    def rms_norm(self, x: torch.Tensor | Scaled, weight: torch.Tensor, eps: float) -> torch.Tensor:
        shape = _numbers(x).shape
        rounded = self._room_for(shape)
        return self._with(rounded, rms_norm(x, weight, eps, rounded, self._chains(shape[0])))

    def add_rms_norm(
        self, x: torch.Tensor | Scaled, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        rounded = self._room_for(residual.shape)
        is_chained = self._chains(residual.shape[0])
        return self._with(rounded, add_rms_norm(x, residual, weight, eps, rounded, is_chained))

    def gated(self, gate_up: torch.Tensor | Scaled, activation: Activation) -> torch.Tensor:
        tokens, both = _numbers(gate_up).shape
        rounded = self._room_for_groups(tokens, both // 2)
        if tokens >= MANY_ROWS:
            rounded = self._room_for((tokens, both // 2))
        return self._with(rounded, gated(gate_up, activation, rounded, self._chains(tokens)))

    def _chains(self, tokens: int) -> bool:
        """Whether a step's kernels begin while those before them end: with one row, all that run are our own."""
        return tokens == 1 and self.linears.is_chained

    def _room_for(self, shape: Sequence[int]) -> Rounded | None:
        """Where an operation leaves its result in float8 too, if any linear wants that."""
        if not self._has_float8 or len(shape) != 2:
            return None
        return Rounded.empty(shape[0], shape[1], self.device)

    def _room_for_groups(self, tokens: int, width: int) -> Rounded | None:
        """As `_room_for`, for few rows: a row is then made by several programs, so it gets a scale for each group."""
        if (
            not self._has_float8
            or not self.rounds_groups
            or tokens > MOST_ROWS_FLOAT8
            or width % GROUP
        ):
            return None
        return Rounded.empty(tokens, width, self.device, width // GROUP)

    def _with(self, rounded: Rounded | None, out: torch.Tensor) -> torch.Tensor:
        """Remembers the float8 form of `out`, the latest result, for a linear that is given this very tensor."""
        self._rounded = None if rounded is None else (out, rounded)
        return out

    def rope_store(
        self,
        qkv: torch.Tensor | Scaled,
        layout: QKVLayout,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        inputs: AttentionInputs,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        is_chained = self._chains(len(inputs.positions))
        return rope_store(qkv, layout, cos_sin, cache, inputs, q_norm, k_norm, eps, is_chained)

    def attention(
        self,
        q: torch.Tensor,
        layout: QKVLayout,
        cache: LayerCache,
        inputs: AttentionInputs,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        tokens = q.shape[0]
        rounded = None
        if layout.head_dim == GROUP and tokens == len(inputs.kv_len):
            rounded = self._room_for_groups(tokens, layout.num_heads * GROUP)
        out = self.paged_attention(
            q, layout, cache, inputs, scale=scale, window=window, softcap=softcap, rounded=rounded,
            is_chained=self._chains(tokens),
        )  # fmt: skip
        return self._with(rounded, out)

    def gather_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return take_rows(x, rows)

    def allocate_cache(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KVFormat | None = None,
    ) -> LayerCache:
        """[blocks, K, P, D]: what a program reads of a block lies in one piece."""
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        return allocate_cache(shape, self.dtype, self.device, kv_format)

    def read_keys(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return read_all([stored_entries(cache)[0] for cache in caches], blocks)

    def read_values(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return read_all([stored_entries(cache)[1] for cache in caches], blocks)

    def copy_entries(
        self, caches: Sequence[LayerCache], sources: torch.Tensor, targets: torch.Tensor
    ) -> None:
        copy_all([stored_entries(cache) for cache in caches], sources, targets)

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        if self.device.type != "cuda":
            return None
        return GraphRecording(forward, largest)

    def close(self) -> None:
        return None


def _numbers(x: torch.Tensor | Scaled) -> torch.Tensor:
    return x.product if isinstance(x, Scaled) else x


def _multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"Triton kernels need an NVIDIA GPU; the device is {device}. "
            "Choose kernels 'native' or 'reference', or set TRITON_INTERPRET=1 to test them on a CPU."
        )
    return 3
