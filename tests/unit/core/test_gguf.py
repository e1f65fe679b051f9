"""The GGUF container: what it reads, and that no file, however wrong, ends in anything but ModelFileError."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest

from nonet.core.errors import ModelFileError
from nonet.core.gguf import BLOCK_LAYOUTS, GGUFFile

UINT8, INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 5, 4, 6, 7, 8, 9, 10
F32, Q4_0 = 0, 2


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + elements


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return (
        text(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def container(
    entries: list[bytes] = (),  # type: ignore[assignment]
    tensors: list[bytes] = (),  # type: ignore[assignment]
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    num_tensors, num_entries = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries)
    head += b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + data


SOUND = container(
    [
        entry("general.architecture", STRING, text("llama")),
        entry("a.count", UINT32, struct.pack("<I", 7)),
        entry("a.eps", FLOAT32, struct.pack("<f", 0.5)),
        entry("a.flag", BOOL, b"\1"),
        entry("a.words", ARRAY, array(STRING, 3, text("x") + text("") + text("né"))),
        entry("a.numbers", ARRAY, array(INT32, 3, struct.pack("<3i", -1, 0, 2))),
        entry(
            "a.nested",
            ARRAY,
            array(ARRAY, 2, array(UINT8, 2, b"\1\2") + array(STRING, 1, text("y"))),
        ),
    ],
    [tensor("w", (32, 2), Q4_0, 0), tensor("b", (3,), F32, 64)],
    bytes(range(64)) + struct.pack("<3f", 1, 2, 3),
)


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


def opens(path: Path) -> bool:
    """Whether the file is accepted; every byte of every tensor is touched."""
    try:
        with GGUFFile.open(path) as file:
            for name, info in file.tensors.items():
                assert len(bytes(file.raw(name))) == info.num_bytes
    except ModelFileError:
        return False
    return True


def test_reads_metadata_and_tensors(write):
    with GGUFFile.open(write(SOUND)) as file:
        assert file.metadata == {
            "general.architecture": "llama",
            "a.count": 7,
            "a.eps": 0.5,
            "a.flag": True,
            "a.words": ["x", "", "né"],
            "a.numbers": [-1, 0, 2],
            "a.nested": [[1, 2], ["y"]],
        }
        assert file.metadata["a.flag"] is True
        w, b = file.tensors["w"], file.tensors["b"]
        assert (w.shape, w.kind, w.num_bytes) == ((2, 32), "Q4_0", 36)
        assert (b.shape, b.kind, b.num_bytes) == ((3,), "F32", 12)
        assert w.offset % 32 == 0
        assert bytes(file.raw("w")) == bytes(range(36))
        assert struct.unpack("<3f", file.raw("b")) == (1.0, 2.0, 3.0)


def test_views_outlive_the_file(write):
    file = GGUFFile.open(write(SOUND))
    view = file.raw("b")
    file.close()
    assert struct.unpack("<3f", view) == (1.0, 2.0, 3.0)
    assert view.readonly


def test_version_2_and_other_alignment(write):
    wide = entry("general.alignment", UINT32, struct.pack("<I", 256))
    content = container([wide], [tensor("b", (1,), F32, 0)], b"\1\2\3\4", version=2, alignment=256)
    with GGUFFile.open(write(content)) as file:
        assert file.tensors["b"].offset == 256
        assert bytes(file.raw("b")) == b"\1\2\3\4"


def test_block_layouts_match_the_gguf_package():
    gguf = pytest.importorskip("gguf")
    theirs = {kind.name: tuple(sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: theirs[kind] for kind in BLOCK_LAYOUTS} == BLOCK_LAYOUTS


def test_a_large_vocabulary_is_quick(write):
    words = b"".join(text(f"word{i}") for i in range(262_144))
    path = write(container([entry("tokens", ARRAY, array(STRING, 262_144, words))]))
    start = time.process_time()
    with GGUFFile.open(path) as file:
        assert file.metadata["tokens"][-1] == "word262143"
    assert time.process_time() - start < 1.0


HUGE = 2**64 - 1
WRONG = {
    "empty": (b"", "empty"),
    "other magic": (b"GGML" + SOUND[4:], "not a GGUF file"),
    "version 1": (container(version=1), "version 1 is not known"),
    "big-endian": (container(version=3 << 24), "big-endian"),
    "tensor count": (container(counts=(HUGE, 0)), "cannot fit"),
    "entry count": (container(counts=(0, HUGE)), "cannot fit"),
    "entry count wraps": (container(counts=(0, 2**64 // 13 + 1)), "cannot fit"),
    "key length": (
        container(counts=(0, 1), data=b"\0" * 64)[:24] + struct.pack("<Q", HUGE) + b"\0" * 64,
        "long",
    ),
    "key not utf-8": (container([entry(b"\xff\xfe", UINT8, b"\0")]), "not UTF-8"),
    "value not utf-8": (container([entry("k", STRING, text(b"\xff"))]), "not UTF-8"),
    "element not utf-8": (
        container([entry("k", ARRAY, array(STRING, 1, text(b"\xff")))]),
        "not UTF-8",
    ),
    "key twice": (container([entry("k", UINT8, b"\0")] * 2), "occurs twice"),
    "value type": (container([entry("k", 99, b"\0" * 8)]), "unknown type 99"),
    "element type": (
        container([entry("k", ARRAY, array(99, 1, b"\0" * 8))]),
        "unknown type 99",
    ),
    "string past the end": (
        container([entry("k", STRING, struct.pack("<Q", 2**40))]),
        "long|truncated",
    ),
    "array count": (container([entry("k", ARRAY, array(UINT8, HUGE, b""))]), "cannot fit"),
    "array count wraps": (
        container([entry("k", ARRAY, array(UINT64, 2**61 + 1, b"\0" * 8))]),
        "cannot fit",
    ),
    "string element past the end": (
        container([entry("k", ARRAY, array(STRING, 2, text("a") + struct.pack("<Q", HUGE)))]),
        "truncated",
    ),
    "nested too deep": (
        container([entry("k", ARRAY, b"".join(array(ARRAY, 1, b"") for _ in range(500)))]),
        "nests arrays",
    ),
    "alignment 0": (
        container([entry("general.alignment", UINT32, struct.pack("<I", 0))]),
        "power of two",
    ),
    "alignment 24": (
        container([entry("general.alignment", UINT32, struct.pack("<I", 24))]),
        "power of two",
    ),
    "alignment is a string": (
        container([entry("general.alignment", STRING, text("32"))]),
        "power of two",
    ),
    "tensor twice": (
        container(tensors=[tensor("w", (1,), F32, 0), tensor("w", (1,), F32, 32)], data=bytes(64)),
        "occurs twice",
    ),
    "tensor kind": (container(tensors=[tensor("w", (1,), 99, 0)], data=bytes(64)), "kind 99"),
    "no dimensions": (container(tensors=[tensor("w", (), F32, 0)], data=bytes(64)), "0 dimensions"),
    "many dimensions": (
        container(tensors=[tensor("w", (1,) * 5, F32, 0)], data=bytes(64)),
        "5 dimensions",
    ),
    "dimension of 0": (
        container(tensors=[tensor("w", (1, 0), F32, 0)], data=bytes(64)),
        "dimension of 0",
    ),
    "product wraps to 0": (
        container(tensors=[tensor("w", (2**32, 2**32), F32, 0)], data=bytes(64)),
        "truncated",
    ),
    "product wraps to 4": (
        container(tensors=[tensor("w", (2**62 + 1, 4), F32, 0)], data=bytes(64)),
        "truncated",
    ),
    "row of half a block": (
        container(tensors=[tensor("w", (16, 2), Q4_0, 0)], data=bytes(64)),
        "multiple of 32",
    ),
    "offset past the end": (
        container(tensors=[tensor("w", (1,), F32, 96)], data=bytes(64)),
        "truncated",
    ),
    "offset wraps": (
        container(tensors=[tensor("w", (1,), F32, 2**64 - 32)], data=bytes(64)),
        "truncated",
    ),
    "offset not aligned": (
        container(tensors=[tensor("w", (1,), F32, 4)], data=bytes(64)),
        "multiple of 32",
    ),
    "overlap": (
        container(tensors=[tensor("v", (16,), F32, 0), tensor("w", (1,), F32, 32)], data=bytes(64)),
        "overlap",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused_with_a_sentence(write, case):
    content, sentence = WRONG[case]
    path = write(content)
    with pytest.raises(ModelFileError, match=sentence) as raised:
        GGUFFile.open(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_missing_file_and_directory_are_refused(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelFileError, match="cannot be read"):
            GGUFFile.open(path)


def test_a_sparse_file_cannot_exhaust_memory(tmp_path):
    """Counts that a file of a terabyte could hold, were it not for the limits on the header."""
    path = tmp_path / "sparse.gguf"
    hostile = container([entry("k", ARRAY, array(STRING, 2**30, b""))])
    with path.open("wb") as file:
        file.write(hostile)
        file.truncate(1 << 40)
    with pytest.raises(ModelFileError, match="cannot fit"):
        GGUFFile.open(path)


def test_every_truncation_is_refused(write):
    end_of_data = len(SOUND)
    for length in range(end_of_data):
        assert not opens(write(SOUND[:length])), length
    assert opens(write(SOUND))


def test_bit_flips_are_refused_or_harmless(write):
    random_bits = random.Random(0)
    header = len(SOUND) - 76
    refused = 0
    for _ in range(3000):
        content = bytearray(SOUND)
        for _ in range(random_bits.choice((1, 1, 2, 8))):
            content[random_bits.randrange(header)] ^= 1 << random_bits.randrange(8)
        refused += not opens(write(bytes(content)))
    assert 500 < refused < 3000


def test_every_length_and_count_replaced_by_extremes(write):
    """Each aligned-or-not 8-byte window of the header overwritten by the numbers that overflow elsewhere."""
    extremes = [0, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, HUGE, HUGE - 31]
    for position in range(4, len(SOUND) - 84):
        for number in extremes:
            content = bytearray(SOUND)
            content[position : position + 8] = struct.pack("<Q", number)
            opens(write(bytes(content)))
    assert opens(write(SOUND))
