"""What a device can do at most, measured: a large copy, a large sum, large matrix products.

Shares of a peak mean little against a datasheet: these rates are what any program on this device, today, is held to.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

from nonet.bench.device.timing import median_seconds

__all__ = ["Ceilings", "Sizes", "measure_ceilings"]


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """`copy_bytes` of each of source and target; products are `product` cubed."""

    copy_bytes: int
    product: int

    @classmethod
    def for_device(cls, device: torch.device) -> Sizes:
        """Large enough that launches and caches do not show."""
        if device.type == "cuda":
            return cls(copy_bytes=2 << 30, product=8192)
        return cls(copy_bytes=256 << 20, product=2048)


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes per second (a copy counts what it reads and what it writes) and operations per second by arithmetic."""

    copy_bytes_per_s: float
    sum_bytes_per_s: float
    flops_per_s: dict[
        str, float
    ]  # float32 or bfloat16, and where there is one, float8 and float8_rowwise
    sizes: Sizes

    def peak(self, arithmetic: str) -> float:
        """Of that arithmetic, or of the fastest that was measured where there is none."""
        return self.flops_per_s.get(arithmetic, max(self.flops_per_s.values()))


def measure_ceilings(device: torch.device, sizes: Sizes | None = None) -> Ceilings:
    """A few seconds on a GPU; gives its memory back."""
    chosen = sizes or Sizes.for_device(device)
    copied, summed = _memory(device, chosen.copy_bytes)
    products = {
        name: 2 * chosen.product**3 / median_seconds([product] * 5, device)
        for name, product in _products(device, chosen.product).items()
    }
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Ceilings(
        copy_bytes_per_s=copied, sum_bytes_per_s=summed, flops_per_s=products, sizes=chosen
    )


def _memory(device: torch.device, num_bytes: int) -> tuple[float, float]:
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    # By a kernel: the copy node of a graph goes another way, a fifth slower than an H100's memory (seen 2,430 GB/s
    # beside 3,014 without a graph).
    copy = [lambda: torch.mul(source, 1, out=target)] * 2
    copied = 2 * source.nbytes / median_seconds(copy, device)
    summed = source.nbytes / median_seconds([lambda: source.sum()] * 2, device)
    return copied, summed


def _products(device: torch.device, size: int) -> dict[str, Callable[[], torch.Tensor]]:
    if device.type == "cpu":
        a, b = (torch.randn(size, size) for _ in range(2))
        return {"float32": lambda: a @ b, "bfloat16": _product(a.bfloat16(), b.bfloat16())}
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    found = {"bfloat16": _product(a, b)}
    if torch.cuda.get_device_capability(device) >= (8, 9):
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        rows, columns = torch.ones(size, 1, device=device), torch.ones(1, size, device=device)
        found["float8"] = _scaled_product(a8, b8, one, one)
        found["float8_rowwise"] = _scaled_product(a8, b8, rows, columns)
    return found


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: a @ b


def _scaled_product(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor
) -> Callable[[], torch.Tensor]:
    return lambda: torch._scaled_mm(
        a, b.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=True
    )
