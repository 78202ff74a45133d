"""The Python client: `Client` waits, `AsyncClient` is awaited; the same methods, every route of the server."""

from rayapp.client.asynchronous import AsyncClient
from rayapp.client.results import InferResult, Info, Job, JobKind, ModelInfo, Sample, SavedLabel, Session, Versions
from rayapp.client.synchronous import Client
from rayapp.client.transport import Unreachable

__all__ = [
    "AsyncClient",
    "Client",
    "InferResult",
    "Info",
    "Job",
    "JobKind",
    "ModelInfo",
    "Sample",
    "SavedLabel",
    "Session",
    "Unreachable",
    "Versions",
]
