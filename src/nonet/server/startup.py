"""What the operator sees at start: the resolved plan as a short table, and a curl line that works."""

from __future__ import annotations

import json

from nonet.config.resolved import Resolved
from nonet.core.messages import EngineInfo

__all__ = ["curl_line", "startup_table"]

SERVER_THREADS = "1 event loop, 1 for long texts, 1 for the engine's socket"


def startup_table(info: EngineInfo, resolved: Resolved, url: str, curl: str) -> str:
    """Lines of `name  value  (why)`."""
    why = {**resolved.reasons, **info.reasons}
    rows = [
        ("model", resolved.served_name, why.get("model", resolved.model_path)),
        ("dtype", info.dtype, why.get("dtype", "")),
        ("weights", info.weight_format, why.get("weight_format", "")),
        ("context", f"{info.max_model_len} tokens", why.get("max_model_len", "")),
        (
            "KV cache",
            f"{info.num_blocks} blocks of {info.block_size} = {info.kv_tokens} tokens, {resolved.kv_format}",
            why.get("num_blocks", ""),
        ),
        ("kernels", info.kernels, why.get("kernels", "")),
        ("attention", info.attention, why.get("attention", "")),
        (
            "batch",
            f"{resolved.max_num_seqs} sequences, {resolved.max_tokens_per_step} tokens per step",
            why.get("max_tokens_per_step", ""),
        ),
        *(
            [("speculation", info.speculation, why.get("speculation", ""))]
            if info.speculation
            else []
        ),
        ("engine threads", str(info.threads), why.get("threads", "")),
        ("server threads", SERVER_THREADS, ""),
        *_adapters(info, resolved, why),
        ("loaded in", f"{info.load_s:.1f} s", ""),
        ("listening on", url, ""),
        ("playground", f"{url}/", ""),
    ]
    width = max(len(name) for name, _, _ in rows)
    lines = [
        f"  {name:<{width}}  {value}{f'  ({reason})' if reason else ''}"
        for name, value, reason in rows
    ]
    return "\n".join(["nonet is ready", *lines, "", f"  {curl}", ""])


def curl_line(url: str, model: str, *, has_chat: bool, has_keys: bool) -> str:
    """A first request to paste into a shell."""
    key = ' -H "Authorization: Bearer $NONET_API_KEY"' if has_keys else ""
    if has_chat:
        path = "/v1/chat/completions"
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": "What is a nonet?"}],
        }
    else:
        path = "/v1/completions"
        body = {"model": model, "prompt": "A nonet is", "max_tokens": 32}
    text = json.dumps(body).replace("'", "'\\''")
    return f"curl {url}{path}{key} -H 'Content-Type: application/json' -d '{text}'"


def _adapters(
    info: EngineInfo, resolved: Resolved, why: dict[str, str]
) -> list[tuple[str, str, str]]:
    if resolved.adapters is None:
        return []
    value = f"{len(info.adapters)} loaded, {resolved.adapters.num_slots} slots"
    return [("adapters", value, why.get("adapters", ""))]
