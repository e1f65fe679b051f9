"""GET /v1/models and /v1/models/{id}: one answer in which clients of either dialect find their fields."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nonet.server.call import Call
from nonet.server.state import ServedModel

__all__ = ["list_models", "show_model"]


async def list_models(call: Call) -> None:
    state = call.state
    cards = [_card(model, state.model.name) for model in state.models()]
    await call.respond(
        {
            "object": "list",
            "data": cards,
            "has_more": False,
            "first_id": cards[0]["id"],
            "last_id": cards[-1]["id"],
        }
    )


async def show_model(call: Call) -> None:
    model = call.choose_model(call.scope["path_params"]["name"])
    await call.respond(_card(model, call.state.model.name))


def _card(model: ServedModel, base: str) -> dict[str, Any]:
    """`parent` is what an adapter was made for."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "nonet",
        "root": model.name,
        "parent": base if model.adapter_id else None,
        "max_model_len": model.max_model_len,
        "type": "model",
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
    }
