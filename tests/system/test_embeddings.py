"""Embeddings over HTTP: the official client, the served model against Hugging Face, the encoder, the exact cache."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from tests.oracles import oracle
from tests.real_models import real_model
from tests.system.harness import RunningServer, real_options, start_server, wait_until

TEXTS = ["A man is eating food.", "Someone has a meal.", "The sky over Paris is grey today."]


@pytest.fixture(scope="module", params=["fake", pytest.param("smollm2", marks=pytest.mark.models)])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("embeddings")
    options = real_options("smollm2", max_model_len=1024) if request.param == "smollm2" else None
    running = start_server(folder, options=options)
    yield running
    assert running.stop() == 0


@pytest.fixture
def client(served: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def vectors(answer: Any) -> np.ndarray[Any, Any]:
    return np.array([row.embedding for row in answer.data], np.float32)


def test_both_encodings_and_lengths(client: openai.OpenAI, served: RunningServer) -> None:
    model = client.models.list().data[0].id
    answer = client.embeddings.create(model=model, input=TEXTS)  # the client asks for base64
    found = vectors(answer)
    assert [row.index for row in answer.data] == [0, 1, 2]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 10
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    as_float = vectors(client.embeddings.create(model=model, input=TEXTS, encoding_format="float"))
    np.testing.assert_allclose(found, as_float, atol=1e-5)
    alone = vectors(client.embeddings.create(model=model, input=TEXTS[1]))
    np.testing.assert_allclose(alone[0], found[1], atol=1e-3)
    short = vectors(client.embeddings.create(model=model, input=TEXTS, dimensions=8))
    assert short.shape == (3, 8)
    head = found[:, :8] / np.linalg.norm(found[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(short, head, atol=1e-4)
    wait_until(served.is_empty)


def test_raw_answer_is_base64_of_float32_when_asked_for(served: RunningServer) -> None:
    row = served.post("/v1/embeddings", {"input": "x", "encoding_format": "base64"}).json()["data"][
        0
    ]
    as_float = served.post("/v1/embeddings", {"input": "x"}).json()["data"][0]
    decoded = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    np.testing.assert_allclose(decoded, as_float["embedding"], atol=1e-6)


def test_token_ids_are_texts_too(client: openai.OpenAI, served: RunningServer) -> None:
    model = client.models.list().data[0].id
    ids = served.post("/tokenize", {"prompt": TEXTS[0]}).json()["tokens"]
    by_text = vectors(client.embeddings.create(model=model, input=TEXTS[0]))
    np.testing.assert_allclose(
        vectors(client.embeddings.create(model=model, input=ids)), by_text, atol=1e-5
    )
    both = vectors(client.embeddings.create(model=model, input=[ids, ids]))
    np.testing.assert_allclose(both, [by_text[0]] * 2, atol=1e-3)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"input": []}, "input"),
    "an empty list of ids": ({"input": [[]]}, "input"),
    "mixed": ({"input": ["a", 1]}, "input"),
    "an id out of range": ({"input": [10**9]}, "input"),
    "a negative id": ({"input": [-1]}, "input"),
    "format": ({"encoding_format": "int8"}, "encoding_format"),
    "no dimensions": ({"dimensions": 0}, "dimensions"),
    "too many dimensions": ({"dimensions": 100_000}, "dimensions"),
    "too many texts": ({"input": ["x"] * 2049}, "input"),
    "too long": ({"input": "word " * 9000}, "input"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_mistakes_are_explained(served: RunningServer, name: str) -> None:
    change, param = BAD[name]
    answer = served.post("/v1/embeddings", {"input": "x", **change})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_other_models_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="x")


@pytest.mark.models
@pytest.mark.parametrize("chunk", [512, 16])
def test_the_served_model_pools_what_the_reference_computes(tmp_path: Path, chunk: int) -> None:
    """Mean of the last hidden states; long texts come in chunks, and cached prefixes are not used."""
    from nonet.embed.base import normalised

    texts = [*TEXTS, " ".join(TEXTS * 8), TEXTS[0]]
    options = real_options(
        "smollm2", max_model_len=512, dtype="float32", max_tokens_per_step=chunk, max_num_seqs=4
    )
    server = start_server(tmp_path, options=options)
    try:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            model = client.models.list().data[0].id
            client.completions.create(model=model, prompt=texts[3], max_tokens=1)
            found = vectors(client.embeddings.create(model=model, input=texts))
        ids = [server.post("/tokenize", {"prompt": text}).json()["tokens"] for text in texts]
    finally:
        assert server.stop() == 0
    reference = oracle(real_model("smollm2")).model
    with torch.inference_mode():
        rows = [reference(torch.tensor([one])).last_hidden_state[0].mean(0).numpy() for one in ids]
    np.testing.assert_allclose(found, normalised(np.stack(rows)), atol=2e-4)


@pytest.mark.models
def test_the_encoder_beside_the_model(start_one: Callable[..., RunningServer]) -> None:
    from nonet.embed.bert import BertEmbedder

    path = str(real_model("minilm"))
    server = start_one(embedder=path)
    embedder = BertEmbedder.open(Path(path))
    expected = embedder.embed([embedder.encode(text) for text in TEXTS])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [card.id for card in client.models.list().data] == ["fake", path]
        assert client.models.retrieve(path).id == path
        answer = client.embeddings.create(model=path, input=TEXTS)
        np.testing.assert_allclose(vectors(answer), expected, atol=1e-5)
        assert answer.usage.prompt_tokens == sum(len(embedder.encode(text)) for text in TEXTS)
        many = client.embeddings.create(model=path, input=TEXTS * 20)
        np.testing.assert_allclose(vectors(many), np.tile(expected, (20, 1)), atol=1e-5)
        ids = embedder.encode(TEXTS[0])
        np.testing.assert_allclose(
            vectors(client.embeddings.create(model=path, input=ids))[0], expected[0], atol=1e-5
        )
        for wrong in ("word " * 600, [30522], [[]]):
            with pytest.raises(openai.BadRequestError):
                client.embeddings.create(model=path, input=wrong)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model=path, prompt="x")
        assert vectors(client.embeddings.create(model="fake", input="x")).shape == (1, 64)


def test_the_exact_cache_keeps_vectors(start_one: Callable[..., RunningServer]) -> None:
    server = start_one(gateway={"gateway": ["exact_cache"]})
    first, second = (server.post("/v1/embeddings", {"input": TEXTS}) for _ in range(2))
    assert [answer.headers["x-nonet-cache"] for answer in (first, second)] == ["miss", "exact"]
    assert first.json()["data"] == second.json()["data"]
    other = server.post("/v1/embeddings", {"input": TEXTS[0]})
    assert other.headers["x-nonet-cache"] == "miss"
