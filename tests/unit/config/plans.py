"""Machines and models to plan for, and the plan."""

from __future__ import annotations

from dataclasses import replace

from nonet.config.load import from_options
from nonet.config.machine import Machine
from nonet.config.resolve import resolve
from nonet.config.resolved import Resolved
from nonet.core.model_spec import ModelSpec, RopeSpec
from nonet.quant.formats import WEIGHT_FORMATS

GIB = 2**30
MACHINE = Machine(
    architecture="x86_64",
    cpu_name="test",
    cpu_flags=frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni", "avx2", "fma"}),
    physical_cores=2,
    logical_cpus=4,
    memory_bytes=8 * GIB,
    available_bytes=4 * GIB,
    compiler="/usr/bin/g++",
    nvidia_driver=False,
)  # fmt: skip
CUDA = replace(
    MACHINE, nvidia_driver=True, torch_cuda="13.0", gpu_name="H100", gpu_free_bytes=80 * GIB
)

SMOLLM2 = ModelSpec(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position=8192,
    norm_eps=1e-5,
    rope=RopeSpec(1e5),
    tie_embeddings=True,
)

GEMMA3_270M = ModelSpec(
    family="gemma3",
    vocab_size=262144,
    hidden_size=640,
    intermediate_size=2048,
    num_layers=18,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    max_position=32768,
    norm_eps=1e-6,
    rope=RopeSpec(1e6),
    rope_local=RopeSpec(1e4),
    tie_embeddings=True,
    layer_windows=tuple(None if layer % 6 == 5 else 512 for layer in range(18)),
)


def plan(
    spec: ModelSpec = SMOLLM2, machine: Machine = MACHINE, path: str = "m.gguf", **given: object
) -> Resolved:
    return resolve(from_options(given), spec, machine, WEIGHT_FORMATS, model_path=path)
