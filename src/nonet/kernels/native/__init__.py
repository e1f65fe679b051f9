"""Kernels in C++ for the CPU, compiled at first use (see csrc/)."""

from nonet.kernels.native.library import native_available
from nonet.kernels.native.ops import NativeOps
from nonet.kernels.native.recording import NativeRecording, time_program

__all__ = ["NativeOps", "NativeRecording", "native_available", "time_program"]
