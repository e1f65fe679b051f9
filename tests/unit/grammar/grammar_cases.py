"""What the grammar tests share: a small vocabulary with tokens that cross JSON's joints, and masks as sets of ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from nonet.core.grammar import Grammar
from nonet.core.sampling_params import SamplingParams
from nonet.core.step import NewSequence
from nonet.grammar.base import Matcher, num_words
from nonet.grammar.llguidance import LLGuidance
from nonet.sampling.processors.grammar import GrammarMask
from nonet.sampling.sampler import Sampler
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.tokenizer import Tokenizer
from nonet.text.vocabulary import byte_level_alphabet

_MERGES = (
    '{ "',
    '" :',
    '": Ġ',
    '" ,',
    '", Ġ',
    '" }',
    "t r",
    "u e",
    "tr ue",
    "f a",
    "fa l",
    "1 2",
    "n o",
)
_NAMED = ("<|end|>", "<|im_end|>", "<tool_call>")
CPU = torch.device("cpu")


@lru_cache
def tokenizer() -> Tokenizer:
    """Bytes, the merges, two control tokens of which the first two end a sequence, and a named token."""
    alphabet = sorted(byte_level_alphabet(), key=byte_level_alphabet().__getitem__)
    merges = list(_MERGES)
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), *_NAMED]
    kinds = [1] * (len(tokens) - 3) + [3, 3, 4]
    first = len(tokens) - 3
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": first,
        "tokenizer.ggml.eot_token_id": first + 1,
    }
    return Tokenizer(vocabulary_from_gguf(metadata))  # type: ignore[arg-type]


VOCAB = tokenizer().vocab_size + 5  # the model's matrices are padded
EOS, EOT = tokenizer().eos_ids[:2]


def compiler(threads: int = 1) -> LLGuidance:
    return LLGuidance(tokenizer, VOCAB, tokenizer().eos_ids, threads)


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special=False)


def legal(made_by: LLGuidance, matcher: Matcher) -> set[int]:
    """Ids that may follow."""
    masks = np.zeros((2, num_words(VOCAB)), np.int32)
    made_by.fill([(matcher, 1)], masks)
    assert not masks[0].any()
    return set(np.nonzero(np.unpackbits(masks[1].view(np.uint8), bitorder="little"))[0].tolist())


def sequence(
    grammar: Grammar | None, outputs: Sequence[int] = (), seed: int = 5, **params: object
) -> NewSequence:
    return NewSequence(
        seq_id=1,
        token_ids=[1, *outputs],
        num_prompt=1,
        params=SamplingParams(grammar=grammar, **params),  # type: ignore[arg-type]
        seed=seed,
        eos_ids=tokenizer().eos_ids,
    )


def sampler_with(*sequences: NewSequence, compiler_: LLGuidance | None = None) -> Sampler:
    """A sampler with these in slots 0, 1, ..."""
    mask = GrammarMask(VOCAB, compiler_ or compiler())
    sampler = Sampler(VOCAB, max(8, len(sequences)), CPU, [mask])
    for slot, one in enumerate(sequences):
        sampler.add(slot, one)
    return sampler
