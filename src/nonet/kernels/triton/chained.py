"""Kernels that begin while the one before them ends (programmatic dependent launch, from Hopper on).

A chained kernel is launched early. It may read what no kernel writes, such as weights, then `wait_for_last`, and only
then touch what others wrote or will read. Every kernel of a chain waits, so a kernel that has passed its wait comes
after all before it. `let_next_begin` says that the next one may be launched; it waits in its turn.
Reference: CUDA programming guide, programmatic dependent launch and synchronization.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

__all__ = ["can_chain", "chain", "let_next_begin", "wait_for_last"]


def can_chain(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def chain(is_chained: bool) -> dict[str, bool]:
    """What a launch needs besides the kernel's CHAINED."""
    return {"launch_pdl": True} if is_chained else {}


@triton.jit
def wait_for_last(CHAINED: tl.constexpr):
    if CHAINED:
        cuda.gdc_wait()


@triton.jit
def let_next_begin(CHAINED: tl.constexpr):
    if CHAINED:
        cuda.gdc_launch_dependents()
