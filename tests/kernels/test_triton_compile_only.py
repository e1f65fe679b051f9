"""Kernels compiled ahead: nothing runs meanwhile, nothing is left to compile, other threads are not concerned."""

from __future__ import annotations

import threading

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from nonet.kernels.triton.compile_only import compile_only  # isort: skip
from nonet.kernels.triton.rms_norm import rms_norm  # isort: skip

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


def normed(width: int) -> torch.Tensor:
    x = torch.full((4, width), 3.0, device="cuda", dtype=torch.bfloat16)
    return rms_norm(x, torch.ones(width, device="cuda"), 1e-6)


def test_compiled_without_being_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    compiled: list[object] = []
    monkeypatch.setattr(
        knobs.runtime, "jit_post_compile_hook", lambda *a, **k: compiled.append(k or a)
    )
    other: list[torch.Tensor] = []
    widths = (2048 + 16, 4096 + 16)  # met by no other test
    with compile_only():
        for width in widths:
            normed(width)
        thread = threading.Thread(target=lambda: other.append(normed(1024 + 16)))
        thread.start()
        thread.join()
    assert torch.allclose(other[0].float(), torch.ones(1, device="cuda"))
    ahead = len(compiled)
    assert ahead == len(widths) + 1
    for width in widths:
        assert torch.allclose(normed(width).float(), torch.ones(1, device="cuda"))
    assert len(compiled) == ahead


def test_what_does_not_compile_is_left_to_who_launches_it() -> None:
    def bad() -> torch.Tensor:
        x = torch.zeros(4, 64, device="cuda", dtype=torch.bfloat16)
        return rms_norm(x, None, 1e-6)  # type: ignore[arg-type]

    with compile_only():
        bad()
    assert torch.allclose(normed(64).float(), torch.ones(1, device="cuda"))
    with pytest.raises(Exception, match="constexpr"):
        bad()
