"""The Python client of a rayapp server.

`Client` blocks until the server has answered; `AsyncClient` has the same methods as coroutines. Both cover every route.
The packages that decode masks are imported when a mask is first decoded.
"""

from rayapp.client.async_interaction import AsyncInteraction, Mask, Points, PromptFields
from rayapp.client.asynchronous import AsyncClient
from rayapp.client.results import InferResult
from rayapp.client.synchronous import Client, Interaction
from rayapp.client.transport import Unreachable
from rayapp.protocol import JobKind
from rayapp.responses import (
    DatastoreStatus,
    Info,
    InteractionState,
    Job,
    LabelRevision,
    ModelFile,
    ModelInfo,
    Sample,
    SavedLabel,
    Session,
    SessionInfo,
    UserInfo,
    Versions,
)

__all__ = [
    "AsyncClient",
    "AsyncInteraction",
    "Client",
    "DatastoreStatus",
    "InferResult",
    "Info",
    "Interaction",
    "InteractionState",
    "Job",
    "JobKind",
    "LabelRevision",
    "Mask",
    "ModelFile",
    "ModelInfo",
    "Points",
    "PromptFields",
    "Sample",
    "SavedLabel",
    "Session",
    "SessionInfo",
    "Unreachable",
    "UserInfo",
    "Versions",
]
