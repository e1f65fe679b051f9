"""A second stream within a CUDA graph: what the launches after it do not wait for runs beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["SideStream"]


class SideStream:
    """Outside of a capture, where the host is what takes the time, all is launched in the order that it stands in."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._is_forked = False

    @contextmanager
    def fork(self) -> Iterator[None]:
        """Launches inside wait for those before; those after wait for them at `join`, which must follow.

        The allocator knows nothing of the second stream: what is used inside is made before, and kept until `join`.
        """
        if self._stream is None or not torch.cuda.is_current_stream_capturing():
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._is_forked = True
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        if self._stream is not None and self._is_forked:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
            self._is_forked = False
