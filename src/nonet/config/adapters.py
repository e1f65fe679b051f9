"""Adapters of the configuration: names and directories checked, or None when none are served."""

from __future__ import annotations

import os

from nonet.config.memory import adapter_bytes, show_bytes
from nonet.config.resolved import AdapterPlan
from nonet.config.schema import Config
from nonet.core.errors import ConfigError
from nonet.core.model_spec import ModelSpec

__all__ = ["check_adapter_name", "plan_adapters"]

MAX_NAME = 256


def plan_adapters(
    config: Config, spec: ModelSpec, dtype: str, why: dict[str, str]
) -> AdapterPlan | None:
    """ConfigError for what is no NAME=DIRECTORY, for a name given twice, and for a lora_dir that does not exist."""
    given = config.lora
    if not given.lora_modules and given.lora_dir is None:
        return None
    if given.lora_dir is not None and not os.path.isdir(given.lora_dir):
        raise ConfigError(f"lora_dir is {given.lora_dir!r}, which is no directory")
    modules = tuple(_module(text) for text in given.lora_modules)
    names = [name for name, _ in modules]
    served = config.model.served_name or config.model.model
    for name in names:
        check_adapter_name(name, served)
        if names.count(name) > 1:
            raise ConfigError(f"lora_modules names {name!r} twice; give each adapter its own name")
    if len(modules) > given.max_cpu_loras:
        raise ConfigError(
            f"lora_modules names {len(modules)} adapters and max_cpu_loras is {given.max_cpu_loras}; raise it"
        )
    slot_bytes = given.max_loras * adapter_bytes(spec, given.max_lora_rank, dtype)
    why["adapters"] = f"up to rank {given.max_lora_rank}, {show_bytes(slot_bytes)} for the slots"
    return AdapterPlan(
        modules=modules,
        directory=None if given.lora_dir is None else os.path.abspath(given.lora_dir),
        num_slots=given.max_loras,
        max_rank=given.max_lora_rank,
        max_registered=given.max_cpu_loras,
        slot_bytes=slot_bytes,
    )


def check_adapter_name(name: str, served_name: str) -> None:
    """ConfigError for a name that could not be told from the model's, or that no client could send."""
    if name == served_name:
        raise ConfigError(f"an adapter cannot have the model's own name {name!r}; give it another")
    if not name or len(name) > MAX_NAME or not name.isprintable() or name != name.strip():
        raise ConfigError(
            f"{name[:50]!r} is no name for an adapter; give 1 to {MAX_NAME} printable characters"
        )


def _module(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name.strip() and equals and path.strip()):
        raise ConfigError(f"lora_modules holds {text!r}; write NAME=DIRECTORY")
    return name.strip(), os.path.abspath(os.path.expanduser(path.strip()))
