"""Which sequence goes first, and which gives way; named on the command line with `--policy`."""

from nonet.core.catalogue import Catalogue

__all__ = ["POLICIES"]

POLICIES = Catalogue(
    "scheduling policy",
    {
        "fcfs": "nonet.scheduler.policy.fcfs:FcfsPolicy",
        "priority": "nonet.scheduler.policy.priority:PriorityPolicy",
        "slo": "nonet.scheduler.policy.slo:SloPolicy",
    },
)
