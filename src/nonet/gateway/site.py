"""Where a layer stands: what it may know of the server and the model below it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nonet.core.clock import Clock, MonotonicClock
from nonet.core.errors import ConfigError
from nonet.core.service_class import ServiceClass
from nonet.store.database import Database
from nonet.telemetry.ledger import Ledger
from nonet.telemetry.prices import FREE, Rates

__all__ = ["Site"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Handed to every layer. `fingerprint` stands for all that shapes the model's answers: files, formats, kernels."""

    model: str
    fingerprint: bytes
    database: Database | None = None  # None: no data_dir was given, nothing outlives the server
    ledger: Ledger | None = None
    books: bool = False  # whether a layer writes the ledger
    rates: Mapping[str, Rates] = field(default_factory=dict)  # by service class; empty: all is free
    clock: Clock = field(default_factory=MonotonicClock)
    wall: Callable[[], float] = time.time

    def rates_of(self, service_class: ServiceClass) -> Rates:
        return self.rates.get(service_class, FREE)

    def needed_database(self, who: str) -> Database:
        """ConfigError when there is none."""
        if self.database is None:
            raise ConfigError(f"{who} needs a folder to write to; set data_dir")
        return self.database
