"""Which engine runs which file in which weight format, and the environment each is given."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from peers.workdir import PackagedModel, Workdir

__all__ = ["PEERS", "Entry", "base_environment", "entries"]

PEERS = ("openvino", "vllm", "llama_cpp", "huggingface", "nonet")


@dataclass(frozen=True)
class Entry:
    """One row of the table. The callables make what they return when it is not there yet."""

    peer: str
    model: PackagedModel
    label: str  # the weight format as the table prints it
    weights: str  # the weight format as the peer's module takes it
    model_path: Callable[[], Path]
    python: Callable[[], Path]
    environment: Callable[[], dict[str, str]] = field(default=dict)


def entries(
    workdir: Workdir,
    models: Sequence[PackagedModel],
    peers: Sequence[str],
    nonet_formats: Sequence[str],
    cores: Sequence[int],
) -> list[Entry]:
    """The rows in the order they run: model by model."""
    rows: list[Entry] = []
    for model in models:
        found = {
            "openvino": _openvino(workdir, model),
            "vllm": _vllm(workdir, model, cores),
            "llama_cpp": _llama_cpp(workdir, model),
            "huggingface": _huggingface(workdir, model),
            "nonet": _nonet(workdir, model, nonet_formats),
        }
        rows += [row for peer in peers for row in found[peer]]
    return rows


def base_environment(threads: int) -> dict[str, str]:
    """The caller's environment with the thread counts that most libraries read."""
    counts = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )
    return {**os.environ, **counts, "TOKENIZERS_PARALLELISM": "false"}


def _openvino(work: Workdir, model: PackagedModel) -> list[Entry]:
    python = work.openvino_python
    shipped = Entry("openvino", model, "GGUF as shipped", "gguf", partial(work.gguf, model), python)
    if model.name == "smollm2":
        return [shipped]
    # Its reader refuses the shipped Qwen file (Q5_0 tensors); the failure is shown, beside a file that it can read.
    q8_0 = partial(work.gguf, model, "Q8_0")
    return [shipped, Entry("openvino", model, "Q8_0 requantised", "gguf", q8_0, python)]


def _vllm(work: Workdir, model: PackagedModel, cores: Sequence[int]) -> list[Entry]:
    def environment() -> dict[str, str]:
        libraries = [*Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")]
        libraries += [work.root / "vllm" / "lib" / "libiomp5.so"]
        return {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "LD_PRELOAD": ":".join(str(path) for path in libraries if path.exists()),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }

    folder = partial(work.huggingface_folder, model)
    return [Entry("vllm", model, "bf16", "bfloat16", folder, work.vllm_python, environment)]


def _llama_cpp(work: Workdir, model: PackagedModel) -> list[Entry]:
    q4_0, bf16 = partial(work.gguf, model, "Q4_0"), partial(work.gguf, model, "BF16")
    return [
        Entry("llama_cpp", model, "Q4_0 requantised", "Q4_0", q4_0, _this_python),
        Entry("llama_cpp", model, "bf16", "BF16", bf16, _this_python),
    ]


def _huggingface(work: Workdir, model: PackagedModel) -> list[Entry]:
    folder = partial(work.huggingface_folder, model)
    python = work.huggingface_python
    return [Entry("huggingface", model, "bf16", "bfloat16", folder, python, _offline)]


def _nonet(work: Workdir, model: PackagedModel, formats: Sequence[str]) -> list[Entry]:
    labels = {"dense": "bf16", "native": "GGUF as shipped"}
    shipped = partial(work.gguf, model)
    return [
        Entry("nonet", model, labels.get(one, one), one, shipped, _this_python, _offline)
        for one in formats
    ]


def _this_python() -> Path:
    return Path(sys.executable)


def _offline() -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1"}
