"""Times whole steps of the Llama-3.1-8B shape with made-up weights: decode by graph replay, prefill as launched."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.kernels.ops import AttentionInputs, PackedLinear, StepShape
from nonet.kernels.triton.ops import TritonOps
from nonet.layers.forward_step import ForwardStep
from nonet.models.decoder import Decoder
from nonet.models.llama import LlamaBlock
from tests.kernels.gpu_timing import DEVICE, DTYPE, KV_BYTES, Row, timed

LLAMA_8B = ModelSpec(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131072,
    norm_eps=1e-5,
    rope=RopeSpec(500000.0),
)


class DummyParameters:
    """Random weights made on the device."""

    def __init__(self, ops: TritonOps, spec: ModelSpec, float8: bool) -> None:
        self._ops, self._spec, self._float8 = ops, spec, float8
        heads, kv, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._shapes = {
            "q_proj": (heads * dim, spec.hidden_size),
            "k_proj": (kv * dim, spec.hidden_size),
            "v_proj": (kv * dim, spec.hidden_size),
            "o_proj": (spec.hidden_size, heads * dim),
            "gate_proj": (spec.intermediate_size, spec.hidden_size),
            "up_proj": (spec.intermediate_size, spec.hidden_size),
            "down_proj": (spec.hidden_size, spec.intermediate_size),
            "lm_head": (spec.vocab_size, spec.hidden_size),
            "embed_tokens": (spec.vocab_size, spec.hidden_size),
        }

    def linear(self, *names: str, bias: bool = False) -> PackedLinear:
        shapes = [self._shapes[name.rsplit(".", 1)[-1]] for name in names]
        outputs = sum(shape[0] for shape in shapes)
        weight = torch.empty(outputs, shapes[0][1], device=self._ops.device, dtype=self._ops.dtype)
        weight.normal_(std=0.02)
        if self._float8 and "layers" in names[0]:
            return self._ops.pack_float8(weight)
        return self._ops.pack(weight)

    def norm(self, name: str) -> torch.Tensor:
        return torch.ones(self._spec.hidden_size, device=self._ops.device)

    def embedding(self, name: str) -> PackedLinear:
        return self.linear(name)


class Model:
    """The 8B shape with device buffers as the runner will keep them."""

    def __init__(self, cache_tokens: int, block: int, float8: bool) -> None:
        self.ops = TritonOps(DTYPE, DEVICE)
        parameters = DummyParameters(self.ops, LLAMA_8B, float8)
        self.model = Decoder(LLAMA_8B, self.ops, parameters, LlamaBlock, 131072)
        self.block = block
        blocks = cache_tokens // block + 1
        self.caches = tuple(self.ops.allocate_cache(blocks, block, 8, 128) for _ in range(32))
        for cache in self.caches:
            cache.keys.normal_()
            cache.values.normal_()
        self.order = torch.randperm(blocks - 1).int() + 1

    def step(self, batch: int, queries: int, length: int) -> ForwardStep:
        """Every sequence computes its last `queries` of `length` tokens; lengths vary around that by a quarter."""
        generator = random.Random(0)
        spread = 0 if queries > 1 else length // 4
        lengths = [length + generator.randint(-spread, spread) for _ in range(batch)]
        width = -(-max(lengths) // self.block)
        table = torch.zeros(batch, width, dtype=torch.int32)
        used = 0
        for seq, one in enumerate(lengths):
            count = -(-one // self.block)
            table[seq, :count] = self.order[used : used + count]
            used += count
        positions = torch.cat([torch.arange(one - queries, one) for one in lengths])
        owner = torch.arange(batch).repeat_interleave(queries)
        slots = table[owner, positions // self.block] * self.block + positions % self.block
        inputs = AttentionInputs(
            positions=positions.int().to(DEVICE),
            query_start=(torch.arange(batch + 1) * queries).int().to(DEVICE),
            kv_len=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
            block_table=table.to(DEVICE),
            slots=slots.int().to(DEVICE),
            max_query_len=queries,
            max_kv_len=max(lengths),
        )
        return ForwardStep(
            token_ids=torch.randint(
                0, 128256, (batch * queries,), dtype=torch.int32, device=DEVICE
            ),
            rows=((torch.arange(batch) + 1) * queries - 1).int().to(DEVICE),
            inputs=(inputs,) * 32,
            caches=self.caches,
        )


def whole_steps(copy_rate: float, float8: bool) -> list[Row]:
    model = Model(cache_tokens=300_000, block=64, float8=float8)
    head = 128256 * 4096
    in_layers = LLAMA_8B.num_parameters - 2 * head
    weights = head * 2 + in_layers * (1 if float8 else 2)
    kind = "fp8" if float8 else "bf16"
    rows: list[Row] = []
    with torch.inference_mode():
        for batch, length in (
            (1, 1024),
            (8, 1024),
            (32, 1024),
            (64, 1024),
            (128, 256),
            (256, 256),
            (256, 1024),
        ):
            step = model.step(batch, 1, length)
            recording = model.ops.record(
                lambda _, step=step: model.model.forward(step), StepShape(batch, batch, batch, 1)
            )
            assert recording is not None
            shape = StepShape(batch, batch, batch, 1)
            eager = recording.replay(shape).clone()
            again = recording.replay(shape)
            difference = (again - eager).abs().max().item()
            kv_bytes = int(step.inputs[0].kv_len.sum()) * KV_BYTES * 32
            one = timed(lambda r=recording, s=shape: [r.replay(s) for _ in range(10)]) / 10
            floor = (weights + kv_bytes) / copy_rate
            rows.append({"what": "decode step", "kind": kind, "batch": batch, "context": length, "ms": one * 1e3,
                         "floor_ms": floor * 1e3, "share": floor / one, "graph_minus_eager": difference})  # fmt: skip
            if (batch, length) in ((1, 1024), (64, 1024), (256, 256)):
                rows += kernel_times(lambda r=recording, s=shape: r.replay(s), f"{kind} b{batch}")
        for batch, length in ((8, 2048), (1, 2048), (1, 512)):
            step = model.step(batch, length, length)
            model.model.forward(step)
            one = timed(lambda step=step: model.model.forward(step), 5)
            flops = 2 * in_layers * batch * length + batch * 2 * length * length * 4096 * 32
            rows.append({"what": "prefill step", "kind": kind, "batch": batch, "tokens": length, "ms": one * 1e3,
                         "tokens_per_s": batch * length / one, "TFLOPs": flops / one / 1e12})  # fmt: skip
            if batch == 8:
                rows += kernel_times(lambda step=step: model.model.forward(step), f"{kind} prefill")
    return rows


def chained(float8: bool) -> list[Row]:
    """A decode step of one row, its kernels one after the other and chained, in turn."""
    model = Model(cache_tokens=40_000, block=64, float8=float8)
    kind, shape = "fp8" if float8 else "bf16", StepShape(1, 1, 1, 1)
    rows: list[Row] = []
    with torch.inference_mode():
        for length in (128, 1024, 8192):
            step = model.step(1, 1, length)
            recordings = []
            for is_chained in (False, True):
                model.ops.linears.is_chained = is_chained
                recording = model.ops.record(lambda _, step=step: model.model.forward(step), shape)
                assert recording is not None
                recordings.append((recording, recording.replay(shape).clone()))
            times: list[list[float]] = [[], []]
            for _ in range(5):
                for found, (recording, _) in zip(times, recordings, strict=True):
                    found.append(
                        timed(lambda r=recording: [r.replay(shape) for _ in range(10)]) / 10
                    )
            apart = [
                max((r.replay(shape) - one).abs().max().item() for _ in range(20))
                for r, one in recordings
            ]
            rows.append({"what": "one row", "kind": kind, "context": length,
                         "ms": sorted(times[0])[2] * 1e3, "chained_ms": sorted(times[1])[2] * 1e3,
                         "differs": (recordings[0][1] - recordings[1][1]).abs().max().item(),
                         "replays_differ": max(apart)})  # fmt: skip
            if length == 1024:
                first = recordings[0][0]
                rows += kernel_times(lambda r=first: r.replay(shape), f"{kind} one row")
    return rows


def kernel_times(call: Callable[[], object], label: str) -> list[Row]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
    found = sorted(trace.key_averages(), key=lambda event: -event.self_device_time_total)[:10]
    return [
        {"what": f"profile {label}", "kernel": event.key[:70], "calls": event.count / 3,
         "ms": event.self_device_time_total / 3e3}
        for event in found
    ]  # fmt: skip
