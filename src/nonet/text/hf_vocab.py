"""A `Vocabulary` from a Hugging Face model directory: tokenizer.json, and the small files that say how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import msgspec
import tokenizers
from tokenizers import processors

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.text.vocabulary import Spelling, Vocabulary

__all__ = ["vocabulary_from_directory"]

_MAX_JSON_BYTES = 256 * 1024 * 1024


def vocabulary_from_directory(directory: Path) -> Vocabulary:
    """The directory's vocabulary; needs tokenizer.json, everything else is optional."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModelError(
            f"{directory} has no tokenizer.json; other tokenizer files are not read. "
            "Save the tokenizer with `AutoTokenizer.from_pretrained(...).save_pretrained(...)` to make one"
        )
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ModelFileError(f"{path} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except (
        Exception
    ) as error:  # the library raises plain Exception for whatever is wrong with the file
        raise ModelFileError(f"{path}: {error}") from None
    backend.no_truncation()
    backend.no_padding()
    config = _Config(directory)
    special_tokens = config.special_tokens()
    ids = {name: backend.token_to_id(token) for name, token in special_tokens.items()}
    _frame(backend, config, special_tokens)
    spelling, strips = _spelling(backend, path)
    added = backend.get_added_tokens_decoder()
    eos = [i for i in (ids.get("eos_token"), *config.generation_eos_ids()) if i is not None]
    return Vocabulary(
        backend=backend,
        spelling=spelling,
        size=_num_ids(backend),
        special_ids=frozenset(token_id for token_id, token in added.items() if token.special),
        bos_id=ids.get("bos_token"),
        eos_ids=tuple(dict.fromkeys(eos)),
        strips_prefix_space=strips,
        chat_template=config.chat_template(),
        special_tokens=special_tokens,
    )


class _Config:
    """What tokenizer_config.json, special_tokens_map.json, generation_config.json and chat_template.jinja say."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tokenizer = _read_json(directory / "tokenizer_config.json")
        self._special = _read_json(directory / "special_tokens_map.json")
        self._generation = _read_json(directory / "generation_config.json")

    def special_tokens(self) -> dict[str, str]:
        """Name -> token, for bos_token, eos_token and the like."""
        found: dict[str, str] = {}
        for source in (self._special, self._tokenizer):
            for name, value in source.items():
                token = value.get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(token, str):
                    found[name] = token
        return found

    def adds(self, name: str) -> bool | None:
        """add_bos_token or add_eos_token where the file states it."""
        value = self._tokenizer.get(name)
        return value if isinstance(value, bool) else None

    def generation_eos_ids(self) -> list[int]:
        value = self._generation.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and i >= 0]

    def chat_template(self) -> str | None:
        """chat_template.jinja, or the template in tokenizer_config.json; of several named ones, "default"."""
        path = self._directory / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        value = self._tokenizer.get("chat_template")
        if isinstance(value, list):
            named = {
                entry.get("name"): entry.get("template")
                for entry in value
                if isinstance(entry, dict)
            }
            value = named.get("default", next(iter(named.values()), None))
        return value if isinstance(value, str) else None


def _read_json(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(f"{path}: {error}") from None


def _num_ids(backend: tokenizers.Tokenizer) -> int:
    """One more than the highest id; ids may have holes, so the number of tokens is not enough."""
    size = backend.get_vocab_size(with_added_tokens=True)
    return max(size, max(backend.get_added_tokens_decoder(), default=-1) + 1)


def _frame(
    backend: tokenizers.Tokenizer, config: _Config, special_tokens: Mapping[str, str]
) -> None:
    """Where tokenizer_config.json states add_bos_token or add_eos_token, that replaces tokenizer.json's own frame."""
    flags = {"bos_token": config.adds("add_bos_token"), "eos_token": config.adds("add_eos_token")}
    if all(flag is None for flag in flags.values()):
        return
    used = {
        name: special_tokens[name]
        for name, flag in flags.items()
        if flag and name in special_tokens
    }
    single = [used[name] for name in ("bos_token",) if name in used] + ["$A"]
    single += [used[name] for name in ("eos_token",) if name in used]
    ids = {token: backend.token_to_id(token) for token in used.values()}
    missing = [token for token, token_id in ids.items() if token_id is None]
    if missing:
        raise ModelFileError(
            f"tokenizer_config.json frames text with {missing[0]!r}, which tokenizer.json lacks"
        )
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, i) for token, i in ids.items() if i is not None]
    )


def _spelling(backend: tokenizers.Tokenizer, path: Path) -> tuple[Spelling, bool]:
    """How tokens stand for bytes, and whether decoding drops a leading space; read off the file's decoder."""
    steps = {str(step["type"]): step for step in _decoder_steps(backend)}
    if "ByteLevel" in steps:
        return Spelling.BYTE_LEVEL, False
    if "Metaspace" in steps:
        return Spelling.SENTENCEPIECE, steps["Metaspace"].get("prepend_scheme") != "never"
    if "Replace" in steps and steps["Replace"].get("pattern") == {"String": "▁"}:
        return Spelling.SENTENCEPIECE, "Strip" in steps
    raise UnsupportedModelError(
        f"{path} decodes by {', '.join(steps) or 'no rule'}; known: ByteLevel, Metaspace, and Replace of U+2581"
    )


def _decoder_steps(backend: tokenizers.Tokenizer) -> Iterator[dict[str, object]]:
    if backend.decoder is None:
        return
    # The library shows a decoder's settings only in the form that it saves them in.
    decoder = json.loads(cast("bytes", backend.decoder.__getstate__()))
    yield from decoder.get("decoders", [decoder])
