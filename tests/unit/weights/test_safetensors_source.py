"""Safetensors directories: what is read, which lies are caught, and random weights of any spec."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nonet.core.errors import ModelFileError, UnsupportedModelError
from nonet.weights.open import open_weights
from nonet.weights.safetensors_source import SafetensorsSource

TENSORS = {
    "model.norm.weight": torch.arange(8, dtype=torch.float32),
    "model.embed_tokens.weight": torch.randn(16, 8).bfloat16(),
    "lm_head.weight": torch.randn(16, 8).half(),
}


def shards(directory: Path) -> dict[str, str]:
    """Two shards and their index; returns the weight map."""
    names = sorted(TENSORS)
    files = {name: f"model-0000{1 + (i > 0)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: TENSORS[n] for n in names if files[n] == file}, directory / file)
    write_index(directory, files)
    return files


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def assert_all_read(source: SafetensorsSource) -> None:
    assert sorted(source.names()) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert source.shape(name) == tuple(tensor.shape)
        loaded = source.load(name)
        assert loaded.dtype == tensor.dtype
        assert loaded.equal(tensor)
        assert source.load_codes(name) is None
    source.close()


def test_a_single_file_and_shards_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_all_read(SafetensorsSource(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    shards(tmp_path)
    source = open_weights(tmp_path)
    assert isinstance(source, SafetensorsSource)
    assert_all_read(source)


def test_the_language_model_of_a_multimodal_checkpoint_has_plain_names(tmp_path):
    names = ("language_model.model.norm.weight", "model.language_model.embed_tokens.weight")
    tensors = {name: torch.ones(2) for name in (*names, "language_model.lm_head.weight", "vision")}
    save_file(tensors, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    assert set(source.names()) == {
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "vision",
    }
    assert source.load("lm_head.weight").equal(torch.ones(2))


def test_other_dtypes_are_named_when_asked_for(tmp_path):
    save_file({"x": torch.ones(2, dtype=torch.int64)}, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'x' has dtype I64"):
        source.load("x")


def test_an_empty_directory_and_other_formats_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"no model\.safetensors"):
        SafetensorsSource(tmp_path)


def test_missing_and_extra_shards_are_refused(tmp_path):
    weight_map = shards(tmp_path)
    first = tmp_path / "model-00001-of-00002.safetensors"
    extra = tmp_path / "model-00003-of-00003.safetensors"
    extra.write_bytes(first.read_bytes())
    with pytest.raises(ModelFileError, match="does not name: model-00003"):
        SafetensorsSource(tmp_path)
    extra.unlink()
    first.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match=r"missing shards.*model-00001"):
        SafetensorsSource(tmp_path)
    (tmp_path / "elsewhere").rename(first)
    write_index(tmp_path, weight_map | {"more.weight": first.name})
    with pytest.raises(ModelFileError, match=r"lacks more\.weight"):
        SafetensorsSource(tmp_path)
    write_index(tmp_path, {n: f for n, f in weight_map.items() if n != "model.norm.weight"})
    with pytest.raises(ModelFileError, match=r"holds model\.norm\.weight"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "..", "", 7, None, "\0"],
)
def test_names_that_leave_the_directory_are_refused(tmp_path, file):
    (tmp_path.parent / "x.safetensors").write_bytes(b"")
    write_index(tmp_path, {"model.norm.weight": file})
    with pytest.raises(ModelFileError, match="of the same directory"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize(
    "index", ["[]", "{}", "{", '{"weight_map": []}', '{"weight_map": {"a": 1, "a": 2}}']
)
def test_a_broken_index_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelFileError, match="index"):
        SafetensorsSource(tmp_path)


def raw_file(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "empty": b"",
    "short": b"\x10\0\0",
    "length past the end": raw_file({"a": entry()}, length=10**6),
    "length wraps": raw_file({"a": entry()}, length=2**64 - 1),
    "length 0": struct.pack("<Q", 0),
    "not json": raw_file("{"),
    "list": raw_file("[]"),
    "deep": raw_file("[" * 100_000),
    "not utf-8": struct.pack("<Q", 2) + b"\xff\xfe",
    "tensor twice": raw_file('{"a": 1, "a": 2}'),
    "no dtype": raw_file({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "tensor is a number": raw_file({"a": 7}),
    "dtype": raw_file({"a": entry(dtype="X9")}),
    "dtype is a list": raw_file({"a": entry(dtype=["F32"])}),
    "negative dimension": raw_file({"a": entry(shape=[-4])}),
    "negative pair": raw_file({"a": entry(shape=[-2, -2])}),
    "dimension is a string": raw_file({"a": entry(shape=["4"])}),
    "dimension is true": raw_file({"a": entry(shape=[True, 4])}),
    "product wraps": raw_file({"a": entry(shape=[2**32, 2**32, 4])}),
    "shape too small": raw_file({"a": entry(shape=[3])}),
    "offset past the end": raw_file({"a": entry(shape=[8], offsets=[0, 32])}),
    "offset negative": raw_file({"a": entry(offsets=[-16, 0])}),
    "offset reversed": raw_file({"a": entry(offsets=[16, 0])}),
    "offset wraps": raw_file({"a": entry(offsets=[2**64 - 16, 2**64])}),
    "offset is a float": raw_file({"a": entry(offsets=[0.0, 16.0])}),
    "one offset": raw_file({"a": entry(offsets=[16])}),
    "overlap": raw_file({"a": entry(), "b": entry(shape=[2], offsets=[8, 16])}),
    "same place": raw_file({"a": entry(), "b": entry()}),
    "hole": raw_file({"a": entry(shape=[1], offsets=[0, 4]), "b": entry("F32", [1], [12, 16])}),
    "data left over": raw_file({"a": entry()}, bytes(20)),
    "data missing": raw_file({"a": entry()}, bytes(12)),
}


@pytest.mark.parametrize("case", LIES)
def test_header_lies_are_refused(tmp_path, case):
    (tmp_path / "model.safetensors").write_bytes(LIES[case])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        SafetensorsSource(tmp_path)


def test_truncations_and_bit_flips_are_refused_or_harmless(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2).half()}, path)
    sound = path.read_bytes()
    header_bytes = 8 + int.from_bytes(sound[:8], "little")
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        with pytest.raises(ModelFileError):
            SafetensorsSource(tmp_path)
    bits = random.Random(0)
    refused = 0
    for _ in range(1500):
        content = bytearray(sound)
        for _ in range(bits.choice((1, 1, 3))):
            content[bits.randrange(header_bytes)] ^= 1 << bits.randrange(8)
        path.write_bytes(content)
        try:
            source = SafetensorsSource(tmp_path)
            for name in source.names():
                assert source.load(name).shape == source.shape(name)
        except (ModelFileError, UnsupportedModelError):
            refused += 1
    assert 300 < refused < 1500
