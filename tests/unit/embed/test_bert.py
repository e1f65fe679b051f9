"""The text encoder against Hugging Face's, on made-up weights and on the packaged model; files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file
from tests.real_models import real_model

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.embed.base import normalised
from nonet.embed.bert import BertEmbedder, _gelu

TEXTS = (
    "A man is eating food.", "", "naïve café 🙂 — déjà vu", "UPPER lower 12,345.67", "word " * 90,
    "The cat sits on the mat, and the weather is nice today.",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder with random weights, written by Hugging Face."""
    path = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=40, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(path)
    words = {
        word: number
        for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##c"])
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def reference(path: Path, texts: list[list[int]]) -> np.ndarray[Any, Any]:
    model = transformers.AutoModel.from_pretrained(path).eval()
    rows = []
    with torch.inference_mode():
        for ids in texts:
            rows.append(model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy())
    return normalised(np.stack(rows))


def test_made_up_weights_equal_the_reference(folder: Path) -> None:
    embedder = BertEmbedder.open(folder)
    random = np.random.default_rng(1)
    texts = [random.integers(0, 64, size).tolist() for size in (1, 2, 7, 40, 7, 13)]
    found = embedder.embed(texts)
    assert found.shape == (6, embedder.dimensions)
    np.testing.assert_allclose(found, reference(folder, texts), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_text_is_the_same_whatever_is_beside_it(folder: Path) -> None:
    embedder = BertEmbedder.open(folder)
    texts = [[5] * size for size in range(1, 40)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    assert embedder.embed([]).shape == (0, 32)


def test_texts_are_neither_cut_nor_padded(folder: Path) -> None:
    embedder = BertEmbedder.open(folder)
    assert embedder.encode("a bc a b a") == [2, 4, 5, 6, 4, 5, 4, 3]
    assert embedder.encode("") == [2, 3]
    assert (embedder.max_tokens, embedder.vocab_size) == (40, 64)


@pytest.mark.models
def test_the_packaged_model_equals_the_reference() -> None:
    path = real_model("minilm")
    embedder = BertEmbedder.open(path)
    texts = [embedder.encode(text) for text in TEXTS]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert texts == [tokenizer(text, truncation=False)["input_ids"] for text in TEXTS]
    found = embedder.embed(texts)
    np.testing.assert_allclose(found, reference(path, texts), atol=2e-6)
    likeness = found @ embedder.embed([embedder.encode("A man eats something.")])[0]
    assert likeness.argmax() == 0


def test_gelu() -> None:
    x = np.linspace(-9, 9, 20001, dtype=np.float32)
    expected = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(_gelu(x), expected, atol=1.5e-6)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "llama"}, UnsupportedModelError),
        ({"hidden_act": "relu"}, UnsupportedModelError),
        ({"position_embedding_type": "relative_key"}, UnsupportedModelError),
        ({"num_attention_heads": 5}, ModelFileError),
        ({"num_attention_heads": 0}, ModelFileError),
        ({"hidden_size": None}, ModelFileError),
        ({"intermediate_size": 47}, ModelFileError),
        ({"num_hidden_layers": 4}, ModelFileError),
    ],
)
def test_configurations_that_are_wrong(
    folder: Path, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(error):
        BertEmbedder.open(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage"])
def test_files_that_are_damaged(folder: Path, tmp_path: Path, name: str, damage: str) -> None:
    for file in folder.iterdir():
        data = file.read_bytes()
        if file.name == name and damage != "missing":
            data = data[: len(data) // 2] if damage == "cut" else b"\xff" * 64
        if file.name != name or damage != "missing":
            (tmp_path / file.name).write_bytes(data)
    with pytest.raises(ModelFileError):
        BertEmbedder.open(tmp_path)


def test_a_tensor_of_another_shape(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(
        {"embeddings.word_embeddings.weight": np.zeros((64, 32), np.float32)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(ModelFileError, match="no tensor"):
        BertEmbedder.open(tmp_path)
