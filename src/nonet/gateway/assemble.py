"""From options to what stands above one engine: the database, the prices, the layers."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from nonet.config.resolved import Resolved
from nonet.config.schema import GatewayConfig
from nonet.core.catalogue import parse_spec
from nonet.core.errors import ConfigError
from nonet.core.version import package_version
from nonet.gateway.pipeline import Layer, build_layers
from nonet.gateway.site import Site
from nonet.store.database import Database
from nonet.telemetry.ledger import Ledger
from nonet.telemetry.prices import read_rates

__all__ = ["DATABASE", "build", "joined_specs", "model_fingerprint", "open_site"]

DATABASE = "nonet.db"  # in the data_dir

# How much memory there is and how long queues may be changes no answer.
NOT_IN_FINGERPRINT = frozenset({"reasons", "memory", "num_blocks", "max_waiting"})


def open_site(config: GatewayConfig, resolved: Resolved) -> Site:
    """The site of a server's layers, its database open. ConfigError for what an operator must mend."""
    rates = (
        read_rates(Path(config.price_table), resolved.served_name)
        if config.price_table is not None
        else {}
    )
    database = None
    if config.data_dir is not None:
        folder = Path(config.data_dir).expanduser()
        database = Database(folder / DATABASE, full_sync=config.store_sync == "full")
        database.open()
    return Site(
        model=resolved.served_name,
        fingerprint=model_fingerprint(resolved),
        database=database,
        ledger=Ledger(database) if database is not None else None,
        books=any(parse_spec(spec)[0] == "ledger" for spec in joined_specs(config.gateway)),
        rates=rates,
    )


def build(config: GatewayConfig, site: Site) -> list[Layer]:
    """The layers that the options name."""
    return build_layers(joined_specs(config.gateway), site)


def joined_specs(given: Sequence[str]) -> list[str]:
    """Specs whose knobs were taken apart at the commas, as the environment does, put together again.

    >>> joined_specs(["exact_cache:ttl_s=60", "memory_mib=8", "ledger"])
    ['exact_cache:ttl_s=60,memory_mib=8', 'ledger']
    """
    specs: list[str] = []
    for part in given:
        is_knob = re.match(r"\s*\w+\s*=", part) is not None
        if not is_knob:
            specs.append(part)
        elif specs:
            specs[-1] += ("," if ":" in specs[-1] else ":") + part
        else:
            raise ConfigError(f"gateway begins with {part!r}; name a layer first, as in ledger")
    return specs


def model_fingerprint(resolved: Resolved) -> bytes:
    """SHA-256 of what shapes answers: how the engine is built, and which files it reads."""
    plain = {
        field.name: msgspec.to_builtins(getattr(resolved, field.name))
        for field in dataclasses.fields(resolved)
        if field.name not in NOT_IN_FINGERPRINT
    }
    parts = [package_version(), plain, _files(Path(resolved.model_path))]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).digest()


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file of the model; reading gigabytes at each start would be too slow."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        (str(file.relative_to(path)), state.st_size, state.st_mtime_ns)
        for file in found
        if file.is_file()
        for state in [file.stat()]
    ]
