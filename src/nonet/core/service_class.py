"""How soon a request's answer is wanted: three classes, best first."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["SERVICE_CLASSES", "ServiceClass"]

# Somebody watches the answer appear; somebody waits for it; nobody waits.
ServiceClass = Literal["interactive", "standard", "batch"]

SERVICE_CLASSES: tuple[ServiceClass, ...] = get_args(ServiceClass)
