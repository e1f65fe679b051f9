"""The kernels in C++ for the CPU: packed weights, a thread team, and whole forward passes as one call.

Idea: activations stay float32 between operations and are rounded to the weights' type inside the matrix kernels; the
KV cache is laid out for the same register tile as the weights (csrc/tile.h). Every row's result is the same bits
whatever else is in the step, however many threads there are and however a prompt is cut into chunks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch

from nonet.core.errors import ConfigError
from nonet.kernels.entries import copy_all, read_all
from nonet.kernels.groupwise import GroupwiseTensor
from nonet.kernels.inputs import Inputs
from nonet.kernels.kv_format import KVFormat
from nonet.kernels.native.entries import allocate_cache, storage_number, stored_entries
from nonet.kernels.native.library import (
    AttentionArgs,
    EmbedArgs,
    GatedArgs,
    GatherArgs,
    LinearArgs,
    LoraArgs,
    NormArgs,
    Op,
    RopeArgs,
    Rows,
    load_library,
)
from nonet.kernels.native.memory import HugePages
from nonet.kernels.native.packing import NativeWeight, dense_weight, pack_dense, pack_groupwise
from nonet.kernels.native.recording import NativeRecording, RowKind, Tape
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
from nonet.kernels.sampled_ids import take_sampled

__all__ = ["NativeOps"]

# Room for partial results when few sequences share out a long context (csrc/attention.cpp).
_SHARED_BYTES = 8 << 20
_OWN_ROWS = 2  # kOwnRows of csrc/product.h: rows that a thread may round in its own scratch
_GATES: dict[Activation, int] = {"silu": 1, "gelu_tanh": 2}  # Gate of csrc/linear.h


class NativeOps:
    """The operations of `kernels.ops.Ops` on `threads` threads, the caller's included.

    >>> ops = NativeOps(torch.float32, threads=1)
    >>> ops.linear(torch.ones(1, 2), ops.pack(torch.eye(2))).tolist()
    [[1.0, 1.0]]
    """

    name = "native"
    needs_all_rows = False
    sampling: SamplingKernels | None = None
    compile_only = None  # all is compiled once and for all

    def __init__(
        self, dtype: torch.dtype, threads: int, *, int8_activations: bool | None = None
    ) -> None:
        """Groupwise weights meet inputs in int8 if `int8_activations` (default: with bfloat16), else as they are."""
        if dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(
                f"the native kernels hold weights in float32 or bfloat16, not {dtype}; set dtype to one of them"
            )
        if threads < 1:
            raise ConfigError(f"threads is {threads}; at least 1 is needed")
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.threads = threads
        self._int8 = dtype == torch.bfloat16 if int8_activations is None else int8_activations
        self._library = load_library()
        self._pages = HugePages()
        self._tape: Tape | None = None
        self._scratch_bytes = self._library.attention_scratch_bytes
        self._shared_bytes = _SHARED_BYTES
        self._element = 1 if dtype == torch.bfloat16 else 0
        self._dims = (ctypes.c_int32 * 3)()

    @classmethod
    def create(cls, dtype: torch.dtype, device: torch.device, threads: int) -> NativeOps:
        """As the catalogue of kernels calls it; the device is the CPU."""
        assert device.type == "cpu", device
        torch.set_num_threads(
            1
        )  # torch's own threads would spin on the cores that these kernels use
        return cls(dtype, threads)

    def pack(self, weight: WeightMatrix, bias: torch.Tensor | None = None) -> NativeWeight:
        packed = None
        if isinstance(weight, GroupwiseTensor):
            packed = pack_groupwise(
                weight,
                bias,
                self.dtype,
                self._inputs(weight),
                self._library.groupwise_panels,
                self._pages,
            )
        if packed is None:
            dense = dense_weight(weight)
            packed = pack_dense(dense, bias, self.dtype, self._library.dense_panels, self._pages)
        needed = _OWN_ROWS * packed.row_bytes + self._library.product_scratch_bytes
        self._scratch_bytes = max(self._scratch_bytes, needed)
        return packed

    def linear(self, x: torch.Tensor, weight: NativeWeight) -> torch.Tensor:
        return self._multiply("linear", x, weight, None)

    def lora_inner(
        self, x: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> torch.Tensor:
        """The input itself: here both products are one operation."""
        return x

    def lora_add(
        self, out: torch.Tensor, inner: torch.Tensor, factors: LowRankFactors, slots: torch.Tensor
    ) -> torch.Tensor:
        x = inner
        width, columns = factors.first.shape[1], factors.second.shape[2]
        assert factors.first.dtype == factors.second.dtype == self.dtype, factors.first.dtype
        assert out.shape == (x.shape[0], columns), (out.shape, x.shape, columns)
        self._shared_bytes = max(self._shared_bytes, x.shape[0] * width * 4)
        args = LoraArgs(
            x=_floats(x),
            out=_floats(out),
            first=factors.first.data_ptr(),
            second=factors.second.data_ptr(),
            slots=_indices(slots),
            ranks=None if factors.ranks is None else _indices(factors.ranks),
            rows=self._rows(x),
            depth=x.shape[1],
            columns=columns,
            rank=factors.rank,
            parts=len(factors.ends),
            ends=(ctypes.c_int32 * 4)(*factors.ends),
            element=self._element,
        )
        self._emit("lora", "lora", args, out, x, out, slots, factors)
        return out

    def logits(self, x: torch.Tensor, weight: NativeWeight, softcap: float | None) -> torch.Tensor:
        return self._multiply("logits", x, weight, softcap)

    def take_sampled(self, token_ids: torch.Tensor, sampled: torch.Tensor) -> None:
        take_sampled(token_ids, sampled)

    def embed(self, token_ids: torch.Tensor, table: NativeWeight, scale: float) -> torch.Tensor:
        out = self._empty(token_ids, table.num_inputs)
        args = EmbedArgs(
            _indices(token_ids), out.data_ptr(), table.address, self._rows(token_ids), scale
        )
        self._emit("embed", table.embed_kernel, args, out, token_ids, table)
        return out

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self._norm("rms_norm", x, None, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return self._norm("add_rms_norm", x, residual, weight, eps)

    def gated(self, gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
        columns = gate_up.shape[1] // 2
        out = self._empty(gate_up, columns)
        args = GatedArgs(
            _floats(gate_up), out.data_ptr(), self._rows(gate_up), columns, _GATES[activation]
        )
        self._emit("gated", "gated", args, out, gate_up)
        return out

    def rope_store(
        self,
        qkv: torch.Tensor,
        layout: QKVLayout,
        cos_sin: torch.Tensor,
        cache: LayerCache,
        inputs: AttentionInputs,
        q_norm: torch.Tensor | None,
        k_norm: torch.Tensor | None,
        eps: float,
    ) -> torch.Tensor:
        q = self._empty(qkv, layout.num_heads * layout.head_dim)
        norms = [None if norm is None else _as_float(norm) for norm in (q_norm, k_norm)]
        args = RopeArgs(
            qkv=_floats(qkv),
            q=q.data_ptr(),
            cos_sin=_floats(cos_sin),
            q_norm=None if norms[0] is None else norms[0].data_ptr(),
            k_norm=None if norms[1] is None else norms[1].data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            key_scales=cache.key_scales.data_ptr(),
            value_scales=cache.value_scales.data_ptr(),
            positions=_indices(inputs.positions),
            slots=_indices(inputs.slots),
            rows=self._rows(qkv),
            heads=layout.num_heads,
            kv_heads=layout.num_kv_heads,
            dim=layout.head_dim,
            block_size=cache.block_size,
            element=self._element,
            storage=storage_number(cache.format),
            eps=eps,
        )
        self._emit("rope_store", "rope_store", args, q, qkv, cos_sin, cache, inputs, *norms)
        return q

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
        out = self._empty(q, q.shape[1])
        sequences = inputs.query_start.shape[0] - 1
        args = AttentionArgs(
            q=_floats(q),
            out=out.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            key_scales=cache.key_scales.data_ptr(),
            value_scales=cache.value_scales.data_ptr(),
            query_start=_indices(inputs.query_start),
            kv_len=_indices(inputs.kv_len),
            block_table=_indices(inputs.block_table),
            table_stride=inputs.block_table.shape[1],
            sequences=Rows(-1, sequences) if self._tape is None else Rows(RowKind.SEQUENCES, 0),
            heads=layout.num_heads,
            kv_heads=layout.num_kv_heads,
            dim=layout.head_dim,
            block_size=cache.block_size,
            element=self._element,
            storage=storage_number(cache.format),
            window=window or 0,
            scale=scale,
            softcap=softcap or 0.0,
        )
        self._emit("attention", "attention", args, out, q, cache, inputs)
        return out

    def gather_rows(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        columns = x.shape[1]
        if self._tape is None:
            out = torch.empty(rows.shape[0], columns)
            live = Rows(-1, rows.shape[0])
        else:
            out = self._tape.arena.empty(rows.shape[0], columns, RowKind.ROWS)
            live = Rows(RowKind.ROWS, 0)
        args = GatherArgs(_floats(x), _indices(rows), out.data_ptr(), live, columns)
        self._emit("gather_rows", "gather_rows", args, out, x, rows)
        return out

    def allocate_cache(
        self,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        kv_format: KVFormat | None = None,
    ) -> LayerCache:
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        return allocate_cache(self._pages, self.dtype, shape, kv_format)

    def read_keys(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return read_all([stored_entries(cache, self.dtype)[0] for cache in caches], blocks)

    def read_values(self, caches: Sequence[LayerCache], blocks: torch.Tensor) -> torch.Tensor:
        return read_all([stored_entries(cache, self.dtype)[1] for cache in caches], blocks)

    def copy_entries(
        self, caches: Sequence[LayerCache], sources: torch.Tensor, targets: torch.Tensor
    ) -> None:
        copy_all([stored_entries(cache, self.dtype) for cache in caches], sources, targets)

    def record(
        self, forward: Callable[[StepShape], torch.Tensor], largest: StepShape
    ) -> Recording | None:
        """One list of calls, made on the largest buffers, serves every smaller shape."""
        assert self._tape is None, "a recording is already being made"
        tape = self._tape = Tape()
        try:
            output = forward(largest)
        finally:
            self._tape = None
        return NativeRecording(
            tape, output, self._library, self.threads, self._scratch_bytes, self._shared_bytes
        )

    def close(self) -> None:
        """The thread team belongs to the process and sleeps when unused; there is nothing to give back."""

    def _inputs(self, weight: GroupwiseTensor) -> Inputs:
        """Where the choice is ours: int8 with bfloat16, which is faster and near to it in error."""
        if weight.inputs != "free":
            return weight.inputs
        return "group" if self._int8 else "exact"

    def _multiply(
        self, label: str, x: torch.Tensor, weight: NativeWeight, softcap: float | None
    ) -> torch.Tensor:
        assert x.shape[1] == weight.num_inputs, (x.shape, weight.num_inputs)
        self._shared_bytes = max(self._shared_bytes, x.shape[0] * weight.row_bytes)
        out = self._empty(x, weight.num_outputs)
        args = LinearArgs(_floats(x), out.data_ptr(), weight.address, self._rows(x), softcap or 0.0)
        self._emit(label, weight.linear_kernel, args, out, x, weight)
        return out

    def _norm(
        self,
        label: str,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        out = self._empty(x, x.shape[1])
        wide = _as_float(weight)
        args = NormArgs(
            _floats(x),
            None if residual is None else _floats(residual),
            wide.data_ptr(),
            out.data_ptr(),
            self._rows(x),
            x.shape[1],
            eps,
        )
        self._emit(label, "norm", args, out, x, residual, wide)
        return out

    def _empty(self, like: torch.Tensor, columns: int) -> torch.Tensor:
        """A result with as many rows as `like`."""
        if self._tape is None:
            return torch.empty(like.shape[0], columns)
        kind = self._tape.arena.kind_of(like, RowKind.TOKENS)
        return self._tape.arena.empty(like.shape[0], columns, kind)

    def _rows(self, x: torch.Tensor) -> Rows:
        if self._tape is None:
            return Rows(-1, x.shape[0])
        return Rows(self._tape.arena.kind_of(x, RowKind.TOKENS), 0)

    def _emit(
        self, label: str, kernel: str, args: ctypes.Structure, out: torch.Tensor, *operands: object
    ) -> None:
        """Run the operation now, or write it on the tape with what it reads and writes."""
        if self._tape is not None:
            self._tape.append(label, kernel, args, out, operands)
            return
        op = Op(self._library.address_of[kernel], ctypes.addressof(args))
        self._library.run(
            self._library.team(self.threads),
            op,
            1,
            self._dims,
            self._scratch_bytes,
            self._shared_bytes,
        )


def _floats(tensor: torch.Tensor) -> int:
    assert tensor.dtype == torch.float32, tensor.dtype
    assert tensor.is_contiguous(), tensor.stride()
    return tensor.data_ptr()


def _indices(tensor: torch.Tensor) -> int:
    assert (tensor.dtype, tensor.is_contiguous()) == (torch.int32, True), tensor.stride()
    return tensor.data_ptr()


def _as_float(weight: torch.Tensor) -> torch.Tensor:
    """A norm's weight in float32; the same tensor when it already is."""
    return weight.float().contiguous()
