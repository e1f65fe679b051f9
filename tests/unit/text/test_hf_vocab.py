"""Vocabularies from Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_vocabularies import byte_level_metadata, write_directory

from nonet.core.errors import InvalidRequestError, ModelFileError, UnsupportedModelError
from nonet.text.gguf_vocab import vocabulary_from_gguf
from nonet.text.tokenizer import Tokenizer, load_tokenizer

BOS = {"bos_token": "<|end|>", "eos_token": {"content": "<|im_end|>", "special": True}}


def test_directory_and_gguf_agree(tmp_path: Path) -> None:
    ours = load_tokenizer(write_directory(tmp_path))
    other = Tokenizer(vocabulary_from_gguf(byte_level_metadata()))
    for text in ("hello wé<|end|> <tool>", "long text that the file's truncation would cut"):
        assert ours.encode(text) == other.encode(text)
        assert ours.encode(text, parse_special=False) == other.encode(text, parse_special=False)
    assert ours.special_ids == other.special_ids
    assert ours.vocab_size == other.vocab_size - 1, "the directory has no unused token"


def test_named_tokens_and_end_ids(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 262]}')
    tokenizer = load_tokenizer(write_directory(tmp_path, **BOS))
    end, turn = tokenizer.token_to_id("<|end|>"), tokenizer.token_to_id("<|im_end|>")
    assert tokenizer.bos_id == end == 262
    assert tokenizer.eos_ids == (turn, 7, 262)
    assert tokenizer.special_tokens == {"bos_token": "<|end|>", "eos_token": "<|im_end|>"}
    assert tokenizer.encode("a") == [97]


def test_stated_frame_replaces_the_one_in_the_file(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_directory(tmp_path, **BOS, add_bos_token=True))
    assert tokenizer.encode("a") == [262, 97]
    assert tokenizer.encode("a", add_special=False) == [97]
    with pytest.raises(ModelFileError, match="nowhere"):
        load_tokenizer(write_directory(tmp_path, bos_token="<nowhere>", add_bos_token=True))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("one", "one"),
        ([{"name": "tool_use", "template": "x"}, {"name": "default", "template": "one"}], "one"),
        ([{"name": "only", "template": "one"}], "one"),
        (None, None),
        (3, None),
    ],
)
def test_chat_template_of_the_config(tmp_path: Path, template, expected) -> None:
    assert (
        load_tokenizer(write_directory(tmp_path, chat_template=template)).chat_template == expected
    )


def test_chat_template_file_wins(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("from the file", "utf-8")
    assert (
        load_tokenizer(write_directory(tmp_path, chat_template="x")).chat_template
        == "from the file"
    )


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        load_tokenizer(tmp_path / "nothing.gguf")
    with pytest.raises(UnsupportedModelError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    write_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelFileError, match="tokenizer_config"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(ModelFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_unknown_decoder_is_refused(tmp_path: Path) -> None:
    path = write_directory(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    path.write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match="WordPiece"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("steps", "prefix"),
    [
        ([{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}], " x"),
        ([{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Strip", "content": " ",
          "start": 1, "stop": 0}], "x"),
        ([{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}], "x"),
    ],
)  # fmt: skip
def test_sentencepiece_decoders(tmp_path: Path, steps, prefix) -> None:
    path = write_directory(tmp_path) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["decoder"] = {"type": "Sequence", "decoders": steps}
    content["model"]["vocab"] = {"▁x": 0, "<0xE2>": 1}
    content["model"]["merges"], content["added_tokens"] = [], []
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode([0]) == prefix
    assert tokenizer.token_bytes(1) == b"\xe2"


def test_half_a_surrogate_pair_is_a_user_error(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_directory(tmp_path))
    with pytest.raises(InvalidRequestError, match="surrogate"):
        tokenizer.encode("a\ud800b")
