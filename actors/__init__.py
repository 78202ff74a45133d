"""Stateful Ray actors, each a thin shell around one class of `rayapp`."""

NAMESPACE = "rayapp"
