"""Small arrays on their way to the device, without waiting for what it is busy with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["upload"]


def upload(
    values: Sequence[int] | Sequence[float] | npt.NDArray[np.generic],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A one-dimensional tensor of the values; without a dtype, that of the array, or torch's own choice for a list.

    A copy from memory that is not pinned waits until the device has done all that was asked of it before.

    >>> upload([1, 2], torch.device("cpu")).tolist()
    [1, 2]
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
