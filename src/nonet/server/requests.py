"""What every dialect asks of the engine: the call's prompts as requests."""

from __future__ import annotations

from dataclasses import dataclass

from nonet.core.request import PrefixLease, Request
from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import ServiceClass
from nonet.server.call import Call

__all__ = ["Terms", "engine_requests"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms a call is run; they do not change its answer."""

    cache_salt: str | None = None
    priority: int | None = None
    service_class: ServiceClass = "standard"
    leases: tuple[PrefixLease, ...] = ()


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
            eos_ids=call.model.eos_ids,
            adapter_id=call.model.adapter_id,
            priority=terms.priority or 0,
            service_class=terms.service_class,
            cache_salt=f"{call.tenant}/{salt}" if call.tenant or salt else "",
            leases=terms.leases,
        )
        for number, prompt_ids in enumerate(prompts)
    ]
