"""Whether a request gives the same bits whatever runs beside it, and why that cannot be promised where it cannot."""

from __future__ import annotations

from nonet.config.compat import find_conflict, refuse_conflicts
from nonet.config.schema import Config
from nonet.core.catalogue import parse_spec
from nonet.core.errors import ConfigError

__all__ = ["resolve_determinism"]


def resolve_determinism(config: Config, kernels: str, why: dict[str, str]) -> bool:
    """True where every token's bits depend on its own sequence alone; ConfigError where that is asked and cannot be."""
    speculate = config.speculation.speculate
    values = {
        "deterministic": "true",
        "kernels": kernels,
        "speculate": None if speculate is None else parse_spec(speculate)[0],
    }
    if config.runtime.deterministic:
        refuse_conflicts(values)
        obstacle = _on_a_gpu(config) if kernels == "triton" else None
        if obstacle is not None:
            raise ConfigError(f"deterministic is on, but {obstacle}")
        return True
    if kernels == "native" and find_conflict(values) is None:
        why["deterministic"] = "the native kernels take every sum of a row in one order as it is"
        return True
    return False


def _on_a_gpu(config: Config) -> str | None:
    """What has no kernel in fixed order, and what to do without."""
    lora = config.lora
    if lora.lora_modules or lora.lora_dir is not None:
        return (
            "the Triton kernels for adapters sum in another order for few tokens than for many; "
            "leave lora_modules and lora_dir out, or use device cpu"
        )
    if config.cache.kv_prune is not None:
        return (
            f"kv_prune {config.cache.kv_prune} scores entries with products of torch, whose order of sums on a GPU is "
            "not fixed; leave kv_prune out, or use device cpu"
        )
    return None
