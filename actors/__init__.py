"""Stateful Ray actors, each a thin shell around one class of `rayapp`."""

from __future__ import annotations

import hashlib

from rayapp.config import Settings

NAMESPACE = "rayapp"

ON_HEAD = {"node:__internal_head__": 0.001}
"""Ray resources of what runs on the head node: worker nodes may be spot machines, which come and go."""
OWNER = {
    "namespace": NAMESPACE,
    "lifetime": "detached",
    "get_if_exists": True,
    "num_cpus": 0,
    "resources": ON_HEAD,
    "max_restarts": -1,
}
"""Options of an actor that owns state: one per cluster, found by its name, on the head, restarted whenever it dies."""


def name_of(kind: str, settings: Settings) -> str:
    """Name of a server's actor or application on a cluster: it carries the studies and the workspace, so that no server
    ever finds those of another by accident.

    Args:
        kind: of actor or application, for example `datastore`.
        settings: of the server.
    """
    of = f"{settings.studies.absolute()}\0{settings.workspace.absolute()}"
    return f"{kind}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"
