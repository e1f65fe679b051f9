"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, in vLLM's shapes: adapters come and go while serving.

Off unless the operator names a directory: only what really lies below it, links followed, can be loaded. A server with
an admin socket takes adapters there, and on these public routes no longer.
"""

from __future__ import annotations

import os
from pathlib import Path

from nonet.config.adapters import check_adapter_name
from nonet.core.errors import InvalidRequestError, UserError
from nonet.server.call import Call
from nonet.server.openai.schemas import LoadAdapterRequest, UnloadAdapterRequest

__all__ = ["load_adapter", "offer_adapter", "unload_adapter", "withdraw_adapter"]

FILES = ("adapter_config.json", "adapter_model.safetensors")


async def load_adapter(call: Call) -> None:
    _check_public(call)
    await offer_adapter(call)


async def unload_adapter(call: Call) -> None:
    _check_public(call)
    body = await call.json(UnloadAdapterRequest)
    await withdraw_adapter(call, body.lora_name)


async def offer_adapter(call: Call) -> None:
    """Offer an adapter under a name; the answer comes when it was read and checked."""
    body = await call.json(LoadAdapterRequest)
    state = call.state
    try:
        check_adapter_name(body.lora_name, state.model.name)
    except UserError as error:
        raise InvalidRequestError(str(error), "lora_name") from None
    if body.base_model_name not in (None, state.model.name):
        raise InvalidRequestError(
            f"base_model_name is {body.base_model_name!r}; this server has {state.model.name!r}",
            "base_model_name",
        )
    folder = allowed_folder(state.adapter_dir, body.lora_path)
    if body.load_inplace and state.engine.adapters.find(body.lora_name) is not None:
        await state.engine.adapters.unload(body.lora_name)
    await state.engine.adapters.load(body.lora_name, str(folder))
    await _say(call, f"Success: LoRA adapter {body.lora_name!r} added successfully.")


async def withdraw_adapter(call: Call, name: str) -> None:
    """Take an adapter back. Requests that run or wait with it end as they would have; new ones get 404."""
    allowed_folder(call.state.adapter_dir, "")
    await call.state.engine.adapters.unload(name)
    await _say(call, f"Success: LoRA adapter {name!r} removed successfully.")


def allowed_folder(root: str | None, given: str) -> Path:
    """The directory that `given` means, below `root`; InvalidRequestError when it or a file of it lies elsewhere."""
    if root is None:
        raise InvalidRequestError(
            "adapters cannot be loaded or unloaded here; start the server with lora_dir set to a directory of them"
        )
    outside = InvalidRequestError(
        f"lora_path {given[:200]!r} is no adapter directory below the server's lora_dir",
        "lora_path",
    )
    try:
        top = Path(os.path.realpath(root, strict=True))
        folder = Path(os.path.realpath(top / given, strict=True))
        files = [Path(os.path.realpath(folder / name)) for name in FILES]
    except (OSError, ValueError):  # no such place, a loop of links, a NUL
        raise outside from None
    if not folder.is_dir() or not all(path.is_relative_to(top) for path in (folder, *files)):
        raise outside
    return folder


def _check_public(call: Call) -> None:
    if call.state.has_admin:
        raise InvalidRequestError(
            "this server takes adapters on its admin socket only; use POST and DELETE /adapters there"
        )


async def _say(call: Call, text: str) -> None:
    await call.respond_bytes(text.encode(), content_type=b"text/plain; charset=utf-8")
