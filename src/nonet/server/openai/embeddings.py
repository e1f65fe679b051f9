"""POST /v1/embeddings: vectors of texts, from the served model's hidden states or from the encoder beside it."""

from __future__ import annotations

import base64
import time
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from nonet.core.errors import ContextLengthError, InvalidRequestError
from nonet.core.sampling_params import SamplingParams
from nonet.embed.base import normalised
from nonet.server.call import Call
from nonet.server.delivery import send_whole
from nonet.server.encoder import ServedEncoder
from nonet.server.generation import ChoiceText, Generation
from nonet.server.limits import check_length, check_token_ids
from nonet.server.openai.sampling import check_common, terms_of
from nonet.server.openai.schemas import EmbeddingRequest
from nonet.server.prompts import check_fits, check_text, encode_text, off_loop
from nonet.server.requests import engine_requests

__all__ = ["embeddings"]

FORMATS = ("float", "base64")


@dataclass(frozen=True, slots=True)
class _Source:
    """Who embeds: the encoder, or the model when there is none."""

    name: str
    num_dimensions: int
    encoder: ServedEncoder | None = None


async def embeddings(call: Call) -> None:
    """One vector of length 1 for each input."""
    received_s = time.monotonic()
    body = await call.json(EmbeddingRequest)
    source = _source(call, body)
    check_common(body)
    dimensions = _check(body, source)
    prompts = [await _encode(call, source, given) for given in _inputs(body.input)]
    name = f"embd-{uuid.uuid4().hex}"
    params = SamplingParams(max_tokens=1, temperature=0.0)
    requests = [
        msgspec.structs.replace(request, pools=True)
        for request in engine_requests(call, name, prompts, params, terms_of(body))
    ]
    generation = Generation(
        call, requests, received_s, encoder=source.name if source.encoder is not None else ""
    )

    def whole(choices: list[ChoiceText]) -> dict[str, Any]:
        return {
            "object": "list",
            "data": [
                {
                    "object": "embedding",
                    "index": choice.choice,
                    "embedding": _told(choice, dimensions, body.encoding_format),
                }
                for choice in choices
            ],
            "model": source.name,
            "usage": {
                "prompt_tokens": generation.usage.prompt_tokens,
                "total_tokens": generation.usage.prompt_tokens,
            },
        }

    await send_whole(call, generation, whole)


def _source(call: Call, body: EmbeddingRequest) -> _Source:
    encoder = call.state.encoder
    if encoder is not None and body.model == encoder.name:
        return _Source(encoder.name, encoder.embedder.dimensions, encoder)
    model = call.choose_model(body.model)
    return _Source(model.name, model.hidden_size)


def _check(body: EmbeddingRequest, source: _Source) -> int:
    """What is refused before any work is done; how many dimensions are wanted."""
    if body.encoding_format not in (None, *FORMATS):
        raise InvalidRequestError(
            f"encoding_format is {body.encoding_format[:50]!r}; allowed: {', '.join(FORMATS)}",
            "encoding_format",
        )
    wanted = source.num_dimensions if body.dimensions is None else body.dimensions
    if not 1 <= wanted <= source.num_dimensions:
        raise InvalidRequestError(
            f"dimensions is {wanted}; {source.name!r} has vectors of {source.num_dimensions}, of which the first may "
            "be asked for",
            "dimensions",
        )
    return wanted


def _inputs(given: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One entry per text. A list of numbers is one text as token ids."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [[item for item in given if isinstance(item, int)]]
    check_length("embedding_inputs", len(given), "input")
    texts = [item for item in given if not isinstance(item, int)]
    if not texts or len(texts) < len(given):
        raise InvalidRequestError(
            "input is empty or mixes numbers with texts; give a text, token ids, or a list of either",
            "input",
        )
    return texts


async def _encode(call: Call, source: _Source, given: str | list[int]) -> list[int]:
    if source.encoder is None:
        if isinstance(given, str):
            ids = await encode_text(call.state, given, "input")
        else:
            check_token_ids(given, call.model.vocab_size, "input")
            ids = given
        check_fits(call.model, ids, 1, "input")
        return ids
    embedder = source.encoder.embedder
    if isinstance(given, str):
        check_text(given, "input")
        text = given
        ids = await off_loop(call.state, len(text), lambda: embedder.encode(text))
    else:
        check_token_ids(given, embedder.vocab_size, "input")
        ids = given
    if not ids or len(ids) > embedder.max_tokens:
        raise ContextLengthError(
            f"a text has {len(ids)} tokens; {source.name!r} takes 1 to {embedder.max_tokens}",
            "input",
        )
    return ids


def _told(choice: ChoiceText, dimensions: int, form: str | None) -> str | list[float]:
    """The first dimensions at length 1, as numbers or as the bytes of float32."""
    assert choice.embedding is not None
    vector = np.frombuffer(choice.embedding, "<f4")[:dimensions]
    scaled = normalised(vector)
    if form == "base64":
        return base64.b64encode(scaled.astype("<f4").tobytes()).decode()
    numbers: list[float] = scaled.tolist()
    return numbers
