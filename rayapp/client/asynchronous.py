"""AsyncClient: every route of the server as a coroutine."""

from __future__ import annotations

from types import TracebackType
from typing import Self, cast

from rayapp.client.active_learning_calls import ActiveLearningCalls
from rayapp.client.datastore_calls import DatastoreCalls
from rayapp.client.inference_calls import InferenceCalls
from rayapp.client.job_calls import JobCalls
from rayapp.client.model_calls import ModelCalls
from rayapp.client.session_calls import SessionCalls
from rayapp.client.transport import Call, read_text
from rayapp.protocol import Route
from rayapp.responses import Info, UserInfo


class AsyncClient(InferenceCalls, ActiveLearningCalls, DatastoreCalls, ModelCalls, SessionCalls, JobCalls):
    """A client of one server; use it as `async with AsyncClient(url) as client`.

    It belongs to one event loop, on which its calls may run concurrently. Large bodies are streamed from and to files.
    Coordinates are voxel indices [i, j, k] of the image as its file stores it.

    Every method raises the class of `rayapp.errors` that the server answered with, and its text, or `Unreachable`.
    Idempotent calls are retried up to five times with exponential backoff when the connection fails or the server is
    busy. So are the prompts of an interaction, which carry a request id and count once. An inference is retried only
    when the server refused it as busy. Nothing else is ever sent twice.
    """

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.__aexit__(kind, error, trace)

    async def info(self) -> Info:
        """The server's app: its models, labels, trainers, strategies and annotation progress."""
        return cast(Info, await self._get(Route.INFO))

    async def reload(self) -> None:
        """Make the server load its app again. Needs the role of an administrator."""
        await self._send("POST", Route.RELOAD)

    async def logs(self, *, lines: int = 300) -> str:
        """The last lines of the server's log."""
        call = Call(method="GET", path=Route.LOGS, query={"lines": str(lines), "html": "false", "text": "true"})
        return await self._transport.send(call, read_text)

    async def gpu(self) -> str:
        """The output of `nvidia-smi` on the server."""
        return await self._transport.send(Call(method="GET", path=Route.LOGS_GPU), read_text)

    async def whoami(self) -> UserInfo:
        """The user that the token belongs to, with the user's roles.

        Raises:
            NotFound: On a server without authentication.
        """
        return cast(UserInfo, await self._get(Route.AUTH_VALID))


__all__ = ["AsyncClient"]
