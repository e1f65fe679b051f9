"""POST /v1/completions: text or token ids in, text out."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from nonet.core.errors import InvalidRequestError, NonetError
from nonet.core.limits import check
from nonet.server.answer_form import answer_form
from nonet.server.call import Call
from nonet.server.delivery import send_stream, send_whole
from nonet.server.generation import ChoiceText, Generation, Usage
from nonet.server.limits import check_choices, check_length, check_token_ids
from nonet.server.openai.events import completion_usage, stream_ending, stream_failure
from nonet.server.openai.logprobs import CompletionLogprobs, prompt_logprobs
from nonet.server.openai.sampling import (
    check_common,
    sampling_params,
    terms_of,
    tier_field,
    wants_usage,
)
from nonet.server.openai.schemas import CompletionRequest
from nonet.server.prompts import check_fits, encode_text
from nonet.server.requests import engine_requests
from nonet.server.shapes import asked_shape

__all__ = ["completions"]

DEFAULT_MAX_TOKENS = 16  # as OpenAI; a chat may fill the context


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: list[int]
    text: str | None  # as given; None for token ids


async def completions(call: Call) -> None:
    """Complete one prompt or several, as a stream or whole."""
    received_s = time.monotonic()
    body = await call.json(CompletionRequest)
    model = call.choose_model(body.model)
    _check(body)
    check_common(body)
    given = _given_prompts(body.prompt)
    check_choices(len(given), 1 if body.n is None else body.n)
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    check("max_tokens", max_tokens)
    params = sampling_params(body, model, max_tokens=max_tokens, logprobs=body.logprobs)
    if body.echo and body.logprobs is not None and params.prompt_logprobs is None:
        params = msgspec.structs.replace(params, prompt_logprobs=body.logprobs)
    form = await answer_form(call.state, None, asked_shape(body))
    params = form.shaped(params, model.vocab_size)
    prompts = [await _encode(call, prompt) for prompt in given]
    for prompt in prompts:
        check_fits(model, prompt.ids, params.max_tokens, "prompt")
    name = f"cmpl-{uuid.uuid4().hex}"
    ids = [prompt.ids for prompt in prompts]
    requests = engine_requests(call, name, ids, params, terms_of(body))
    shape = _CompletionShape(call, body, name, prompts, params.n)
    generation = Generation(call, requests, received_s, shape.echoed())
    if body.stream:
        await send_stream(call, generation, shape)
    else:
        await send_whole(call, generation, lambda choices: shape.whole(choices, generation))


def _check(body: CompletionRequest) -> None:
    if body.logprobs is not None:
        check("logprobs", body.logprobs)
    if body.best_of is not None and body.best_of != (1 if body.n is None else body.n):
        raise InvalidRequestError("best_of other than n is not supported; leave it out", "best_of")
    if body.suffix:
        raise InvalidRequestError("suffix is not supported; leave it out", "suffix")


def _given_prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One entry per prompt. A list of numbers is one prompt of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("prompt is an empty list; give at least one prompt", "prompt")
    if all(isinstance(item, int) for item in prompt):
        return [[item for item in prompt if isinstance(item, int)]]
    check_length("prompts", len(prompt), "prompt")
    if all(isinstance(item, str) for item in prompt):
        return [item for item in prompt if isinstance(item, str)]
    if all(isinstance(item, list) for item in prompt):
        return [item for item in prompt if isinstance(item, list)]
    raise InvalidRequestError(
        "prompt mixes texts, numbers and lists; give texts only, or token ids only", "prompt"
    )


async def _encode(call: Call, prompt: str | list[int]) -> _Prompt:
    if isinstance(prompt, str):
        return _Prompt(await encode_text(call.state, prompt, "prompt"), prompt)
    check_token_ids(prompt, call.model.vocab_size, "prompt")
    return _Prompt(prompt, None)


class _CompletionShape:
    """Chunks and whole answers of one call; plain pieces of text are two prepared halves around the quoted text."""

    def __init__(
        self, call: Call, body: CompletionRequest, name: str, prompts: list[_Prompt], n: int
    ) -> None:
        self._tokenizer = call.state.tokenizer
        self._body = body
        self._prompts = prompts
        self._n = n
        self._num_choices = len(prompts) * n
        self._head: dict[str, Any] = {
            "id": name,
            "object": "text_completion",
            "created": int(time.time()),
            "model": call.model.name,
            **tier_field(body),
        }
        self._tail: dict[str, Any] = {"usage": None} if wants_usage(body) else {}
        self._logprobs = [
            CompletionLogprobs(self._tokenizer, body.logprobs or 0)
            for _ in range(self._num_choices)
        ]
        self._is_begun = [False] * self._num_choices
        self._is_plain = not (body.echo or body.return_token_ids or body.logprobs is not None)
        start = b"data: " + orjson.dumps(self._head)[:-1]
        self._before = [
            start + b',"choices":[{"index":%d,"text":' % choice
            for choice in range(self._num_choices)
        ]
        usage = b',"usage":null' if self._tail else b""
        self._after = b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._prompt_rows: dict[int, list[Any] | None] = {}

    def echoed(self) -> list[int] | None:
        """Characters of each prompt that its answers repeat."""
        if not self._body.echo:
            return None
        return [len(self._echo(prompt)) for prompt in self._prompts]

    def opening(self, usage: Usage) -> bytes:
        return b""

    def piece(self, piece: ChoiceText) -> bytes:
        is_whole = piece.finish_reason is not None or piece.prompt_logprobs is not None
        if self._is_plain and not is_whole:
            if not piece.text:
                return b""
            return self._before[piece.choice] + orjson.dumps(piece.text) + self._after
        body = {**self._head, "choices": [self._choice(piece)], **self._tail}
        return b"data: " + orjson.dumps(body) + b"\n\n"

    def ending(self, usage: Usage) -> bytes:
        return stream_ending(self._head, usage if wants_usage(self._body) else None)

    def failure(self, error: NonetError) -> bytes:
        return stream_failure(error)

    def whole(self, choices: Sequence[ChoiceText], generation: Generation) -> dict[str, Any]:
        return {
            **self._head,
            "choices": [self._choice(choice) for choice in choices],
            "usage": completion_usage(generation.usage),
        }

    def _choice(self, piece: ChoiceText) -> dict[str, Any]:
        """One entry of `choices`, from a piece of a stream or from all of it; the prompt comes with the first."""
        is_first = not self._is_begun[piece.choice]
        self._is_begun[piece.choice] = True
        prompt = self._prompts[piece.choice // self._n]
        text = piece.text
        if is_first and self._body.echo:
            text = self._echo(prompt) + text
        entry: dict[str, Any] = {
            "index": piece.choice,
            "text": text,
            "logprobs": self._logprob_object(piece, prompt, is_first),
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self._body.prompt_logprobs is not None and piece.prompt_logprobs is not None:
            entry["prompt_logprobs"] = prompt_logprobs(self._tokenizer, piece.prompt_logprobs)
        if self._body.return_token_ids:
            entry["token_ids"] = piece.token_ids
            if is_first:
                entry["prompt_token_ids"] = prompt.ids
        return entry

    def _logprob_object(
        self, piece: ChoiceText, prompt: _Prompt, is_first: bool
    ) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        logprobs = self._logprobs[piece.choice]
        number = piece.choice // self._n
        if piece.prompt_logprobs is not None:
            self._prompt_rows[number] = piece.prompt_logprobs
        if is_first and self._body.echo:
            rows = self._prompt_rows.get(number) or [None] * len(prompt.ids)
            logprobs.add_prompt(prompt.ids, rows)
        for row, offset in zip(piece.logprobs, piece.text_offsets, strict=True):
            logprobs.add(row.token_id, row, offset)
        return logprobs.take()

    def _echo(self, prompt: _Prompt) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._tokenizer.decode(prompt.ids, skip_special=False)
