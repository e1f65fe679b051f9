"""The exact-match cache: what is one ask."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway_fakes import ask

from nonet.core.grammar import Grammar
from nonet.core.request import PrefixLease, Request
from nonet.core.sampling_params import SamplingParams
from nonet.gateway.answer import Ask, Caller, Conversation
from nonet.gateway.cache import key as key_module
from nonet.gateway.cache.key import NOT_IN_KEY, ask_key


def flips() -> dict[str, Ask]:
    """For each field that an ask, its caller, its requests and their sampling have, the same ask with another value."""
    base = ask()
    request = base.requests[0]
    params: dict[str, Any] = {
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1,
        "frequency_penalty": 0.1, "presence_penalty": 0.1, "logit_bias": {1: 2.0}, "seed": 7, "max_tokens": 9,
        "min_tokens": 1, "stop": ["x"], "stop_token_ids": [3], "include_stop_str_in_output": True, "ignore_eos": True,
        "skip_special_tokens": False, "logprobs": 0, "prompt_logprobs": 1,
        "forced_ids": [7], "finish_in_time": True, "grammar": Grammar("json_object"),
    }  # fmt: skip
    fields: dict[str, Any] = {
        "request_id": "b-0", "prompt_ids": [1, 2], "eos_ids": (5,), "priority": 3, "cache_salt": "s",
        "adapter_id": "lora", "service_class": "batch", "leases": (PrefixLease(2, 300.0),), "pools": True,
    }  # fmt: skip
    found: dict[str, Ask] = {}

    def with_request(changed: Request) -> Ask:
        return msgspec.structs.replace(base, requests=(changed,))

    for name, value in params.items():
        changed = msgspec.structs.replace(request.params, **{name: value})
        found[f"params.{name}"] = with_request(msgspec.structs.replace(request, params=changed))
    for name, value in fields.items():
        found[f"request.{name}"] = with_request(msgspec.structs.replace(request, **{name: value}))
    found["echoed"] = msgspec.structs.replace(base, echoed=(4,))
    found["encoder"] = msgspec.structs.replace(base, encoder="minilm")
    found["requests"] = msgspec.structs.replace(base, requests=(request, request))
    found["tenant"] = msgspec.structs.replace(base, caller=Caller(tenant="other"))
    for name, value in (("tools", [{"name": "f"}]), ("response_format", {"type": "json_object"})):
        chat = Conversation(messages=[], settings={name: value})
        found[f"settings.{name}"] = msgspec.structs.replace(base, conversation=chat)
    return found


FLIPS = flips()
SAME = {f"request.{name}" for name in NOT_IN_KEY}


def test_every_field_is_flipped() -> None:
    """A field that is added to requests or sampling later must be added above, or this fails."""
    known = {f"params.{name}" for name in SamplingParams.__struct_fields__}
    known |= {f"request.{name}" for name in Request.__struct_fields__ if name != "params"}
    assert known <= set(FLIPS), sorted(known - set(FLIPS))


@pytest.mark.parametrize("name", FLIPS)
def test_any_field_flip_is_another_key(name: str) -> None:
    is_same = ask_key(FLIPS[name], b"model") == ask_key(ask(), b"model")
    assert is_same is (name in SAME)


def test_another_model_is_another_key() -> None:
    assert ask_key(ask(), b"one") != ask_key(ask(), b"two")


def test_all_flips_differ_from_each_other() -> None:
    keys = [ask_key(flip, b"model") for name, flip in FLIPS.items() if name not in SAME]
    assert len(set(keys)) == len(keys)


def test_a_key_that_forgets_a_field_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: one more field on the list of what does not matter."""
    monkeypatch.setattr(key_module, "NOT_IN_KEY", NOT_IN_KEY | {"cache_salt"})
    assert ask_key(FLIPS["request.cache_salt"], b"m") == ask_key(ask(), b"m")


@settings(deadline=None)
@given(st.lists(st.integers(0, 259), min_size=1, max_size=5), st.lists(st.integers(0, 259)))
def test_prompts_do_not_run_into_each_other(one: list[int], two: list[int]) -> None:
    base = ask().requests[0]

    def key(*prompts: list[int]) -> bytes:
        requests = tuple(msgspec.structs.replace(base, prompt_ids=ids) for ids in prompts)
        return ask_key(Ask(requests=requests), b"m")

    assert key(one, two) != key(one + two)
    assert (key(one, two) == key(two, one)) is (one == two)
