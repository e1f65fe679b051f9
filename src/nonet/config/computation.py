"""Where and in which numbers a model is computed: device, dtype, form of the weights, kernels."""

from __future__ import annotations

from dataclasses import dataclass

from nonet.config.compat import find_conflict, refuse_conflicts, refuse_kv_format
from nonet.config.machine import Machine
from nonet.config.memory import EntryFormat, HeldWeights, weight_bytes
from nonet.config.schema import Config
from nonet.core.catalogue import Catalogue, parse_spec
from nonet.core.errors import ConfigError
from nonet.core.model_spec import ModelSpec

__all__ = ["Computation", "choose_computation"]


@dataclass(frozen=True, slots=True)
class Computation:
    """What the other choices rest on."""

    device: str
    dtype: str
    weight_format: str  # a spec string
    weight_bytes: int
    kernels: str
    kv_format: str  # a spec string, or the dtype


def choose_computation(
    config: Config,
    spec: ModelSpec,
    machine: Machine,
    weight_formats: Catalogue,
    kv_format: EntryFormat | None,
    model_path: str,
    why: dict[str, str],
) -> Computation:
    """ConfigError for values that exclude each other; every choice that was automatic is explained in `why`."""
    device = _device(config, machine, why)
    dtype = _dtype(config, machine, device, why)
    weight_format = config.model.weight_format
    if weight_format == "auto":
        weight_format = "dense"
        why["weight_format"] = "every weight in dtype, nothing rounded further"
    held: HeldWeights = weight_formats.build(weight_format)
    chosen = {
        "device": device,
        "dtype": dtype,
        "weight_format": parse_spec(weight_format)[0],
        "weight_form": held.form_of(spec),
    }
    kernels = _kernels(config, spec, machine, chosen, kv_format, why)
    refuse_conflicts({**chosen, "kernels": kernels})
    stored_at = "" if config.model.dummy_weights else model_path
    num_bytes = weight_bytes(spec, dtype, held, kernels, stored_at)
    kv_name = _kv_format(config, kernels, dtype, kv_format, why)
    return Computation(device, dtype, weight_format, num_bytes, kernels, kv_name)


def _device(config: Config, machine: Machine, why: dict[str, str]) -> str:
    asked = config.runtime.device
    no_cuda = (
        "no NVIDIA driver was found" if not machine.nvidia_driver else "torch is built without CUDA"
    )
    if asked == "cuda" and not machine.has_cuda:
        raise ConfigError(f"device is cuda, but {no_cuda}; use device cpu or mend the installation")
    if asked != "auto":
        return asked
    device = "cuda" if machine.has_cuda else "cpu"
    why["device"] = f"{machine.gpu_name or 'a GPU'} is here"
    if device == "cpu":
        why["device"] = no_cuda
    return device


def _dtype(config: Config, machine: Machine, device: str, why: dict[str, str]) -> str:
    if config.model.dtype != "auto":
        return config.model.dtype
    if device == "cuda":
        why["dtype"] = "half the bytes of float32, and the GPU multiplies it fastest"
        return "bfloat16"
    if machine.has_bfloat16:
        why["dtype"] = "this CPU multiplies it in hardware, in half the bytes of float32"
        return "bfloat16"
    why["dtype"] = "this CPU has no bfloat16 instructions (AVX512_BF16 or AMX)"
    return "float32"


def _kernels(
    config: Config,
    spec: ModelSpec,
    machine: Machine,
    chosen: dict[str, str],
    kv_format: EntryFormat | None,
    why: dict[str, str],
) -> str:
    """`chosen` holds what was settled before: nothing that it excludes is picked."""
    asked = config.runtime.kernels
    no_native = machine.native_missing
    if spec.head_dim % 16 or spec.head_dim > 256:
        no_native = f"the native kernels need heads of a multiple of 16 up to 256, these have {spec.head_dim}"
    if asked == "native" and no_native is not None:
        raise ConfigError(f"kernels is native, but {no_native}; use kernels reference")
    if asked != "auto":
        return asked
    if chosen["device"] == "cuda":
        best, reason = "triton", "written for GPUs, and the triton package is here"
        missing = None if machine.has_triton else "the triton package is not installed"
    else:
        best = "native"
        reason = "the fastest on a CPU, and a C++ compiler is here to build them"
        missing = no_native
    if missing is None and kv_format is not None and best not in kv_format.kernels:
        missing = f"the {best} kernels do not hold KV format {kv_format.name}"
    conflict = find_conflict({**chosen, "kernels": best})
    if missing is None and conflict is None:
        why["kernels"] = reason
        return best
    why["kernels"] = missing or (conflict.reason if conflict is not None else "")
    return "reference"


def _kv_format(
    config: Config, kernels: str, dtype: str, kv_format: EntryFormat | None, why: dict[str, str]
) -> str:
    if kv_format is None:
        assert config.cache.kv_format == "auto", config.cache.kv_format
        why["kv_format"] = "keys and values in dtype, nothing rounded further"
        return dtype
    refuse_kv_format(kv_format.name, kv_format.kernels, kernels)
    return config.cache.kv_format
