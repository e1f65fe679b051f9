"""From the fields of a body to requests for the engine: limits checked, the model's recommendations filled in."""

from __future__ import annotations

from typing import TypeVar

from nonet.core.errors import InvalidRequestError
from nonet.core.limits import check
from nonet.core.model_spec import GenerationDefaults
from nonet.core.sampling_params import SamplingParams
from nonet.core.service_class import SERVICE_CLASSES, ServiceClass
from nonet.server.limits import check_length
from nonet.server.openai.schemas import SamplingFields
from nonet.server.prompts import check_text
from nonet.server.requests import Terms
from nonet.server.state import ServedModel

__all__ = [
    "check_common",
    "sampling_params",
    "service_class",
    "terms_of",
    "tier_field",
    "wants_usage",
]

T = TypeVar("T")

TIERS: dict[str, ServiceClass] = {
    "auto": "standard",
    "default": "standard",
    "priority": "interactive",
    "flex": "batch",
    **{name: name for name in SERVICE_CLASSES},
}


def check_common(body: SamplingFields) -> None:
    """What both endpoints refuse before any work is done."""
    for field in ("cache_salt", "user", "prompt_cache_key"):
        text: str | None = getattr(body, field)
        if text is not None:
            check_length(field, len(text), field)
            check_text(text, field)
    if body.priority is not None:
        check("priority", body.priority)
    service_class(body.service_tier)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError(
            "stream_options is only for streams; set stream to true", "stream_options"
        )


def service_class(tier: str | None) -> ServiceClass:
    """The class that a `service_tier` asks for: OpenAI's names, or the classes' own."""
    if tier is None:
        return "standard"
    if tier not in TIERS:
        raise InvalidRequestError(
            f"service_tier is {tier!r}; give one of {', '.join(TIERS)}", "service_tier"
        )
    return TIERS[tier]


def terms_of(body: SamplingFields) -> Terms:
    return Terms(
        cache_salt=body.cache_salt,
        priority=body.priority,
        service_class=service_class(body.service_tier),
    )


def tier_field(body: SamplingFields) -> dict[str, str]:
    """What an answer says of the tier it was served in, when the request named one."""
    tier = body.service_tier
    return {} if tier is None else {"service_tier": "default" if tier == "auto" else tier}


def wants_usage(body: SamplingFields) -> bool:
    """Whether a stream must end with a usage chunk."""
    return bool(body.stream_options is not None and body.stream_options.include_usage)


def sampling_params(
    body: SamplingFields, model: ServedModel, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """The request's sampling, each field from the body, else from the model, else neutral."""
    defaults = model.generation
    params = SamplingParams(
        n=_first(body.n, 1),
        temperature=_first(body.temperature, defaults.temperature, 1.0),
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        top_k=_top_k(body, defaults),
        min_p=_first(body.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        frequency_penalty=_first(body.frequency_penalty, 0.0),
        presence_penalty=_first(body.presence_penalty, 0.0),
        logit_bias=body.logit_bias or None,
        seed=body.seed,
        max_tokens=max_tokens,
        min_tokens=_first(body.min_tokens, 0),
        stop=_stops(body.stop),
        stop_token_ids=body.stop_token_ids or [],
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        finish_in_time=bool(body.finish_in_time),
    )
    params.verify(model.vocab_size)
    return params


def _stops(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    check_length("stop", len(stops), "stop")
    for text in stops:
        check_text(text, "stop")
    return stops


def _top_k(body: SamplingFields, defaults: GenerationDefaults) -> int:
    top_k = _first(body.top_k, defaults.top_k, 0)
    check("top_k", top_k)
    return max(top_k, 0)


def _first(*values: T | None) -> T:
    """The first value that was given; the last always is."""
    for value in values:
        if value is not None:
            return value
    raise AssertionError("the last value is a default")
