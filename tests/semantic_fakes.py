"""A text encoder without a model, a model that answers from a table, and chats for both."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from nonet.core.errors import NonetError
from nonet.core.request import Request
from nonet.core.sampling_params import SamplingParams
from nonet.embed.base import Vectors, normalised
from nonet.gateway.answer import Ask, Caller, ChoiceText, Conversation, Outcome, Reply, Usage

DIMENSIONS = 128


class WordEmbedder:
    """A text is the sum of its words, each a direction of its own: texts are as alike as the words they share."""

    dimensions = DIMENSIONS
    max_tokens = 32
    vocab_size = 1 << 16

    def encode(self, text: str) -> list[int]:
        words = re.findall(r"\w+", text.lower())
        return [
            int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "little") for word in words
        ]

    def embed(self, token_ids: Sequence[Sequence[int]]) -> Vectors:
        return normalised(np.array([sum(map(_direction, ids)) for ids in token_ids], np.float32))


@cache
def _direction(token_id: int) -> Vectors:
    return np.random.default_rng(token_id).standard_normal(DIMENSIONS).astype(np.float32)


@dataclass
class TableModel:
    """Answers each question by the table, else by words that name it; each word is a step."""

    answers: dict[str, str] = field(default_factory=dict)
    num_asked: int = 0
    fails: bool = False

    async def __call__(self, ask: Ask) -> Reply:
        self.num_asked += 1
        if self.fails:
            raise NonetError("told to fail")
        assert ask.conversation is not None
        question = str(ask.conversation.messages[-1]["content"])
        answer = self.answers.get(question, f"This is about {question} and nothing else.")
        usage = Usage(prompt_tokens=ask.num_prompt_tokens)
        return Reply(_steps(answer.split(), usage), usage, Outcome(), pending_bytes=lambda: 0)


async def _steps(words: list[str], usage: Usage) -> AsyncGenerator[list[ChoiceText], None]:
    for number, word in enumerate(words):
        await asyncio.sleep(0)
        usage.completion_tokens += 1
        is_last = number == len(words) - 1
        yield [ChoiceText(0, f"{word} ", [number], finish_reason="stop" if is_last else None)]


def chat(
    text: str = "How do I reset my password?",
    *,
    name: str = "a",
    tenant: str = "",
    system: str = "",
    history: Sequence[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
    adapter: str = "",
    caller: Caller | None = None,
    is_streamed: bool = True,
    **params: Any,
) -> Ask:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 64, **params})
    request = Request(
        request_id=f"{name}-0",
        prompt_ids=list(text.encode()),
        params=sampling,
        adapter_id=adapter,
        cache_salt=tenant,
    )
    messages = [{"role": "system", "content": system}] if system else []
    messages += [*history, {"role": "user", "content": text}]
    return Ask(
        requests=(request,),
        caller=caller or Caller(tenant=tenant),
        conversation=Conversation(messages=messages, settings=settings or {}),
        is_streamed=is_streamed,
        route="/v1/test",
    )


def write_encoder(folder: Path) -> Path:
    """A BERT of random weights that reads letters; equal texts are alike, and others more or less."""
    hidden, inner, heads, layers = 16, 24, 2, 1
    letters = [chr(number) for number in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{one}" for one in letters)]
    config = {
        "model_type": "bert", "hidden_act": "gelu", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": inner, "max_position_embeddings": 128,
        "layer_norm_eps": 1e-12,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(words), hidden),
        "embeddings.position_embeddings.weight": (128, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm": (hidden,),
    }
    for name, size in (
        ("attention.self.query", (hidden, hidden)),
        ("attention.self.key", (hidden, hidden)),
        ("attention.self.value", (hidden, hidden)),
        ("attention.output.dense", (hidden, hidden)),
        ("attention.output.LayerNorm", (hidden,)),
        ("intermediate.dense", (inner, hidden)),
        ("output.dense", (hidden, inner)),
        ("output.LayerNorm", (hidden,)),
    ):
        shapes[f"encoder.layer.0.{name}"] = size
    rng = np.random.default_rng(5)
    tensors: dict[str, Vectors] = {}
    for name, size in shapes.items():
        if name.endswith("weight"):
            tensors[name] = rng.standard_normal(size).astype(np.float32)
        else:
            tensors[f"{name}.weight"] = (
                np.ones(size, np.float32)
                if len(size) == 1
                else rng.standard_normal(size).astype(np.float32) / 4
            )
            tensors[f"{name}.bias"] = np.zeros(size[0], np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
