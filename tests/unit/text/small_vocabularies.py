"""GGUF metadata of two tiny tokenizers that hold one of everything; the first also as a directory."""

from __future__ import annotations

import json
from pathlib import Path

from nonet.core.gguf import MetadataValue
from nonet.text.vocabulary import byte_level_alphabet

__all__ = ["byte_level_metadata", "sentencepiece_metadata", "write_directory"]

_MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ã ©"]


def byte_level_metadata(**changes: MetadataValue) -> dict[str, MetadataValue]:
    """Ids 0 to 255 are the bytes; then merges, a control token, a user-defined one and an unused one."""
    alphabet = sorted(byte_level_alphabet(), key=byte_level_alphabet().__getitem__)
    merged = [merge.replace(" ", "") for merge in _MERGES]
    named = ["<|end|>", "<|im_end|>", "<tool>", "[PAD0]"]
    tokens: list[MetadataValue] = [*alphabet, *merged, *named]
    kinds: list[MetadataValue] = [1] * (len(tokens) - 4) + [3, 3, 4, 5]
    metadata: dict[str, MetadataValue] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": list(_MERGES),
        "tokenizer.ggml.bos_token_id": len(tokens) - 4,
        "tokenizer.ggml.eos_token_id": len(tokens) - 4,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    return metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def sentencepiece_metadata(**changes: MetadataValue) -> dict[str, MetadataValue]:
    """<unk>, <s>, </s>, the 256 bytes, two spaces as a user-defined token, then pieces with falling scores."""
    pieces = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "<0x41", ">"]
    tokens: list[MetadataValue] = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "  ",
        *pieces,
    ]
    kinds: list[MetadataValue] = [2, 3, 3, *[6] * 256, 4, *[1] * len(pieces)]
    scores: list[MetadataValue] = [0.0] * 260 + [-float(index) for index in range(len(pieces))]
    metadata: dict[str, MetadataValue] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def write_directory(directory: Path, **config: object) -> Path:
    """The byte-level vocabulary as Hugging Face files; `config` goes to tokenizer_config.json."""
    metadata = byte_level_metadata()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    first_added = len(tokens) - 4
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": first_added + i, "content": content, "special": i < 2, **flags}
        for i, content in enumerate(tokens[first_added : first_added + 3])
    ]
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "vocab": {token: i for i, token in enumerate(tokens[:first_added])}, "merges": _MERGES,
    }  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": None, "decoder": byte_level, "model": model,
    }  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return directory
