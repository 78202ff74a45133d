"""Stateful Ray actors, each a thin shell around one class of `rayapp`."""

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
