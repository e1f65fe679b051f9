"""The reference's distributions on disk, so that one model at a time is in memory.

A row of log probabilities is as long as the vocabulary: 4,096 of them are 0.8 GB for SmolLM2 and 4.3 GB for Gemma 3.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nonet.core.errors import ConfigError

__all__ = ["DistributionStore"]

# Left free on the disk, whatever is written.
SPARE_BYTES = 1 << 30


class DistributionStore:
    """Log probabilities [rows, V] by number, in a folder that its owner removes.

    `is_recording` while the reference runs, `has_reference` afterwards; neither when there is nothing to compare.
    """

    def __init__(self, folder: Path, *, is_recording: bool = False) -> None:
        self._folder = folder
        self.is_recording = is_recording
        self._saved = 0

    @property
    def has_reference(self) -> bool:
        return not self.is_recording and self._saved > 0

    def end_of_reference(self) -> None:
        """From now on the store is read."""
        self.is_recording = False

    def save(self, number: int, logprobs: npt.NDArray[np.float32]) -> None:
        free = shutil.disk_usage(self._folder).free
        if logprobs.nbytes > free - SPARE_BYTES:
            raise ConfigError(
                f"the reference's distributions need {logprobs.nbytes >> 20} MiB more in {self._folder}, where "
                f"{free >> 20} MiB are free; measure fewer texts, or point TMPDIR to a larger disk"
            )
        np.save(self._folder / f"{number}.npy", logprobs, allow_pickle=False)
        self._saved += 1

    def load(self, number: int) -> npt.NDArray[np.float32]:
        """Mapped, not read: rows come from the disk as they are used."""
        found: npt.NDArray[np.float32] = np.load(
            self._folder / f"{number}.npy", mmap_mode="r", allow_pickle=False
        )
        return found
