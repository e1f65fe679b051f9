"""`nonet plan`: what would run, why, and where the memory goes; no weights are read."""

from __future__ import annotations

from dataclasses import asdict, fields

import msgspec

from nonet.cli.flags import ENGINE, JsonFlag, configured
from nonet.cli.terminal import print_json, table
from nonet.config.load import Loaded
from nonet.config.memory import show_bytes
from nonet.config.options import options
from nonet.config.resolved import Resolved

__all__ = ["command", "describe_plan"]


def plan(loaded: Loaded, *, json: JsonFlag = False) -> int:
    """Show the resolved configuration and its reasons, without loading weights."""
    from nonet.engine.prepare import resolve_config

    resolved, _ = resolve_config(loaded.config)
    if json:
        print_json(msgspec.to_builtins(resolved) | {"sources": loaded.sources})
    else:
        print(describe_plan(resolved, loaded.sources))
    return 0


command = configured(plan, *ENGINE, model_first=True)


def describe_plan(resolved: Resolved, sources: dict[str, str]) -> str:
    """Two tables: every choice with its reason or source, and the memory plan."""
    return "\n\n".join(
        (
            f"model files: {resolved.model_path}",
            table(_choices(resolved, sources)),
            table(_memory(resolved)),
        )
    )


def _choices(resolved: Resolved, sources: dict[str, str]) -> list[tuple[str, str, str]]:
    keys = {row.name: row.key for row in options().values()}
    rows = []
    for name in (field.name for field in fields(Resolved)):
        if name in ("model_path", "memory", "reasons", "groups", "adapters", "speculation"):
            continue
        source = sources.get(keys.get(name, ""))
        why = resolved.reasons.get(name) or (f"set by {source}" if source else "default")
        rows.append((name, str(getattr(resolved, name)), why))
    rows.append(("groups", str(len(resolved.groups)), resolved.reasons["groups"]))
    slots = "no" if resolved.adapters is None else f"{resolved.adapters.num_slots} slots"
    rows.append(("adapters", slots, resolved.reasons.get("adapters", "default")))
    rows += _speculation(resolved)
    known = {name for name, _, _ in rows}
    rows += [(name, "", why) for name, why in resolved.reasons.items() if name not in known]
    return rows


def _speculation(resolved: Resolved) -> list[tuple[str, str, str]]:
    ahead = resolved.speculation
    if ahead is None:
        return []
    most = f"at most {ahead.max_drafts} tokens of a sequence, {ahead.max_drafts_per_step} in a step"
    why = resolved.reasons.get("speculation", "needs no memory worth counting")
    return [
        ("speculation", ahead.speculate, why),
        ("draft_length", ahead.draft_length, most),
    ]


def _memory(resolved: Resolved) -> list[tuple[str, str, str]]:
    plan = asdict(resolved.memory)
    page = plan["kv_bytes_per_block"]
    tokens = resolved.num_blocks * resolved.block_size // len(resolved.groups)
    return [
        (
            "weights",
            show_bytes(plan["weight_bytes"]),
            f"{resolved.weight_format}, {resolved.dtype}",
        ),
        (
            "KV cache",
            show_bytes(plan["kv_bytes"]),
            f"{resolved.kv_format}, {resolved.num_blocks} blocks of {show_bytes(page)} and the null block; "
            f"{tokens} tokens where every layer keeps them all",
        ),
        *_second_model(resolved),
        ("workspace", show_bytes(plan["workspace_bytes"]), "activations, logits, rotary tables"),
        *_device_memory(resolved),
        *_adapter_memory(resolved),
        ("left free", show_bytes(plan["free_bytes"]), f"on {resolved.device}"),
    ]


def _device_memory(resolved: Resolved) -> list[tuple[str, str, str]]:
    plan = resolved.memory
    rows = [
        ("CUDA graphs", plan.graph_bytes, "recorded steps, by size, while idle or as they are met"),
        ("CUDA runtime", plan.runtime_bytes, "context, modules, workspaces of the libraries"),
    ]
    return [(name, show_bytes(count), words) for name, count, words in rows if count]


def _adapter_memory(resolved: Resolved) -> list[tuple[str, str, str]]:
    if resolved.adapters is None:
        return []
    slots = resolved.adapters.num_slots
    return [("adapters", show_bytes(resolved.adapters.slot_bytes), f"{slots} slots")]


def _second_model(resolved: Resolved) -> list[tuple[str, str, str]]:
    second = resolved.speculation.second_model if resolved.speculation else None
    if second is None:
        return []
    held = f"{second.weight_format}, {resolved.dtype}; its KV is in the blocks above"
    return [("second model", show_bytes(resolved.memory.second_model_bytes), held)]
