"""An uploaded file, from the form that carries it to the disk, a piece at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from nonet.core.errors import InvalidRequestError, StoreError
from nonet.server.call import Call, header
from nonet.server.limits import maximum

__all__ = ["Upload", "receive_upload"]

MAX_FIELD_BYTES = 4096
MAX_FIELDS = 32
MAX_FORM_BYTES = 65_536  # what a form may hold besides its file
BUFFER_BYTES = 1 << 20


@dataclass(slots=True)
class Upload:
    """A form with one file, which is at `part`."""

    part: Path
    filename: str = ""
    num_bytes: int = 0
    fields: dict[str, str] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def receive_upload(call: Call, part: Path) -> AsyncIterator[Upload]:
    """Read the call's body, a multipart form whose field `file` is written to `part`. What is there when the block
    ends is removed: who wants the file moves it away. InvalidRequestError for other bodies."""
    kind, options = parse_options_header(header(call.scope, b"content-type"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequestError("the body is no multipart form; send the file as field 'file'")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb", buffering=BUFFER_BYTES) as file:
            upload = await _receive(call, _Form(boundary, part, file))
        yield upload
    except OSError as error:
        raise StoreError(f"the file could not be kept: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


async def _receive(call: Call, form: _Form) -> Upload:
    limit = maximum("file_bytes") + MAX_FORM_BYTES
    try:
        async for data in call.body_parts(limit, "upload_s"):
            await asyncio.to_thread(form.feed, data)
        form.end()
    except FormParserError as error:
        raise InvalidRequestError(f"the form is malformed: {error}") from None
    return form.upload


class _Form:
    """The parser's callbacks: which field the bytes at hand belong to."""

    def __init__(self, boundary: bytes, part: Path, file: BinaryIO) -> None:
        self.upload = Upload(part)
        self._file = file
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )
        self._num_parts = 0
        self._has_file = False
        self._is_over = False
        self._name, self._value = b"", b""
        self._disposition = b""
        self._field: str | None = None  # None: the bytes are the file's
        self._text = b""

    def feed(self, data: bytes) -> None:
        self._parser.write(data)

    def end(self) -> None:
        """The body is over; InvalidRequestError when the form, or its file, is not whole."""
        if not self._is_over:
            raise InvalidRequestError("the form ends before its last boundary")
        if not self._has_file:
            raise InvalidRequestError("the form has no field 'file' with a filename", "file")

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_FIELDS:
            raise InvalidRequestError(f"the form has more than {MAX_FIELDS} fields")
        self._disposition = b""
        self._text = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        filename = options.get(b"filename")
        self._field = name
        if name == "file" and filename is not None:
            if self._has_file:
                raise InvalidRequestError("the form has more than one file; send one", "file")
            self._has_file = True
            self._field = None
            self.upload.filename = filename.decode("utf-8", "replace")[:MAX_FIELD_BYTES]

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.upload.num_bytes += end - start
            if self.upload.num_bytes > maximum("file_bytes"):
                most = maximum("file_bytes")
                raise InvalidRequestError(
                    f"the file is over {most} bytes, the most that is kept", "file"
                )
            self._file.write(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise InvalidRequestError(
                f"field {self._field[:50]!r} is over {MAX_FIELD_BYTES} bytes", self._field[:50]
            )

    def _on_part_end(self) -> None:
        if self._field is not None:
            self.upload.fields[self._field] = self._text.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._is_over = True
