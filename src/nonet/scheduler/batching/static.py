"""Static batching: what people do without a serving stack, kept as the baseline that others are measured against.

Idea: a batch of `size` requests starts together, and the next starts when its last one has finished.
Reference: the usual loop over `generate`.
Cost: seats stay empty from the end of a short output to the end of the longest.
Good for: showing what continuous batching brings.
Conflicts: none. A batch starts in one step, so the step's token budget must hold its prompts: what does not fit waits
for the next batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from nonet.core.errors import ConfigError

__all__ = ["StaticBatching"]


class StaticBatching:
    """No seat is open while anybody runs."""

    @dataclass(frozen=True, slots=True)
    class Config:
        size: int = 32

        def __post_init__(self) -> None:
            if self.size < 1:
                raise ConfigError(f"static: size is {self.size}; give at least 1")

    def __init__(self, config: Config | None = None) -> None:
        self._config = config if config is not None else self.Config()

    def seats(self, num_running: int, num_free: int) -> int:
        return 0 if num_running else min(num_free, self._config.size)
