"""The GGUF container: typed metadata and the places of tensors in one file, read with nothing but the standard library.

The file is trusted in nothing. A count, length, offset or dimension is compared with what the file holds before it is
used, so a truncated, corrupt or hostile file ends in ModelFileError. What the bytes of a tensor mean is not known here
(`nonet.weights.gguf_blocks`). The file must not shrink while it is open: it is mapped, not copied.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType

from nonet.core.errors import ModelFileError

__all__ = ["BLOCK_LAYOUTS", "GGUFFile", "MetadataValue", "TensorInfo"]

MetadataValue = bool | int | float | str | list["MetadataValue"]

# kind -> (elements in a block, bytes of a block); a row is a whole number of blocks.
BLOCK_LAYOUTS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ3_XXS": (256, 98),
    "IQ1_S": (256, 50),
    "IQ4_NL": (32, 18),
    "IQ3_S": (256, 110),
    "IQ2_S": (256, 82),
    "IQ4_XS": (256, 136),
    "I8": (1, 1),
    "I16": (1, 2),
    "I32": (1, 4),
    "I64": (1, 8),
    "F64": (1, 8),
    "IQ1_M": (256, 56),
    "BF16": (1, 2),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    "Q1_0": (128, 18),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` is row-major, outermost dimension first; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    num_bytes: int


class GGUFFile:
    """An open GGUF file, version 2 or 3, little-endian.

    >>> with GGUFFile.open(path) as file:  # doctest: +SKIP
    ...     file.metadata["general.architecture"], file.tensors["token_embd.weight"].shape
    ('llama', (49152, 576))
    """

    def __init__(
        self, data: memoryview, metadata: dict[str, MetadataValue], tensors: dict[str, TensorInfo]
    ) -> None:
        self.metadata = metadata
        self.tensors = tensors
        self._data = data

    @classmethod
    def open(cls, path: Path | str) -> GGUFFile:
        """Map the file and read everything but the tensors' bytes; ModelFileError when anything is wrong."""
        data = _map(Path(path))
        try:
            metadata, tensors = _parse(data)
        except _MalformedError as error:
            data.release()
            raise ModelFileError(f"{path}: {error}") from None
        return cls(data, metadata, tensors)

    def raw(self, name: str) -> memoryview:
        """The tensor's bytes as a read-only view of the mapped file; it stays valid after `close`."""
        tensor = self.tensors[name]
        return self._data[tensor.offset : tensor.offset + tensor.num_bytes]

    def close(self) -> None:
        """Give up the mapping; memory goes back once the last view that `raw` handed out is gone."""
        self._data.release()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _MalformedError(Exception):
    """What is wrong with the bytes; `GGUFFile.open` adds which file they came from."""


_MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_NESTING = 3  # arrays of arrays of arrays; no known writer nests at all

# Far above any real model, far below what would exhaust memory: a sparse file can be terabytes long for free.
_MAX_HEADER_BYTES = 1 << 28
_MAX_NAME_BYTES = 1 << 16
_MAX_ELEMENTS = 1 << 24  # of all arrays together

_KINDS: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

# Type numbers of metadata values; the numbers 8 and 9 are strings and arrays.
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# The smallest encodings: an empty key with a one-byte value; a nameless tensor without dimensions.
_MIN_ENTRY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8


def _map(path: Path) -> memoryview:
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:  # mmap refuses a length of zero
        raise ModelFileError(f"{path}: the file is empty") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(data: memoryview) -> tuple[dict[str, MetadataValue], dict[str, TensorInfo]]:
    cursor = _Cursor(data)
    if cursor.bytes(4, "the magic number") != _MAGIC:
        raise _MalformedError("not a GGUF file: it does not begin with 'GGUF'")
    version = cursor.scalar(_U32, "the version")
    if version not in (2, 3):
        order = "; the file is big-endian" if version in (2 << 24, 3 << 24) else ""
        raise _MalformedError(f"GGUF version {version} is not known{order}; versions 2 and 3 are")
    num_tensors = cursor.count(_MIN_TENSOR_BYTES, "tensors")
    num_entries = cursor.count(_MIN_ENTRY_BYTES, "metadata entries")
    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_entries):
        key = cursor.string("a metadata key", _MAX_NAME_BYTES)
        if key in metadata:
            raise _MalformedError(f"metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.scalar(_U32, f"the type of {key}"), key)
    alignment = _alignment(metadata)
    places = [_tensor(cursor) for _ in range(num_tensors)]
    start = -(-cursor.position // alignment) * alignment
    return metadata, _place(places, start, alignment, len(data))


def _alignment(metadata: dict[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= 1 << 20 or value & (value - 1):
        raise _MalformedError(
            f"general.alignment is {value!r}; a power of two up to 1048576 is needed"
        )
    return value


def _tensor(cursor: _Cursor) -> TensorInfo:
    """One entry of the tensor table; its offset still counts from the start of the tensor data."""
    name = cursor.string("a tensor's name", _MAX_NAME_BYTES)
    what = f"the shape of tensor {name!r}"
    num_dimensions = cursor.scalar(_U32, what)
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise _MalformedError(
            f"tensor {name!r} has {num_dimensions} dimensions; 1 to 4 are allowed"
        )
    innermost_first = [cursor.scalar(_U64, what) for _ in range(num_dimensions)]
    number = cursor.scalar(_U32, f"the kind of tensor {name!r}")
    offset = cursor.scalar(_U64, f"the offset of tensor {name!r}")
    kind = _KINDS.get(number)
    if kind is None:
        raise _MalformedError(f"tensor {name!r} has the unknown kind {number}")
    block, block_bytes = BLOCK_LAYOUTS[kind]
    if innermost_first[0] % block:
        raise _MalformedError(
            f"tensor {name!r} has rows of {innermost_first[0]} elements; {kind} needs a multiple of {block}"
        )
    num_elements = prod(innermost_first)  # Python's integers cannot overflow
    if num_elements == 0:
        raise _MalformedError(f"tensor {name!r} has a dimension of 0")
    shape = tuple(reversed(innermost_first))
    return TensorInfo(name, shape, kind, offset, num_elements // block * block_bytes)


def _place(
    tensors: list[TensorInfo], start: int, alignment: int, file_bytes: int
) -> dict[str, TensorInfo]:
    """Offsets made absolute; each tensor aligned, inside the file, and apart from all others."""
    placed: dict[str, TensorInfo] = {}
    for tensor in tensors:
        if tensor.name in placed:
            raise _MalformedError(f"tensor {tensor.name!r} occurs twice")
        if tensor.offset % alignment:
            raise _MalformedError(
                f"tensor {tensor.name!r} is at offset {tensor.offset}, which is not a multiple of {alignment}"
            )
        offset = start + tensor.offset
        if offset + tensor.num_bytes > file_bytes:
            raise _MalformedError(
                f"tensor {tensor.name!r} ends at byte {offset + tensor.num_bytes}, but the file has {file_bytes}; "
                f"it is truncated or corrupt"
            )
        placed[tensor.name] = TensorInfo(
            tensor.name, tensor.shape, tensor.kind, offset, tensor.num_bytes
        )
    in_order = sorted(placed.values(), key=lambda tensor: tensor.offset)
    for left, right in pairwise(in_order):
        if left.offset + left.num_bytes > right.offset:
            raise _MalformedError(f"tensors {left.name!r} and {right.name!r} overlap")
    return placed


class _Cursor:
    """Reads forward through the header and never past its end."""

    def __init__(self, data: memoryview) -> None:
        self.position = 0
        self._data = data
        self._end = min(len(data), _MAX_HEADER_BYTES)
        self._num_elements = 0

    def scalar(self, form: struct.Struct, what: str) -> int:
        self._need(form.size, what)
        (value,) = form.unpack_from(self._data, self.position)
        self.position += form.size
        return value  # type: ignore[no-any-return]  # float and bool where `form` says so

    def bytes(self, num_bytes: int, what: str) -> bytes:
        self._need(num_bytes, what)
        start = self.position
        self.position = start + num_bytes
        return self._data[start : self.position].tobytes()

    def count(self, min_bytes_each: int, what: str) -> int:
        """A number of things that follow, each at least `min_bytes_each` long: refused when they cannot fit."""
        value = self.scalar(_U64, f"the number of {what}")
        left = self._end - self.position
        if value > left // min_bytes_each:
            raise _MalformedError(f"{value} {what} cannot fit into the {left} bytes that follow")
        return value

    def string(self, what: str, max_bytes: int = _MAX_HEADER_BYTES) -> str:
        num_bytes = self.scalar(_U64, f"the length of {what}")
        if num_bytes > max_bytes:
            raise _MalformedError(
                f"{what} is {num_bytes} bytes long; at most {max_bytes} are allowed"
            )
        return _decode(self.bytes(num_bytes, what), what)

    def value(self, kind: int, key: str, nesting: int = 0) -> MetadataValue:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], key)
        if kind == _STRING:
            return self.string(key)
        if kind == _ARRAY:
            return self._array(key, nesting)
        raise _MalformedError(f"metadata key {key!r} has the unknown type {kind}")

    def _array(self, key: str, nesting: int) -> list[MetadataValue]:
        if nesting >= _MAX_NESTING:
            raise _MalformedError(f"metadata key {key!r} nests arrays deeper than {_MAX_NESTING}")
        kind = self.scalar(_U32, f"the element type of {key}")
        scalar = _SCALARS.get(kind)
        count = self.count(
            scalar.size if scalar else 12 if kind == _ARRAY else 8, f"elements of {key}"
        )
        self._num_elements += count
        if self._num_elements > _MAX_ELEMENTS:
            raise _MalformedError(f"the metadata arrays hold more than {_MAX_ELEMENTS} elements")
        if scalar is not None:
            raw = self.bytes(count * scalar.size, key)
            return list(struct.unpack(f"<{count}{scalar.format[-1]}", raw))
        if kind == _STRING:
            return self._strings(count, key)
        return [self.value(kind, key, nesting + 1) for _ in range(count)]

    def _strings(self, count: int, key: str) -> list[MetadataValue]:
        """The hot loop of opening a file: a vocabulary has 262,144 strings."""
        data, position, end = self._data, self.position, self._end
        length_at = _U64.unpack_from
        strings: list[MetadataValue] = []
        for _ in range(count):
            start = position + 8
            if start > end:
                raise _truncated(key)
            position = start + length_at(data, position)[0]
            if position > end:
                raise _truncated(key)
            try:
                strings.append(str(data[start:position], "utf-8"))
            except UnicodeDecodeError:
                raise _MalformedError(f"a string of {key} is not UTF-8") from None
        self.position = position
        return strings

    def _need(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._end - self.position:
            raise _truncated(what)


def _decode(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _MalformedError(f"{what} is not UTF-8") from None


def _truncated(what: str) -> _MalformedError:
    return _MalformedError(
        f"the header ends in the middle of {what}; the file is truncated or corrupt"
    )
