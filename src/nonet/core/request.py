"""What one client call asks of the engine: token ids in, sampling, and who it is for."""

from __future__ import annotations

import msgspec

from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import ServiceClass

__all__ = ["PrefixLease", "Request"]


class PrefixLease(msgspec.Struct, frozen=True):
    """A wish: the first `num_tokens` of the prompt stay in the prefix cache for `ttl_s` after each use."""

    num_tokens: int
    ttl_s: float


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call, immutable. `params.n` sequences are generated for it.

    `request_id` is made by the server, never by the client, so it is unique. `cache_salt` and `adapter_id` are part of
    the prefix cache's hashes: requests that differ in either never share blocks. `leases` are from the shortest to the
    longest.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    eos_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str = ""
    adapter_id: str = ""
    service_class: ServiceClass = "standard"
    leases: tuple[PrefixLease, ...] = ()
    pools: bool = False  # wants the mean of the last hidden states of its prompt instead of output
