"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from nonet.server.call import Call
from nonet.server.openai.sampling import check_model
from nonet.server.state import ServedModel

__all__ = ["list_models", "show_model"]


async def list_models(call: Call) -> None:
    await call.respond({"object": "list", "data": [_card(call.state.model)]})


async def show_model(call: Call) -> None:
    check_model(call.scope["path_params"]["name"], call.state.model)
    await call.respond(_card(call.state.model))


def _card(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "nonet",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }
