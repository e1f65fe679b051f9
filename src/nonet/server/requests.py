"""What every dialect asks of the engine: is the model ours, and the call's prompts as requests."""

from __future__ import annotations

from dataclasses import dataclass

from nonet.core.errors import NotFoundError
from nonet.core.request import PrefixLease, Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import ServiceClass
from nonet.server.call import Call
from nonet.server.limits import check_length
from nonet.server.state import ServedModel

__all__ = ["Terms", "check_model", "engine_requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a call is run; they do not change its answer."""

    cache_salt: str | None = None
    priority: int | None = None
    service_class: ServiceClass = "standard"
    leases: tuple[PrefixLease, ...] = ()


def check_model(given: str | None, model: ServedModel) -> None:
    """NotFoundError when another model is asked for."""
    if given is None or given == model.name:
        return
    check_length("model", len(given), "model")
    raise NotFoundError(f"no model {given!r} is served here; this server has {model.name!r}")


def engine_requests(
    call: Call, name: str, prompts: list[list[int]], params: SamplingParams, terms: Terms
) -> list[Request]:
    """One request per prompt. A tenant's key separates its cached prefixes from those of others."""
    salt = terms.cache_salt or ""
    return [
        Request(
            request_id=f"{name}-{number}",
            prompt_ids=prompt_ids,
            params=params,
            eos_ids=call.state.model.eos_ids,
            priority=terms.priority or 0,
            service_class=terms.service_class,
            cache_salt=f"{call.tenant}/{salt}" if call.tenant or salt else "",
            leases=terms.leases,
        )
        for number, prompt_ids in enumerate(prompts)
    ]
