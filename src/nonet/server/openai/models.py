"""GET /v1/models and /v1/models/{id}: one answer in which clients of either dialect find their fields."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from nonet.server.call import Call
from nonet.server.encoder import ServedEncoder
from nonet.server.state import ServedModel

__all__ = ["list_models", "show_model"]


async def list_models(call: Call) -> None:
    state = call.state
    cards = [_card(model, state.model.name) for model in state.models()]
    if state.encoder is not None:
        cards.append(_encoder_card(state.encoder))
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
    name, encoder = call.scope["path_params"]["name"], call.state.encoder
    if encoder is not None and name == encoder.name:
        await call.respond(_encoder_card(encoder))
        return
    await call.respond(_card(call.choose_model(name), call.state.model.name))


def _card(model: ServedModel, base: str) -> dict[str, Any]:
    """`parent` is what an adapter was made for."""
    parent = base if model.adapter_id else None
    return _any_card(model.name, model.created, model.max_model_len, parent)


def _encoder_card(encoder: ServedEncoder) -> dict[str, Any]:
    return _any_card(encoder.name, encoder.created, encoder.embedder.max_tokens, None)


def _any_card(name: str, created: int, max_model_len: int, parent: str | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "nonet",
        "root": name,
        "parent": parent,
        "max_model_len": max_model_len,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
    }
