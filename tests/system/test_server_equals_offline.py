"""The server answers as the offline `LLM` does, streamed or whole: same tokens, same text, on real weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest

from nonet.core.outputs import Completion, RequestOutput
from nonet.core.sampling_params import SamplingParams
from nonet.engine.llm import LLM
from tests.data.prompts import PROMPTS
from tests.near_ties import count_flips
from tests.system.harness import RunningServer, real_options, start_server

pytestmark = [pytest.mark.models, pytest.mark.slow]

OPTIONS = {"max_model_len": 512, "prefix_cache": False}
# Prompts and tokens of each. What differs in bfloat16 is kernels, which have tests of their own.
AMOUNTS = {"float32": (PROMPTS, 64), "bfloat16": (PROMPTS[::2], 32)}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def offline(dtype: str) -> dict[str, list[RequestOutput]]:
    """Completions of all prompts, and chats about them."""
    prompts, num_tokens = AMOUNTS[dtype]
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, logprobs=2)
    with LLM(**real_options("smollm2", dtype=dtype, **OPTIONS)) as llm:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return {"text": llm.generate(prompts, params), "chat": llm.chat(chats, params)}


@pytest.fixture(scope="module")
def served(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    options = real_options("smollm2", dtype=dtype, **OPTIONS)
    running = start_server(tmp_path_factory.mktemp("served"), options=options)
    yield running
    assert running.stop() == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["text", "chat"])
async def test_server_equals_offline(
    dtype: str,
    offline: dict[str, list[RequestOutput]],
    served: RunningServer,
    kind: str,
    stream: bool,
) -> None:
    base = offline[kind]
    prompts, num_tokens = AMOUNTS[dtype]
    async with httpx.AsyncClient(base_url=served.url, timeout=120) as client:
        answers = await asyncio.gather(
            *(ask(client, kind, prompt, num_tokens, stream) for prompt in prompts)
        )
    for one, answer in zip(base, answers, strict=True):
        if answer.outputs[0].token_ids == one.outputs[0].token_ids:
            assert answer.outputs[0].text == one.outputs[0].text
        assert answer.prompt_ids == one.prompt_ids
    flips = count_flips(base, answers)
    print(
        f"server = offline, {kind}, stream {stream}, {dtype}: {flips} of {len(base)} part at a near tie"
    )
    assert flips <= (0 if dtype == "float32" else len(base) // 4)


async def ask(
    client: httpx.AsyncClient, kind: str, prompt: str, num_tokens: int, stream: bool
) -> RequestOutput:
    """One prompt's answer as the offline API would return it."""
    body: dict[str, object] = {
        "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True, "return_token_ids": True, "stream": stream,
    }  # fmt: skip
    if kind == "text":
        path = "/v1/completions"
        body["prompt"] = prompt
    else:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": prompt}]
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    if not stream:
        bodies = [answer.json()]
    else:
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        bodies = [json.loads(line) for line in lines]
    choice = Completion(index=0)
    prompt_ids: list[int] = []
    for one in bodies:
        entry = one["choices"][0]
        message = entry.get("message") or entry.get("delta")
        choice.text += entry["text"] if message is None else message.get("content") or ""
        choice.token_ids.extend(entry.get("token_ids") or [])
        prompt_ids = (
            prompt_ids or entry.get("prompt_token_ids") or one.get("prompt_token_ids") or []
        )
    return RequestOutput(
        request_id="", prompt=prompt, prompt_ids=prompt_ids, outputs=[choice], finished=True
    )
