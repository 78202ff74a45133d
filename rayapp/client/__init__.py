"""The Python client: `Client` waits, `AsyncClient` is awaited; the same methods, every route of the server."""

from rayapp.client.asynchronous import AsyncClient
from rayapp.client.prompting import AsyncInteraction, Interaction
from rayapp.client.results import (
    InferResult,
    Info,
    InteractionState,
    Job,
    JobKind,
    ModelInfo,
    Sample,
    SavedLabel,
    Session,
    Versions,
)
from rayapp.client.synchronous import Client
from rayapp.client.transport import Unreachable

__all__ = [
    "AsyncClient",
    "AsyncInteraction",
    "Client",
    "InferResult",
    "Info",
    "Interaction",
    "InteractionState",
    "Job",
    "JobKind",
    "ModelInfo",
    "Sample",
    "SavedLabel",
    "Session",
    "Unreachable",
    "Versions",
]
