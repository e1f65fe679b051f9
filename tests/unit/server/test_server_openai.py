"""Bodies to sampling and messages, without a server."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from nonet.core.errors import InvalidRequestError, NotFoundError
from nonet.core.model_spec import GenerationDefaults
from nonet.core.sampling_params import SamplingParams
from nonet.server.openai.messages import template_messages
from nonet.server.openai.sampling import check_common, sampling_params
from nonet.server.openai.schemas import ChatMessage, CompletionRequest, ContentPart
from nonet.server.state import ServedModel, find_model

MODEL = ServedModel(
    name="m",
    created=0,
    max_model_len=128,
    vocab_size=100,
    hidden_size=8,
    eos_ids=(2,),
    generation=GenerationDefaults(temperature=0.6, top_k=20, repetition_penalty=1.1),
)


def params(**fields: object) -> SamplingParams:
    body = msgspec.convert({"prompt": "x", **fields}, CompletionRequest)
    return sampling_params(body, MODEL, max_tokens=None, logprobs=None)


def test_the_model_recommends_where_the_client_is_silent() -> None:
    silent = params()
    assert (silent.temperature, silent.top_k, silent.repetition_penalty) == (0.6, 20, 1.1)
    assert (silent.top_p, silent.min_p, silent.n) == (1.0, 0.0, 1)
    loud = params(temperature=0.0, top_k=-1, repetition_penalty=1.0, stop="x")
    assert (loud.temperature, loud.top_k, loud.repetition_penalty) == (0.0, 0, 1.0)
    assert loud.stop == ["x"]
    assert params(temperature=None).temperature == 0.6


def test_switches_default_as_documented() -> None:
    assert params().skip_special_tokens
    assert not params(skip_special_tokens=False).skip_special_tokens
    assert not params().ignore_eos
    assert params(ignore_eos=True).ignore_eos


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"user": "u" * 513}, "user"),
        ({"cache_salt": "\ud800"}, "cache_salt"),
    ],
)
def test_common_refusals(fields: dict[str, object], param: str) -> None:
    body = msgspec.convert({"prompt": "x", **fields}, CompletionRequest)
    with pytest.raises(InvalidRequestError) as caught:
        check_common(body)
    assert caught.value.param == param


def test_other_models_are_not_found() -> None:
    adapter = dataclasses.replace(MODEL, name="a", adapter_id="a@1")
    with pytest.raises(
        NotFoundError, match="no model 'n' is served here; this server has 'm', 'a'"
    ):
        find_model("n", [MODEL, adapter])
    assert find_model("m", [MODEL, adapter]) is MODEL
    assert find_model(None, [MODEL, adapter]) is MODEL
    assert find_model("a", [MODEL, adapter]) is adapter


def test_messages_become_what_templates_take() -> None:
    plain = template_messages(
        [
            ChatMessage(role="developer", content="be brief"),
            ChatMessage(role="user", content=[ContentPart("text", "a"), ContentPart("text", "b")]),
            ChatMessage(role="assistant", tool_calls=[{"id": "1"}]),
            ChatMessage(role="tool", content="42", tool_call_id="1", name="f"),
        ]
    )
    assert plain == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42", "name": "f", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize(
    "message",
    [
        ChatMessage(role="boss", content="x"),
        ChatMessage(role="user"),
        ChatMessage(role="user", content="\udfff"),
        ChatMessage(role="user", content=[ContentPart("image_url")]),
        ChatMessage(role="user", content=[ContentPart("text")]),
        ChatMessage(role="user", content="x", name="n" * 513),
    ],
)
def test_bad_messages(message: ChatMessage) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        template_messages([message])
    assert caught.value.param == "messages"
