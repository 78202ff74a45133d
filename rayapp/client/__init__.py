"""The Python client: `Client` waits, `AsyncClient` is awaited; the same methods, every route of the server."""

from rayapp.client.asynchronous import AsyncClient
from rayapp.client.prompting import AsyncInteraction, Interaction
from rayapp.client.results import InferResult
from rayapp.client.synchronous import Client
from rayapp.client.transport import Unreachable
from rayapp.protocol import JobKind
from rayapp.responses import Info, InteractionState, Job, ModelInfo, Sample, SavedLabel, Session, Versions

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
