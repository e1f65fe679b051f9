"""Kernels compiled without being run: many at once, for the compiler is slow and uses one core for each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction

__all__ = ["compile_only"]

# The compiler holds Python's lock for a part of its work, so more do not help.
MOST_AT_ONCE = 8

_is_on: ContextVar[bool] = ContextVar("compile_only", default=False)
_one_at_a_time = threading.Lock()


@contextmanager
def compile_only() -> Iterator[None]:
    """Launches of this thread compile what they would run; all are compiled when it ends. Results are garbage.

    Other threads launch as ever. What does not compile is left to who launches it. Triton has a way to compile in a
    pool, but none to have a whole forward pass do so: the method behind every launch is exchanged meanwhile.
    """
    with _one_at_a_time, ThreadPoolExecutor(MOST_AT_ONCE, "compile") as pool:
        launch = JITFunction.run

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            return launch(kernel, *args, grid=grid, warmup=warmup or _is_on.get(), **options)

        JITFunction.run = run
        token = _is_on.set(True)
        try:
            with AsyncCompileMode(pool, ignore_errors=True):
                yield
        finally:
            _is_on.reset(token)
            JITFunction.run = launch
