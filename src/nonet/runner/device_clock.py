"""How long the device worked on a step: measured by itself where it runs beside the host."""

from __future__ import annotations

import time

import torch

__all__ = ["DeviceClock"]


class DeviceClock:
    """Runs from its making to `stop`, in the order of the device's own work."""

    def __init__(self, device: torch.device) -> None:
        self._events = None
        self._began = time.perf_counter()
        self._ended = self._began
        if device.type == "cuda":
            self._events = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
            )
            self._events[0].record()

    def stop(self) -> None:
        self._ended = time.perf_counter()
        if self._events is not None:
            self._events[1].record()

    def seconds(self) -> float:
        """Waits for the end where the device has not got there."""
        if self._events is None:
            return self._ended - self._began
        first, last = self._events
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000
