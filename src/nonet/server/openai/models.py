"""GET /v1/models and /v1/models/{id}: one answer in which clients of either dialect find their fields."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nonet.server.call import Call
from nonet.server.requests import check_model
from nonet.server.state import ServedModel

__all__ = ["list_models", "show_model"]


async def list_models(call: Call) -> None:
    cards = [_card(call.state.model)]
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
        "type": "model",
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
    }
