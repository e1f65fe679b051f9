"""The input of a batch: one request per line, found and checked without ever holding the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from nonet.core.errors import InvalidRequestError
from nonet.server.limits import check_length, check_text, maximum
from nonet.store.batch_records import Line

__all__ = ["InputFile", "InputLine", "read_line"]

AT_ONCE = 1000  # lines looked at before others get their turn
MOST_ERRORS = 100  # told of one file


class InputLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line, OpenAI's."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class InputFile:
    """Walks through an input file. What is wrong with it collects in `errors`, as OpenAI tells it.

    `next_lines` reads from the disk: call it off the event loop, until it returns nothing.
    """

    def __init__(self, path: Path, endpoint: str, max_line_bytes: int) -> None:
        self.errors: list[dict[str, Any]] = []
        self.num_lines = 0
        self._endpoint = endpoint
        self._max_line_bytes = max_line_bytes
        self._custom_ids: set[str] = set()
        self._file = path.open("rb")
        self._row = 0

    def close(self) -> None:
        self._file.close()

    def next_lines(self) -> list[Line]:
        """The next good lines; an empty list at the end, or when there is no point in going on."""
        found: list[Line] = []
        for _ in range(AT_ONCE):
            start = self._file.tell()
            text = self._file.readline(self._max_line_bytes + 2)
            if not text or len(self.errors) >= MOST_ERRORS:
                break
            self._row += 1
            if not text.strip():
                continue
            custom_id = self._checked(text)
            if custom_id is not None:
                found.append(Line(self.num_lines, custom_id, start, len(text)))
                self.num_lines += 1
            if len(text) > self._max_line_bytes + 1:
                return []  # where the next line begins is not known
        if not found and not self.num_lines and not self.errors:
            self._note("empty_file", "the input file holds no request", None, None)
        return found

    def _checked(self, text: bytes) -> str | None:
        """The custom_id of a line that is right; else it is noted what is wrong."""
        try:
            return self._read(text)
        except _WrongLineError as wrong:
            self._note(wrong.code, wrong.message, wrong.param, self._row)
            return None

    def _read(self, text: bytes) -> str:
        most = maximum("batch_lines")
        if self.num_lines >= most:
            raise _WrongLineError("too_many_requests", f"at most {most} requests are taken")
        if len(text.rstrip(b"\n")) > self._max_line_bytes:
            message = f"the line is over {self._max_line_bytes} bytes"
            raise _WrongLineError("request_too_large", message)
        try:
            line = msgspec.json.decode(text, type=InputLine)
        except msgspec.ValidationError as error:
            raise _WrongLineError("invalid_request", str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = f"the line is not JSON: {error}"
            raise _WrongLineError("invalid_json_line", message) from None
        if line.method != "POST":
            message = f"method is {line.method[:20]!r}; give POST"
            raise _WrongLineError("invalid_method", message, "method")
        if line.url != self._endpoint:
            message = f"url is {line.url[:100]!r}; the batch is for {self._endpoint}"
            raise _WrongLineError("mismatched_url", message, "url")
        if not bytes(line.body).startswith(b"{"):
            raise _WrongLineError("invalid_request", "body is no object", "body")
        return self._new_id(line.custom_id)

    def _new_id(self, custom_id: str) -> str:
        try:
            check_length("name", len(custom_id), "custom_id")
            check_text(custom_id, "custom_id")
        except InvalidRequestError as error:
            raise _WrongLineError("invalid_request", str(error), "custom_id") from None
        if not custom_id:
            raise _WrongLineError("invalid_request", "custom_id is empty", "custom_id")
        if custom_id in self._custom_ids:
            message = f"custom_id {custom_id[:100]!r} occurs more than once; give each line its own"
            raise _WrongLineError("duplicate_custom_id", message, "custom_id")
        self._custom_ids.add(custom_id)
        return custom_id

    def _note(self, code: str, message: str, param: str | None, row: int | None) -> None:
        self.errors.append({"code": code, "message": message, "param": param, "line": row})


class _WrongLineError(Exception):
    """What is wrong with a line, in OpenAI's fields."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


def read_line(path: Path, line: Line) -> bytes:
    """The body of a request whose place is known; from the disk."""
    with path.open("rb") as file:
        file.seek(line.start)
        return bytes(msgspec.json.decode(file.read(line.size), type=InputLine).body)
