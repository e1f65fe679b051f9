"""Every "auto" becomes a value with a one-sentence reason; what cannot work is refused before loading."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nonet.config.adapters import plan_adapters
from nonet.config.computation import Computation, choose_computation
from nonet.config.defaults import DEFAULTS
from nonet.config.determinism import resolve_determinism
from nonet.config.groups import blocks_for, cache_groups, longest_that_fits, padded_layers
from nonet.config.machine import Machine
from nonet.config.memory import (
    NUMBERS_BYTES,
    RUNTIME_BYTES,
    EntryFormat,
    graph_bytes,
    kv_bytes_per_block,
    show_bytes,
    workspace_bytes,
)
from nonet.config.resolved import CacheGroup, MemoryPlan, Resolved
from nonet.config.schema import Config
from nonet.config.speculation import Speculation, StepSizes, Taken, plan_speculation, taken_by
from nonet.core.catalogue import Catalogue
from nonet.core.errors import ConfigError
from nonet.core.model_spec import ModelSpec

__all__ = ["resolve"]


# Below this an automatic context length is refused: too short to be of use, so memory is what must be mended.
MIN_AUTO_CONTEXT = 256


def resolve(
    config: Config,
    spec: ModelSpec,
    machine: Machine,
    weight_formats: Catalogue,
    *,
    model_path: str | None = None,
    kv_format: EntryFormat | None = None,
    speculation: Speculation | None = None,
) -> Resolved:
    """The engine's plan for this model on this machine. Reads no weights.

    `model_path` is where the model argument was found (by default the argument itself), `speculation` what the proposer
    that is named asks for. ConfigError says in one sentence why a configuration cannot run, and what to change.
    """
    why: dict[str, str] = {}
    path = config.model.model if model_path is None else model_path
    how = choose_computation(config, spec, machine, weight_formats, kv_format, path, why)
    device, dtype, weight_format = how.device, how.dtype, how.weight_format
    recording = _recording(config, how.kernels, why)
    block_size = _block_size(config, device, why)
    num_seqs, step_tokens = _step_limits(config, spec, device, why)
    groups = _groups(config, spec, why)
    longest = config.model.max_model_len or spec.max_position
    sizes = StepSizes(block_size, num_seqs, step_tokens, longest)
    ahead = plan_speculation(speculation, spec, groups, sizes, how, why)
    beside = taken_by(ahead)
    adapters = plan_adapters(config, spec, dtype, why)
    recordings = int(recording) * (2 if adapters else 1)
    memory = _without_kv(spec, how, beside, sizes, recordings)
    used = memory.num_bytes + (adapters.slot_bytes if adapters else 0)
    free = _free_bytes(config, machine, device, used, dtype, weight_format)
    page = beside.bytes_per_block + kv_bytes_per_block(spec, groups, block_size, dtype, kv_format)
    shape = _CacheShape(groups, block_size, step_tokens, page)
    num_blocks = _num_blocks(config, device, shape, free, longest, num_seqs, why)
    max_model_len = _max_model_len(config, spec, shape, num_blocks, free, why)
    return Resolved(
        model_path=path,
        dtype=dtype,
        weight_format=weight_format,
        max_model_len=max_model_len,
        device=device,
        kernels=how.kernels,
        recording=recording,
        deterministic=resolve_determinism(config, how.kernels, why),
        overlap=_overlap(config, device, speculation, why),
        threads=_threads(config, machine, why),
        block_size=block_size,
        num_blocks=num_blocks,
        kv_format=how.kv_format,
        groups=groups,
        max_num_seqs=num_seqs,
        max_tokens_per_step=step_tokens,
        memory=_with_kv(memory, free, page, num_blocks),
        adapters=adapters,
        speculation=ahead,
        reasons=why,
        max_leased_blocks=_max_leased(config, num_blocks, shape.blocks(max_model_len)),
        **_as_given(config),
    )


def _without_kv(
    spec: ModelSpec, how: Computation, beside: Taken, sizes: StepSizes, recordings: int
) -> MemoryPlan:
    """What is in memory before the first KV block."""
    seqs, step_tokens = sizes.max_num_seqs, sizes.max_tokens_per_step
    rows = seqs + beside.num_rows
    graphs = graph_bytes(spec, seqs, step_tokens, rows, recordings)
    workspace = workspace_bytes(spec, step_tokens, rows, sizes.max_model_len)
    if how.kv_format != how.dtype:
        workspace += NUMBERS_BYTES.get(how.kernels, 0)
    return MemoryPlan(
        weight_bytes=how.weight_bytes,
        kv_bytes_per_block=0,
        kv_bytes=0,
        workspace_bytes=workspace,
        free_bytes=0,
        graph_bytes=graphs if how.device == "cuda" else 0,
        runtime_bytes=RUNTIME_BYTES[how.device],
        second_model_bytes=beside.num_bytes,
    )


def _with_kv(memory: MemoryPlan, free: int, page: int, num_blocks: int) -> MemoryPlan:
    kv_bytes = (num_blocks + 1) * page  # with the null block
    return replace(memory, kv_bytes_per_block=page, kv_bytes=kv_bytes, free_bytes=free - kv_bytes)


def _as_given(config: Config) -> dict[str, Any]:
    """What needs no decision."""
    model, cache, scheduler = config.model, config.cache, config.scheduler
    return {
        "served_name": model.served_name or model.model,
        "dummy_weights": model.dummy_weights,
        "seed": model.seed,
        "prefix_cache": cache.prefix_cache,
        "kv_prune": cache.kv_prune,
        "kv_reservation": cache.kv_reservation,
        "policy": scheduler.policy,
        "batching": scheduler.batching,
        "chunked_prefill": scheduler.chunked_prefill,
        "max_waiting": scheduler.max_waiting,
    }


@dataclass(frozen=True, slots=True)
class _CacheShape:
    groups: tuple[CacheGroup, ...]
    block_size: int
    max_tokens_per_step: int
    page_bytes: int

    def blocks(self, num_tokens: int) -> int:
        return blocks_for(self.groups, num_tokens, self.block_size, self.max_tokens_per_step)

    def longest(self, num_blocks: int) -> int:
        return longest_that_fits(self.groups, num_blocks, self.block_size, self.max_tokens_per_step)


def _recording(config: Config, kernels: str, why: dict[str, str]) -> bool:
    if config.runtime.recording and kernels == "reference":
        why["recording"] = "the reference kernels cannot be recorded"
        return False
    return config.runtime.recording


def _overlap(
    config: Config, device: str, speculation: Speculation | None, why: dict[str, str]
) -> bool:
    asked = config.runtime.overlap
    if asked is not None:
        return asked
    if speculation is not None and not speculation.pauses:
        why["overlap"] = "drafts follow the last token read, so there is nothing to plan before it"
        return False
    if device == "cpu":
        why["overlap"] = "on a CPU the host does the device's work"
        return False
    why["overlap"] = "the GPU need not wait for the host between steps"
    if speculation is not None:
        why["overlap"] += ", but where drafts are worth it"
    return True


def _block_size(config: Config, device: str, why: dict[str, str]) -> int:
    asked = config.cache.block_size
    if asked is None:
        why["block_size"] = DEFAULTS[device].reasons["block_size"]
        return DEFAULTS[device].block_size
    if asked % 16:
        raise ConfigError(f"block_size is {asked}; give a multiple of 16")
    return asked


def _step_limits(
    config: Config, spec: ModelSpec, device: str, why: dict[str, str]
) -> tuple[int, int]:
    """(max_num_seqs, max_tokens_per_step), where every running sequence may decode in one step."""
    defaults, asked = DEFAULTS[device], config.scheduler
    seqs, tokens = asked.max_num_seqs, asked.max_tokens_per_step
    context = config.model.max_model_len or spec.max_position
    if tokens is None:
        tokens = max(defaults.max_tokens_per_step, seqs or 0)
        why["max_tokens_per_step"] = (
            defaults.reasons["max_tokens_per_step"]
            if tokens == defaults.max_tokens_per_step
            else "one token for each of max_num_seqs"
        )
        if not asked.chunked_prefill and tokens < context:
            tokens = context
            why["max_tokens_per_step"] = "without chunked prefill a step holds a prompt"
    elif not asked.chunked_prefill and tokens < context:
        raise ConfigError(
            f"chunked_prefill is off and max_tokens_per_step is {tokens}, so a prompt of max_model_len "
            f"{context} never fits in a step; raise max_tokens_per_step or lower max_model_len"
        )
    if seqs is None:
        seqs = min(defaults.max_num_seqs, tokens)
        why["max_num_seqs"] = (
            defaults.reasons["max_num_seqs"]
            if seqs == defaults.max_num_seqs
            else "no more than max_tokens_per_step"
        )
    elif seqs > tokens:
        raise ConfigError(
            f"max_num_seqs is {seqs}, above max_tokens_per_step {tokens}, so some sequences would never "
            "run in the same step; raise max_tokens_per_step or lower max_num_seqs"
        )
    return seqs, tokens


def _groups(config: Config, spec: ModelSpec, why: dict[str, str]) -> tuple[CacheGroup, ...]:
    groups = cache_groups(spec)
    size = max(len(group.layers) for group in groups)
    windows = sorted({group.window for group in groups if group.window is not None})
    kinds = f"windows {windows} and full attention" if windows else "full attention in every layer"
    waste = padded_layers(groups)
    share = f"; {waste} layers of padding" if waste else ""
    why["groups"] = f"{size} layers each: {kinds}{share}"
    if config.cache.kv_prune is not None and all(group.window for group in groups):
        raise ConfigError(
            f"kv_prune is {config.cache.kv_prune}, but every layer of this model has a sliding window and keeps no KV "
            "beyond it; leave kv_prune out"
        )
    return groups


def _free_bytes(
    config: Config, machine: Machine, device: str, used: int, dtype: str, weight_format: str
) -> int:
    """Bytes left for KV once weights and workspace are in memory."""
    available = machine.available_bytes if device == "cpu" else machine.gpu_free_bytes
    if available is None:
        raise ConfigError("the GPU does not tell its free memory; check that nvidia-smi runs")
    if used >= available:
        more = ", CUDA graphs and context" if device == "cuda" else ""
        raise ConfigError(
            f"weights ({weight_format}, {dtype}), workspace{more} and adapter slots take {show_bytes(used)}, and "
            f"{show_bytes(available)} of memory is free; take a smaller model, a smaller weight_format "
            "or a smaller max_tokens_per_step"
        )
    return available - used


def _num_blocks(
    config: Config,
    device: str,
    shape: _CacheShape,
    free: int,
    longest: int,
    num_seqs: int,
    why: dict[str, str],
) -> int:
    """Blocks that sequences can use; block 0, the null block that padding points to, comes on top."""
    cache = config.cache
    if cache.num_blocks is not None:
        if (cache.num_blocks + 1) * shape.page_bytes > free:
            raise ConfigError(
                f"num_blocks is {cache.num_blocks}, which takes "
                f"{show_bytes(cache.num_blocks * shape.page_bytes)} of {show_bytes(free)} free memory; "
                f"give at most {free // shape.page_bytes - 1}"
            )
        return cache.num_blocks
    fraction = cache.memory_fraction
    if fraction is None:
        fraction = DEFAULTS[device].memory_fraction
        if cache.memory_gib is None:
            why["memory_fraction"] = DEFAULTS[device].reasons["memory_fraction"]
    budget = int(free * fraction)
    if cache.memory_gib is not None:
        budget = int(cache.memory_gib * 2**30)
        if budget > free:
            raise ConfigError(
                f"memory_gib is {cache.memory_gib}, but {show_bytes(free)} is free after weights and "
                "workspace; lower memory_gib"
            )
    fit = max(0, budget // shape.page_bytes - 1)
    enough = num_seqs * shape.blocks(longest)
    each = f"{show_bytes(shape.page_bytes)} each"
    if fit <= enough:
        why["num_blocks"] = f"what {show_bytes(budget)} holds at {each}"
    else:
        why["num_blocks"] = f"enough for max_num_seqs sequences of full length, {each}"
    return min(fit, enough)


def _max_model_len(
    config: Config,
    spec: ModelSpec,
    shape: _CacheShape,
    num_blocks: int,
    free: int,
    why: dict[str, str],
) -> int:
    asked = config.model.max_model_len
    if asked is not None and asked > spec.max_position:
        raise ConfigError(
            f"max_model_len is {asked}, but the model was made for {spec.max_position} tokens; "
            f"give at most {spec.max_position}"
        )
    wanted = asked or spec.max_position
    holds = shape.longest(num_blocks)
    if holds >= wanted:
        if asked is None:
            why["max_model_len"] = "what the model was made for"
        return wanted
    need = shape.blocks(wanted)
    if asked is not None or holds < min(MIN_AUTO_CONTEXT, wanted):
        shorter = f"set max_model_len to at most {holds}, or " if holds else ""
        raise ConfigError(
            f"one sequence of {wanted} tokens needs {need} KV blocks ({show_bytes(need * shape.page_bytes)}), "
            f"and there are {num_blocks} ({show_bytes(free)} of memory is free); "
            f"{shorter}raise num_blocks, memory_gib or memory_fraction"
        )
    why["max_model_len"] = (
        f"the model was made for {wanted}, which needs {need} KV blocks, and there are {num_blocks}"
    )
    return holds


def _max_leased(config: Config, num_blocks: int, num_needed: int) -> int:
    """Blocks that may be leased; what is left holds a sequence of full length, which needs `num_needed`."""
    if not config.cache.prefix_cache:
        return 0
    return min(int(num_blocks * config.cache.lease_fraction), num_blocks - num_needed)


def _threads(config: Config, machine: Machine, why: dict[str, str]) -> int:
    if config.runtime.threads is not None:
        return config.runtime.threads
    wanted = machine.wanted_threads
    if wanted is not None and wanted < machine.physical_cores:
        why["threads"] = "OMP_NUM_THREADS, of the physical cores that this process may use"
        return wanted
    why["threads"] = "the physical cores that this process may use"
    return machine.physical_cores
