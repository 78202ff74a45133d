"""Stateful Ray actors, each a thin shell around one class of `rayapp`."""

NAMESPACE = "rayapp"

OWNER = {"namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
"""Options of an actor that owns state: one per cluster, found by its name, restarted whenever it dies."""
